"""Trees of lists and dicts: whether JSON and MessagePack restore them exactly."""

def misfit(value: object, *, binary: bool) -> str | None:
    """Describe the first part of a tree that would not be restored exactly, or return None.

    `binary` means MessagePack instead of JSON. Only these exact types are restored: list, dict,
    str, int, float, bool and None, and in MessagePack also bytes. Keys must be str in JSON, and any
    leaf in MessagePack. JSON has only finite numbers.
    """
