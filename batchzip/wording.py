"""Texts for values in messages."""

from __future__ import annotations

_SHOWN = 80
"""Most characters of a value in a message."""


def kind_of(value: object) -> str:
    """Return the class of a value for a message, with its dtype if it is an array."""
    name = type(value).__name__
    dtype = getattr(value, "dtype", None)
    return name if dtype is None or not hasattr(value, "__len__") else f"{name} of {dtype}"


def shown(value: object) -> str:
    """Return the `repr` of a value for a message, shortened. Never raises, whatever `repr` does."""
    if hasattr(value, "dtype") and getattr(value, "shape", None):
        return kind_of(value)
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - an int of too many digits, or a user's own class
        return f"a value of {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
