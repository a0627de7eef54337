"""Real pages of several kinds: text of Python's files, and arrays as programs compute them."""

from __future__ import annotations

import json
import random
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from batchzip import CompressBatch, DecompressBatch, Engine

SIZE = 4096


def pages_of(data: bytes) -> list[bytes]:
    """Cut whole pages."""
    return [data[at : at + SIZE] for at in range(0, len(data) - SIZE + 1, SIZE)]


@cache
def source_pages() -> list[bytes]:
    """Source of the standard library, its files in an order that is none."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(1).shuffle(files)
    return pages_of(b"".join(file.read_bytes() for file in files))


@cache
def json_pages() -> list[bytes]:
    """Records of files, as a service would list them."""
    rng = random.Random(2)
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(str(file.relative_to(root)) for file in root.glob("*/*.py"))
    records = [
        {
            "id": number,
            "path": rng.choice(paths),
            "modified": round(1.7e9 + number * 0.37, 3),
            "owner": {"user": f"user-{rng.randrange(500)}", "group": "staff"},
            "bytes": rng.randrange(100_000),
        }
        for number in range(20_000)
    ]
    return pages_of(json.dumps(records).encode())


def arrays() -> dict[str, tuple[int, bytes]]:
    """Arrays with the bytes of their elements, 64 pages each."""
    rng = np.random.default_rng(3)
    count = 64 * SIZE
    time = np.linspace(0, 20, count // 4)
    signal = np.sin(time) + 0.3 * np.sin(7 * time + 1)
    weights = rng.normal(0, 0.02, count // 2).astype(np.float32)
    ids = np.cumsum(rng.integers(1, 200, count // 8), dtype=np.int64)
    walk = np.cumsum(rng.integers(-20, 21, count // 4), dtype=np.int32)
    return {
        "float32 signal": (4, signal.astype(np.float32).tobytes()),
        "float64 signal": (8, signal[::2].tobytes()),
        "int64 sorted ids": (8, ids.tobytes()),
        "int32 random walk": (4, walk.tobytes()),
        "bfloat16 weights": (2, (weights.view(np.uint32) >> 16).astype(np.uint16).tobytes()),
        "float32 weights": (4, weights[: count // 4].tobytes()),
    }


def ratio(pages: list[bytes], algorithm: str, **parameters: Any) -> float:
    """Return how much smaller pages become, and check that they come back unchanged."""
    with Engine(algorithm, backend="sequential", **parameters) as engine:
        batch = CompressBatch(pages)
        engine.compress(batch)
        assert not batch.errors.any()
        back = DecompressBatch(batch.outputs())
        engine.decompress(back)
        assert not back.errors.any()
        assert back.pages.tobytes() == b"".join(pages)
        return len(pages) * SIZE / int(batch.dlens.sum())
