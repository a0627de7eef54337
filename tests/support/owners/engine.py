"""An owner to be killed: a script with two engines under load from several threads."""

from __future__ import annotations

import threading
import time
from itertools import count

import numpy as np

from batchzip import CompressBatch, DecompressBatch, Engine

PAGES = np.random.default_rng(0).integers(0, 6, (300, 4096), np.uint8)


def run_batches(engine: Engine, *, submitted: bool) -> None:
    inside = engine.arena(len(PAGES))
    inside[:] = PAGES
    for turn in count():
        pages = inside if turn % 2 else PAGES
        batch = CompressBatch(pages[: turn % 290 + 2])
        if submitted:
            requests = [engine.submit(CompressBatch(pages)) for _ in range(4)]
            for request in requests:
                request.wait()
        engine.compress(batch)
        engine.decompress(DecompressBatch(batch.outputs()))


def main() -> None:
    for algorithm in ("lz4", "zstd"):
        engine = Engine(algorithm, backend="workers", workers=2)
        for submitted in (False, True):
            threading.Thread(
                target=run_batches, args=(engine,), kwargs={"submitted": submitted}, daemon=True
            ).start()
    print("under load", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
