"""Values for mappings."""

from __future__ import annotations

import json
import random

import pytest

IN_CHUNKS_OR_PAGES = pytest.mark.parametrize("engine", ["lz4", "deflate"], indirect=True)
"""Run a test with large values in chunks, and on pages, where those of codecs in Python lie."""


def mixed(seed: int, size: int) -> bytes:
    """Make a value of which about two thirds are left when it is compressed."""
    rng = random.Random(seed)
    return (b"".join(rng.randbytes(20) + b"a name: " for _ in range(size // 28 + 1)))[:size]


def row(number: int) -> bytes:
    return json.dumps(
        {"id": number, "name": f"user {number * 7919}", "mail": f"{number * 31}@example.org"}
    ).encode()
