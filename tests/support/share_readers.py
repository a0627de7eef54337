"""What readers in other processes do to a shared store; multiprocessing imports it from here.

A page has its index and its version, and everything else in it follows from these. Two tables in a
file that all processes map have the least version before a read and the greatest after it, for
each index. A version that is a multiple of `_GONE` is an invalidated page.
"""

import itertools
import mmap
import os
import random
import resource
import struct
import time
import traceback
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from threading import Thread

import numpy as np
import numpy.typing as npt

from batchzip import PageNotStored, Share, StoreView, attach

SIZE = 4096
_GONE = 5
_HEAD = struct.Struct("<II")


def page(index: int, version: int) -> bytes:
    kind = (index + version) % 3
    if kind == 0:
        return _HEAD.pack(index, version) * (SIZE // _HEAD.size)
    if kind == 1:
        return (
            _HEAD.pack(index, version) + b" is the head of a page of text, which repeats." * 99
        )[:SIZE]
    return _HEAD.pack(index, version) + random.Random(index << 32 | version).randbytes(SIZE - 8)


def gone(version: int) -> bool:
    return version % _GONE == 0


class Versions:
    """The least and the greatest version there may be now, by index; the owner writes."""

    def __init__(self, path: Path, count: int) -> None:
        with path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), 16 * count)
        tables: npt.NDArray[np.int64] = np.frombuffer(self.map, np.int64).reshape(2, count)
        self.least, self.most = tables


def look(view: StoreView, versions: Versions, index: int) -> str:
    """Load a page and compare; what is wrong, or nothing."""
    least = int(versions.least[index])
    try:
        data = view.load(index)
    except PageNotStored:
        most = int(versions.most[index])
        if any(gone(version) for version in range(least, most + 1)):
            return ""
        return f"page {index} was not there, with versions {least} to {most}"
    most = int(versions.most[index])
    found, version = _HEAD.unpack_from(data)
    if found != index or data != page(index, version):
        value, rest = view._table.get(index)
        same = [at for at in range(0, SIZE, 8) if data[at : at + 8] == data[:8]]
        return (
            f"page {index} is torn, or of {found}: {data[:32].hex()}, "
            f"first word {len(same)} times, "
            f"{len(data)} bytes; entry {value:#x} {rest:#x}, versions {least} to {most}, "
            f"codecs {view._shared.owner.codecs()}, right now: {view.load(index) == data}"
        )
    if not least <= version <= most:
        return f"page {index} has version {version}, not {least} to {most}"
    return ""


def read_for(
    share: Share, path: Path, count: int, seconds: float, seed: int, out: Connection
) -> None:
    """Read random pages; send how many, and what was wrong."""
    rng = random.Random(seed)
    wrong: list[str] = []
    reads = 0
    try:
        versions = Versions(path, count)
        with share.attach() as view:
            until = time.monotonic() + seconds
            while time.monotonic() < until and not wrong:
                for _ in range(50):
                    # A few of the pages more often: those are stored again while they are read.
                    index = rng.randrange(count if rng.random() < 0.5 else 8)
                    failure = look(view, versions, index)
                    if failure:
                        wrong.append(failure)
                    reads += 1
                view.counters  # noqa: B018 - asks the owner
    except BaseException:  # noqa: BLE001 - told to the test
        wrong.append(traceback.format_exc())
    out.send((reads, wrong))
    out.close()


def answer(share: Share | str, out: Connection) -> None:
    """Attach and load what is asked for, until None comes."""
    with attach(share) as view:
        while (asked := out.recv()) is not None:
            try:
                out.send(view.load(asked) if isinstance(asked, int) else view.load_many(asked))
            except Exception as error:  # noqa: BLE001 - the answer
                out.send(error)


def own(out: Connection) -> None:
    """Own a store with pages 0 … 99 until killed."""
    from batchzip import Engine, SwapStore  # noqa: PLC0415 - the owner's only

    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        store.store(0, [page(index, 1) for index in range(100)])
        out.send(store.share().address)
        if os.fork() == 0:
            time.sleep(60)  # a child that outlives the owner must not keep readers waiting
            os._exit(0)
        time.sleep(60)


def attach_many(share: Share, count: int, start: Event, out: Connection) -> None:
    """Attach in so many threads at once; send how many did, and what went wrong, and wait."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    views: list[StoreView] = []
    wrong: list[str] = []

    def attach_one(index: int) -> None:
        try:
            start.wait()
            view = share.attach()
            views.append(view)
            if view.load(index) != page(index, 1):
                wrong.append(f"page {index} is another")
        except BaseException:  # noqa: BLE001 - told to the test
            wrong.append(traceback.format_exc())

    threads = [Thread(target=attach_one, args=(number % 100,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.send((len(views), wrong[:3]))
    out.recv()
    for view in views:
        view.close()


def version_of(data: bytes, index: int) -> int:
    """Tell the version of a page, which has to be whole."""
    found, version = _HEAD.unpack_from(data)
    if found != index or data != page(index, version):
        raise AssertionError(f"page {index} is torn, or of {found}")
    return int(version)


def own_and_change(out: Connection) -> None:
    """Own a store with pages 0 … 63, and store them again and again until killed."""
    from batchzip import Engine, SwapStore  # noqa: PLC0415 - the owner's only

    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        for version in itertools.count(1):
            store.store(0, [page(index, version) for index in range(64)])
            if version == 1:
                out.send(store.share().address)
            if version % 8 == 0:
                store.compact()
