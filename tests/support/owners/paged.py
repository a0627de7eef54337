"""An owner to be killed: a script whose threads use paged memory with a backing file."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from support.paged_model import run_model
from support.paged_region import opened

if TYPE_CHECKING:
    from support.paged_model import Worker


def main() -> None:
    with opened(pages=512, budget=40, backing=sys.argv[1], max_pool_bytes=256 << 10) as region:
        begun = threading.Barrier(3)

        def work(worker: Worker) -> None:
            begun.wait(60)
            if worker.number == 0:
                print("under load", flush=True)
            worker.run(1 << 40)

        run_model(region, work)


if __name__ == "__main__":
    main()
