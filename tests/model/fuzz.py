"""Fuzz: every entry point of the core, used rightly and wrongly at random, for a while.

    .ci/with_core.sh asan tests/model/fuzz.py --seconds 60
    .ci/with_core.sh asan tests/model/fuzz.py --only forged --seed 17 --rounds 1

Wrong use must raise one of a few exceptions, and right use must give right results. A report of a
sanitizer is a failure, too. Each round has a seed of its own, which is printed if it fails.

Not tried: `Pointers` with arrays of the wrong length. The batches' classes check their arguments
(test_wrong_arguments.py) and make the arrays themselves, and Pointers trusts them.
"""

from __future__ import annotations

import argparse
import errno
import mmap
import os
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from batchzip import CompressBatch, DecompressBatch
from batchzip.codecs.lz4 import Lz4
from batchzip.codecs.lz4hc import Lz4hc
from batchzip.codecs.shuffled import Shuffled
from batchzip.codecs.verified import Verified
from batchzip.codecs.zstd import Zstd
from batchzip.core.coder import Coder, Coders
from batchzip.core.division import DONE, GAVE_UP, LATE, WAITING, Divider
from batchzip.core.lane import STEPS, ThreadLanes, serve
from batchzip.core.plan import Plan
from batchzip.core.ring import Ring, ring_bytes, share_pages
from batchzip.errors import BadArgument, BadBatch, PageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.codecs.codec import Codec

Random = np.random.Generator
REFUSALS = (TypeError, ValueError, BufferError, BadArgument, BadBatch, PageError, MemoryError)
SLOTS, CONTROL_BYTES, SLOT_HEAD = 4, 4096, 256
ARENA_BYTES = 1 << 20


class Chaos:
    """A codec in Python that returns and raises what it likes."""

    deterministic = False

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def plan(self) -> Plan:
        return Plan(codec=self, native=None, verify=bool(self._rng.integers(2)))

    def compressor(self, page_size: int) -> Callable[[bytes], Any]:
        return lambda page: self._answer(page, page_size)

    decompressor = compressor

    def _answer(self, data: bytes, page_size: int) -> Any:
        kind = self._rng.integers(10)
        if kind < 4:
            return data[: int(self._rng.integers(len(data) + 1))]
        if kind == 4:
            return bytes(page_size * 5)
        if kind == 5:
            return memoryview(bytes(2 * page_size))[::2]
        if kind == 6:
            return None
        if kind == 7:
            raise (MemoryError, RuntimeError, KeyboardInterrupt)[self._rng.integers(3)]
        if kind == 8:
            return bytearray(page_size)
        return b""


def page_size_of(rng: Random) -> int:
    return 512 << int(rng.integers(0, 5))


def native_codec(rng: Random) -> Codec:
    codec: Codec = (Lz4(), Lz4hc(), Zstd(level=1), Zstd(level=3), Lz4(acceleration=9))[
        rng.integers(5)
    ]
    if rng.integers(3) == 0:
        codec = Shuffled(codec, (2, 4, 8)[rng.integers(3)], floats=bool(rng.integers(2)))
    return Verified(codec) if rng.integers(3) == 0 else codec


def pages_of(rng: Random, count: int, page_size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return rng.integers(0, (2, 6, 256)[rng.integers(3)], (count, page_size), np.uint8)


def odd(rng: Random, size: int) -> Any:
    """Make something that is given in place of a page or a source."""
    released = memoryview(bytearray(size))
    released.release()
    closed = mmap.mmap(-1, size)
    closed.close()
    return (
        b"", bytes(size - 1), bytes(size + 1), bytes(3 * size), None, "page", 7, released, closed,
        memoryview(bytes(2 * size))[::2], np.zeros(size // 8), np.zeros((2, size), np.uint8).T,
        bytearray(size), [0] * size,
    )[rng.integers(14)]  # fmt: skip


# What is tried.


def coder(rng: Random) -> None:
    """A coder, and one that uses its tables, given pages, sources and everything else."""
    size = page_size_of(rng)
    codec: Any = Chaos(int(rng.integers(1 << 30))) if rng.integers(4) == 0 else native_codec(rng)
    user: Any = Coder(codec, size) if rng.integers(2) else Coders(codec, size)
    compress = getattr(user, "compress", None) or user.compress_page
    decompress = getattr(user, "decompress", None) or user.decompress_page
    for _ in range(8):
        page = pages_of(rng, 1, size)[0]
        try:
            output = bytes(compress(page))
            if not isinstance(codec, Chaos):
                assert decompress(output) == page.tobytes()
            damaged = bytearray(output)
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
            cut = bytes(damaged[: rng.integers(len(damaged) + 1)])
            for source in (damaged, cut, rng.bytes(int(rng.integers(3 * size)))):
                with suppress(PageError):
                    assert len(decompress(source)) == size
        except (*REFUSALS, KeyboardInterrupt):
            if not isinstance(codec, Chaos):
                raise
        for call in (compress, decompress):
            try:
                call(odd(rng, size))
            except (*REFUSALS, KeyboardInterrupt):
                pass
    for page_size in (0, 1, 1 << 40, 1 << 63, -1):
        try:
            Coder(native_codec(rng), page_size)
        except (*REFUSALS, OverflowError):
            pass


def batch(rng: Random) -> None:
    """A batch in the calling thread: odd pages, narrow destinations, results from elsewhere."""
    size, count = page_size_of(rng), int(rng.integers(1, 20))
    codec: Any = Chaos(int(rng.integers(1 << 30))) if rng.integers(4) == 0 else native_codec(rng)
    coders = Coders(codec, size)
    pages: list[Any] = list(pages_of(rng, count, size))
    for _ in range(rng.integers(3)):
        pages[rng.integers(count)] = odd(rng, size)
    capacity = int(rng.integers(1, 3 * size))
    dsts = np.empty((count, capacity), np.uint8) if rng.integers(2) else None
    deadline = -1 if rng.integers(2) else time.monotonic_ns() + int(rng.integers(200_000))
    try:
        compressed = CompressBatch(pages, dsts=dsts, capacity=capacity, page_size=size)
        compressed.pointers.run(coders, deadline)
        sources = [bytes(output) for output in compressed.outputs()]
        restored = DecompressBatch(sources, page_size=size)
        restored.pointers.run(coders)
        if not isinstance(codec, Chaos):
            for index in np.flatnonzero(compressed.errors == 0):
                assert restored.pages[index].tobytes() == bytes(pages[index])
        for target in (compressed, restored):
            elsewhere(rng, target)
        compressed.refill(pages_of(rng, int(rng.integers(0, count + 2)), size))
        compressed.pointers.run(coders)
        compressed.dsts  # noqa: B018 - copies
        compressed.forget_pages()
        compressed.pointers.run(coders)
    except REFUSALS:
        pass
    except KeyboardInterrupt:
        assert isinstance(codec, Chaos)


def elsewhere(rng: Random, target: Any) -> None:
    """Have a batch accept results that another process made up."""
    for _ in range(4):
        many = int(rng.integers(1, 8))
        share = rng.integers(0, len(target) + int(rng.integers(2)), many).tolist()
        results = rng.integers(-5000, 3 * target.page_size, many).astype(np.int32)
        results[rng.random(many) < 0.5] = 0
        memory = rng.bytes(int(rng.integers(0, 3 * many * target.page_size)))
        target.accept(share, memory, results)
    target.pointers.fail_undone(-errno.EIO)
    target.pointers.reset()


def failpoint(rng: Random) -> tuple[str, int, Literal["pause"]]:
    return STEPS[rng.integers(1, len(STEPS))], int(rng.integers(1, 5)), "pause"


class WorkerLanes:
    """Loops of workers, in threads of this process, where sanitizers see both sides."""

    def __init__(self, rng: Random, codec: Codec, size: int, count: int) -> None:
        memories = [mmap.mmap(-1, ring_bytes(size)) for _ in range(count)]
        self.rings = tuple(Ring(size, number, memory) for number, memory in enumerate(memories))
        self._threads = []
        for number, memory in enumerate(memories):
            pause = failpoint(rng) if rng.integers(3) == 0 else None
            arguments = (memory, codec, size, number, -1, pause)
            self._threads.append(threading.Thread(target=serve, args=arguments))
            self._threads[-1].start()

    def close(self) -> None:
        """End them, and wait until they have ended."""
        for ring in self.rings:
            ring.stop()
        for thread in self._threads:
            thread.join()
        for ring in self.rings:
            ring.mark_gone()


def divided(rng: Random) -> None:
    """Batches that several callers share with lanes of either kind, and end in every way."""
    size, codec = page_size_of(rng), native_codec(rng)
    count = int(rng.integers(1, 4))
    lanes: ThreadLanes | WorkerLanes
    if rng.integers(2):
        lanes = WorkerLanes(rng, codec, size, count)
    else:
        lanes = ThreadLanes(codec, size, count)
        for number in range(count):
            if rng.integers(3) == 0:
                lanes.set_failpoint(number, *failpoint(rng))
    divider = Divider(Coders(codec, size), verify=bool(rng.integers(2)))
    divider.generous = bool(rng.integers(2))
    failed: list[BaseException] = []

    def call(seed: int) -> None:
        own = np.random.default_rng(seed)
        try:
            for _ in range(4):
                one_job(own, divider, lanes.rings, codec, size)
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    callers = [
        threading.Thread(target=call, args=(int(rng.integers(1 << 30)),))
        for _ in range(rng.integers(1, 4))
    ]
    for caller in callers:
        caller.start()
    for ring in lanes.rings:
        ring.figures()
    for caller in callers:
        caller.join()
    lanes.close()
    for ring in lanes.rings:
        ring.check_invariants()
    if failed:
        raise failed[0]


def one_job(
    rng: Random, divider: Divider, rings: tuple[Ring, ...], codec: Codec, size: int
) -> None:
    count = int(rng.integers(1, 100))
    pages = pages_of(rng, count, size)
    target: Any = CompressBatch(pages)
    if rng.integers(2):
        outputs = Coders(codec, size)
        target = DecompressBatch([outputs.compress_page(page) for page in pages], page_size=size)
    deadline = time.monotonic_ns() + int(rng.integers(500_000)) if rng.integers(3) == 0 else -1
    job = divider.start(target.pointers, rings, deadline)
    for _ in range(rng.integers(4)):
        status = job.run(float(rng.random() * 1e-4), may_wait=bool(rng.integers(2)))
        assert status in {DONE, WAITING, LATE, GAVE_UP}
    job.holders(), job.untrusted(10.0), job.mine, job.only_lanes
    end = rng.integers(4)
    if end == 0:
        del job
        return
    if end == 1:
        job.withdraw(30.0, -errno.ECANCELED)
    else:
        while (status := job.run(0.05)) == WAITING:
            job.set_rings(rings)
        if status == LATE:
            job.withdraw(30.0, -errno.ETIMEDOUT)
        else:
            assert not target.errors.any()
    for index in np.flatnonzero(target.errors == 0):
        if isinstance(target, CompressBatch):
            output = bytes(target.output(int(index)))
            assert Coders(codec, size).decompress_page(output) == pages[index].tobytes()
        else:
            assert (target.pages[index] == pages[index]).all()


def check_of(descriptor: bytes) -> int:
    """Return what the ring's own check of a descriptor is."""
    mask, total = (1 << 64) - 1, 0x9E3779B97F4A7C15
    for word in struct.unpack("<9Q", descriptor):
        total = ((total ^ word) * 0xFF51AFD7ED558CCD) & mask
        total ^= total >> 32
    return total


def forged(rng: Random) -> None:
    """A worker's loop, given descriptors that pass their check and may say anything."""
    size, codec = page_size_of(rng), native_codec(rng)
    memory = mmap.mmap(-1, ring_bytes(size))
    arena = os.memfd_create("fuzz")
    os.ftruncate(arena, ARENA_BYTES)
    slot_bytes = (ring_bytes(size) - CONTROL_BYTES) // SLOTS
    ring = Ring(size, 0, memory)
    worker = threading.Thread(target=serve, args=(memory, codec, size, 0, arena))
    worker.start()
    for sequence in range(rng.integers(1, 12)):
        if not await_share(ring, sequence, worker):
            break
        count = int(rng.integers(1, min(9, share_pages(size) + 1)))
        figures: list[Any] = [sequence, rng.integers(2), count, rng.integers(2 * size + 1), 0,
                   count * size, rng.integers(8), 0]  # fmt: skip
        places: list[Any] = [0, *(rng.integers(ARENA_BYTES) for _ in range(4))]
        places[2::2] = [size, 2 * size]
        if rng.integers(3) == 0:
            figures[rng.integers(1, 8)] = rng.integers(1 << 32)
        if rng.integers(3) == 0:
            places[rng.integers(5)] = rng.integers(1 << 63)
        descriptor = struct.pack("<8I5Q", *(int(n) for n in figures), *(int(n) for n in places))
        at = CONTROL_BYTES + sequence % SLOTS * slot_bytes
        pages = share_pages(size)
        tables = at + SLOT_HEAD + 8 * pages
        lengths = rng.choice([0, 1, size, size, 2 * size, 2 * size + 1, 1 << 31], count)
        memory[tables : tables + 4 * count] = lengths.astype(np.uint32).tobytes()
        rows = rng.choice([0, 1, 5, 50, 1 << 31], count).astype(np.uint32)
        memory[tables + 4 * pages : tables + 4 * (pages + count)] = rows.tobytes()
        memory[at : at + 8] = struct.pack("<II", int(rng.integers(2)), count)
        memory[at + 64 : at + 144] = descriptor + struct.pack("<Q", check_of(descriptor))
        if rng.integers(3) == 0:
            os.ftruncate(arena, ARENA_BYTES + int(rng.integers(1 << 20)) // 4096 * 4096)
        memory[64:68] = struct.pack("<I", sequence + 1)
        ring.stop()  # rings the bell
        memory[384:388] = bytes(4)
    ring.stop()
    worker.join()
    os.close(arena)


def await_share(ring: Ring, sequence: int, worker: threading.Thread) -> bool:
    while ring.done < sequence and worker.is_alive():
        time.sleep(0.0002)
    return worker.is_alive()


def damaged(rng: Random) -> None:
    """Batches shared with a worker, in whose ring anything is written meanwhile."""
    size, codec = page_size_of(rng), native_codec(rng)
    memory = mmap.mmap(-1, ring_bytes(size))
    arena = os.memfd_create("fuzz")
    os.ftruncate(arena, ARENA_BYTES)
    ring = Ring(size, 0, memory)
    worker = threading.Thread(target=serve, args=(memory, codec, size, 0, arena))
    worker.start()
    slot_bytes = (ring_bytes(size) - CONTROL_BYTES) // SLOTS
    over = False

    def damage(seed: int) -> None:
        own = np.random.default_rng(seed)
        while not over:
            place = own.integers(4)
            slot = CONTROL_BYTES + int(own.integers(SLOTS)) * slot_bytes
            at = int(own.integers(1024)) if place == 0 else slot + int(own.integers(2048))
            if place == 3:
                at = slot + SLOT_HEAD + int(own.integers(24 * share_pages(size)))
            data = own.bytes(int(own.integers(1, 9)))
            if own.integers(2):
                data = struct.pack("<I", int(own.choice([0, 1, 2, size, 0xFFFFFFFF])))
            memory[at : at + len(data)] = data
            time.sleep(float(own.random() * 2e-4))

    damager = threading.Thread(target=damage, args=(int(rng.integers(1 << 30)),))
    damager.start()
    divider = Divider(Coders(codec, size), verify=bool(rng.integers(2)))
    divider.generous = bool(rng.integers(2))
    for _ in range(4):
        pages = pages_of(rng, int(rng.integers(2, 30)), size)
        target: Any = CompressBatch(pages)
        if rng.integers(2):
            made = Coders(codec, size)
            target = DecompressBatch([made.compress_page(page) for page in pages], page_size=size)
        job = divider.start(target.pointers, (ring,))
        for _ in range(20):
            if job.run(0.002) == DONE:
                break
            job.untrusted(0.01)
            ring.figures(), ring.ready, ring.done, ring.asleep
            ring.is_neglected(0.001)
        else:
            job.withdraw(0.01, -errno.EIO)
        with suppress(AssertionError):
            ring.check_invariants()
    over = True
    damager.join()
    ring.stop()
    memory[64:68] = struct.pack("<I", 1 << 30)  # what it finds there is no share
    ring.stop()
    worker.join()
    ring.mark_gone()
    os.close(arena)


def misused(_: Random) -> None:
    """Sizes, memory and steps that cannot be."""
    for make in (
        lambda: Ring(0, 0),
        lambda: Ring(4096, 0, bytearray(100)),
        lambda: Ring(4096, 0, bytes(1 << 23)),
        lambda: Ring(4096, 0, "memory"),  # type: ignore[arg-type]
        lambda: ring_bytes(0),
        lambda: share_pages(0),
        lambda: ring_bytes(1 << 62),
        lambda: ThreadLanes(Lz4(), 0, 1),
        lambda: ThreadLanes(Chaos(1), 4096, 1),  # type: ignore[arg-type]
        lambda: serve(bytearray(100), Lz4(), 4096, 0, -1),
        lambda: serve(bytearray(ring_bytes(4096)), Lz4(), 4096, 0, -1, ("nowhere", 1, "raise")),
        lambda: Divider(None),  # type: ignore[arg-type]
        lambda: Divider(Coders(Lz4(), 512)).start(None, ()),  # type: ignore[arg-type]
    ):
        try:
            make()
        except (*REFUSALS, AttributeError, OverflowError):
            continue
        raise AssertionError("what cannot be was taken")


TRIED = {f.__name__: f for f in (coder, batch, divided, forged, damaged, misused)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--log", default=os.devnull, help="has what was tried last, after a crash")
    parser.add_argument("--only", nargs="*", choices=TRIED, default=list(TRIED))
    arguments: Any = parser.parse_args()
    seed = int.from_bytes(os.urandom(4)) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    rounds = dict.fromkeys(arguments.only, 0)
    log = os.open(arguments.log, os.O_WRONLY | os.O_CREAT, 0o600)
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end and sum(rounds.values()) < arguments.rounds * len(rounds):
        name = arguments.only[sum(rounds.values()) % len(arguments.only)]
        os.pwrite(log, f"--only {name} --seed {seed:<20}".encode(), 0)
        try:
            TRIED[name](np.random.default_rng(seed))
        except BaseException:
            print(f"\nfailed: --only {name} --seed {seed}", file=sys.stderr, flush=True)
            raise
        rounds[name] += 1
        if sum(rounds.values()) % len(rounds) == 0:
            seed += 1
    print(", ".join(f"{name} {count}" for name, count in rounds.items()), "rounds")


if __name__ == "__main__":
    main()
