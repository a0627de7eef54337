WAYS: tuple[str, ...]
NEEDED: int
CLEAN_PAGES: int
POISONING: int

def probe() -> tuple[str | None, int, dict[str, int]]: ...
