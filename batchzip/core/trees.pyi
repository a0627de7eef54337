"""Trees of lists and dicts: whether JSON and MessagePack can give them back as they are."""

def misfit(value: object, *, binary: bool) -> str | None:
    """Name what in a tree would not come back as it is, or None; `binary`: MessagePack, not JSON.

    Lists and dicts are of these types themselves, as are leaves: str, int, float, bool and None,
    bytes in MessagePack. Keys are str in JSON, and leaves in MessagePack. JSON has finite numbers
    only.
    """
