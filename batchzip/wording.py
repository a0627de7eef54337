"""How values look in messages."""

from __future__ import annotations

_SHOWN = 80
"""Characters of a value that a message shows."""


def kind_of(value: object) -> str:
    """Name the kind of a value for a message: its class; of an array, what it has."""
    name = type(value).__name__
    dtype = getattr(value, "dtype", None)
    return name if dtype is None or not hasattr(value, "__len__") else f"{name} of {dtype}"


def shown(value: object) -> str:
    """Return a value as it looks in Python, for a message: shortened, and whatever its `repr` does."""
    if hasattr(value, "dtype") and getattr(value, "shape", None):
        return kind_of(value)
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - an int of too many digits, or somebody's own class
        return f"a value of {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
