"""An owner to be killed: a script whose threads store, load and write back to a file."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from itertools import count

import numpy as np

from batchzip import BatchzipError, Engine, SwapStore

PAGES = np.random.default_rng(0).integers(0, 6, (64, 4096), np.uint8)


def work(store: SwapStore, first: int) -> None:
    for turn in count():
        with contextlib.suppress(BatchzipError):
            store.store(first + turn % 8 * 64, PAGES)
            store.load_many(range(first, first + 64), exclusive=turn % 3 == 0)
            store.writeback(100)
            store.invalidate(first + turn % 5 * 64, 40)
            if turn % 10 == 0:
                store.compact()


def main() -> None:
    store = SwapStore(
        Engine("lz4", backend="threads", workers=2), backing=sys.argv[1], max_pool_bytes=4 << 20
    )
    store.store(1 << 20, PAGES)
    for thread in range(2):
        threading.Thread(target=work, args=(store, thread * 4096), daemon=True).start()
    print(store.share(), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
