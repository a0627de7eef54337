"""Compare the memory of JSON values in a dict, in a dict of compressed bytes, and in mappings.

`python examples/json_values.py --mib 2048` uses 2 GiB of values. The default is 8 MiB. Contenders
run one after the other, each in a process of its own, and the growth of its PSS is measured. The
dict needs memory for all values. `--without-dict` leaves it out.
"""

import argparse
import gc
import json
import multiprocessing
import random
import time
import zlib
from collections.abc import Iterator
from typing import Any

import lz4.block

import batchzip
from batchzip.bench.held import process_pss

READS = 2000
CONTENDERS = ("dict", "dict of lz4", "mapping, lz4", "mapping, zstd", "mapping, zstd, dictionary")


def values(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield keys and JSON values of 300 to 1,500 bytes, `size` bytes in total, always the same."""
    rng = random.Random(5)  # noqa: S311 - example data
    number = 0
    while size > 0:
        rows = [
            {
                "order": rng.randrange(10**8),
                "customer": f"customer-{rng.randrange(10**5):05}",
                "state": rng.choice(("open", "paid", "sent", "late")),
                "items": [rng.randrange(5000) for _ in range(4)],
                "total": round(rng.expovariate(0.01), 2),
            }
            for _ in range(rng.randrange(3, 12))
        ]
        value = json.dumps(rows).encode()
        size -= len(value)
        yield f"order:{number:09}", value
        number += 1


class Lz4Dict(dict[str, bytes]):
    """A dict that compresses its values with lz4."""

    def __setitem__(self, key: str, value: bytes) -> None:
        super().__setitem__(key, lz4.block.compress(value))

    def __getitem__(self, key: str) -> bytes:
        return lz4.block.decompress(super().__getitem__(key))  # type: ignore[no-any-return]


def make(name: str) -> Any:
    """Make an empty contender."""
    if not name.startswith("mapping"):
        return {} if name == "dict" else Lz4Dict()
    engine = batchzip.Engine("lz4") if "lz4" in name else batchzip.Engine("zstd", level=1)
    dictionary = "auto" if "dictionary" in name else None
    return batchzip.CompressedMapping(batchzip.SwapStore(engine), dictionary=dictionary)


def measure(name: str, size: int) -> dict[str, Any]:
    """Fill a contender in this process. Return its memory and the times of calls."""
    make(name)["warm"] = b"memory of imports must not be measured"
    gc.collect()
    before = process_pss()
    kept, count, putting = make(name), 0, 0.0
    checksums: dict[str, int] = {}
    every = 1 + size // (READS * 1000)
    for key, value in values(size):
        if count % every == 0 and len(checksums) < READS:
            checksums[key] = zlib.crc32(value)
        started = time.perf_counter()
        kept[key] = value
        putting += time.perf_counter() - started
        count += 1
    gc.collect()
    pss = process_pss() - before
    keys = random.Random(6).sample([*checksums], len(checksums))  # noqa: S311 - an order
    started = time.perf_counter()
    for key in keys:
        kept[key]
    getting = time.perf_counter() - started
    assert all(zlib.crc32(kept[key]) == checksum for key, checksum in checksums.items())
    return {"count": count, "pss": pss, "put": putting / count, "get": getting / len(keys)}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=8, help="of JSON (%(default)s)")
    parser.add_argument("--without-dict", action="store_true")
    options = parser.parse_args()
    print(f"{'':27}{'MiB':>9}{'B/value':>9}{'put, µs':>9}{'get, µs':>9}")
    for name in CONTENDERS[options.without_dict :]:
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            found = alone.apply(measure, (name, options.mib << 20))
        pss = found["pss"]
        line = f"{name:27}{pss / 2**20:9.1f}{pss / found['count']:9.0f}"
        print(f"{line}{found['put'] * 1e6:9.1f}{found['get'] * 1e6:9.1f}", flush=True)


if __name__ == "__main__":
    main()
