"""Limit: a bare loop of codec calls in as many processes as there are lanes.

It measures the speed of all cores together, which on a shared machine is always less than the
number of cores × the speed of one. Each process loops over all pages, and each starts at another
page. The pages are in shared memory, like those of a batch. A round starts when all processes are
ready. Each process measures its own time, and the pages per second are added up.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import time
from functools import partial
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any

from batchzip.bench.compressors import bare_calls, each
from batchzip.bench.pages import PAGE
from batchzip.bench.rounds import timed
from batchzip.system.interpreter import command_for
from batchzip.system.lifetime import Closing

if TYPE_CHECKING:
    from batchzip.bench.compressors import Load


class Limit(Closing):
    """Processes with a bare loop each: one per lane of `load`."""

    name = "limit"

    def __init__(self, load: Load) -> None:
        command = command_for(
            "from batchzip.bench.limit import lane; lane()", "a lane of the limit"
        )
        self.cpu_s: list[float] = []
        """CPU seconds per page for each call of `seconds`, averaged over the processes."""
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        memory = os.memfd_create("pages")
        try:
            os.truncate(memory, load.pages.nbytes)
            with mmap.mmap(memory, load.pages.nbytes) as room:
                room[:] = load.pages.tobytes()
            for number in range(load.lanes):
                here, there = Pipe()
                self._pipes.append(here)
                with there:
                    process = subprocess.Popen(  # noqa: S603 - our own
                        [*command, str(there.fileno()), str(memory)],
                        stdin=subprocess.DEVNULL,
                        pass_fds=[there.fileno(), memory],
                        process_group=0,  # Ctrl-C reaches only the parent, which ends it
                    )
                self._processes.append(process)
                here.send((load.algorithm, len(load.pages) * number // load.lanes))
            self._receive()
        except BaseException:
            self.close()
            raise
        finally:
            os.close(memory)

    def seconds(self, operation: str, pages: int) -> float:
        """Run a loop in each process. Return the seconds in which together they process `pages`."""
        self._send(operation)
        self._receive()
        self._send("start")
        told: list[tuple[float, float]] = self._receive()
        self.cpu_s.append(sum(cpu_s for _, cpu_s in told) / len(told))
        return pages / sum(per_second for per_second, _ in told)

    def _send(self, word: str) -> None:
        for pipe in self._pipes:
            pipe.send(word)

    def _receive(self) -> list[Any]:
        return [pipe.recv() for pipe in self._pipes]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.wait()
        self._pipes, self._processes = [], []


def lane() -> None:
    """Run a bare loop whenever the parent asks for it. This is the main function of a process.

    Its arguments are the descriptors of a pipe to the parent and of the pages.
    """
    pipe, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    algorithm, first = pipe.recv()
    view = memoryview(mmap.mmap(memory, 0, prot=mmap.PROT_READ))
    pages = [view[at : at + PAGE] for at in range(0, len(view), PAGE)]
    pages = pages[first:] + pages[:first]
    compress, decompress = bare_calls(algorithm)
    loops = {
        "compress": timed(partial(each, compress, pages)),
        "decompress": timed(partial(each, decompress, list(map(compress, pages)))),
    }
    with contextlib.suppress(EOFError, OSError):  # the parent closed its end, or ended
        pipe.send(True)
        while True:
            loop = loops[pipe.recv()]
            pipe.send(True)
            pipe.recv()
            cpu_s = time.thread_time()
            spent_s = loop()
            pipe.send((len(pages) / spent_s, (time.thread_time() - cpu_s) / len(pages)))
