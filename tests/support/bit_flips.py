"""Flips bits of stored pages, one at a time, and looks at what comes back."""

import random
from collections.abc import Callable

from support.entries import in_file, in_pool
from support.faulty_file import FaultyFile
from support.pool_memory import memory_of
from support.store_pages import SIZE, noise, text

from batchzip import CorruptPage, Engine, SwapStore, train_dictionary

PAGES = 64


def page(seed: int) -> bytes:
    """Make a page of text and noise, which compresses poorly; every eighth is noise alone."""
    if seed % 8 == 7:
        return noise(seed)
    return (text(seed)[: SIZE // 2] + noise(seed))[:SIZE]


KINDS: dict[str, Callable[[], Engine]] = {
    "lz4": lambda: Engine("lz4", backend="sequential"),
    "zstd": lambda: Engine("zstd", level=1, backend="sequential"),
    "zstd with a dictionary": lambda: Engine(
        "zstd",
        level=1,
        backend="sequential",
        dictionary=train_dictionary([text(seed) for seed in range(100)], size=4096),
    ),
    "lz4hc": lambda: Engine("lz4hc", backend="sequential"),
    "deflate": lambda: Engine("deflate", backend="sequential"),
    "snappy": lambda: Engine("snappy", backend="sequential"),
    "brotli": lambda: Engine("brotli", backend="sequential"),
    "raw": lambda: Engine("lz4", backend="sequential"),
    "lz4, shuffled": lambda: Engine("lz4", shuffle=4, backend="sequential"),
}


def sweep(kind: str, where: str, flips: int, seed: int) -> tuple[int, int]:
    """Flip so many bits at random; how many were noticed, and how many changed nothing.

    Raises AssertionError for a page that is wrong, for its own bit or for a neighbour's.
    """
    rng = random.Random(f"{kind} {where} {seed}")
    file = FaultyFile()
    noticed = harmless = 0
    with KINDS[kind]() as engine, SwapStore(engine, backing=file) as store:
        pages = [(noise if kind == "raw" else page)(number) for number in range(PAGES)]
        store.store(0, pages)
        if where == "file":
            assert store.writeback(PAGES) == PAGES
        views = [in_pool(store, index) for index in range(PAGES)] if where == "pool" else []
        for turn in range(flips):
            index = rng.randrange(PAGES)
            memory: memoryview | bytearray
            if where == "pool":
                memory, places = views[index], range(len(views[index]))
            else:
                memory, places = file.content, in_file(store, index)
            at, bit = rng.choice(places), 1 << rng.randrange(8)
            memory[at] ^= bit
            try:
                if store.load(index) != pages[index]:
                    raise AssertionError(
                        f"{kind}: bit {bit} of byte {at - places[0]} gave a wrong page"
                    )
                harmless += 1
            except CorruptPage as damage:
                if damage.index != index:
                    raise AssertionError(f"page {damage.index} was blamed, not {index}") from None
                noticed += 1
            if turn % 16 == 0:
                neighbour = (index + 1) % PAGES
                if store.load(neighbour) != pages[neighbour]:
                    raise AssertionError(f"{kind}: page {neighbour} suffered for {index}")
            memory[at] ^= bit
        if store.load_many(range(PAGES)).tobytes() != b"".join(pages):
            raise AssertionError(f"{kind}: a page stayed damaged")
    return noticed, harmless


def sweep_around(flips: int, seed: int) -> int:
    """Flip so many bits between the objects of a pool: in their headers, and in room that is free.

    Raise AssertionError if a page suffers, even if objects move over what was flipped. Return
    how many objects were moved meanwhile.
    """
    rng = random.Random(seed)
    moved = 0
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        pool = store._resources.pool
        memory = memory_of(pool).view
        held: dict[int, bytes] = {}
        left = flips
        while left > 0:
            for index in rng.sample(range(4 * PAGES), PAGES):  # so that there are holes
                if index in held and rng.random() < 0.6:
                    store.invalidate(index)
                    del held[index]
                else:
                    held[index] = page(rng.randrange(1 << 20))[: rng.randrange(SIZE)].ljust(
                        SIZE, b"x"
                    )
                    store.store(index, held[index])
            extents = sorted(map(pool.allocator.extent, pool.handles().tolist()))
            ends = [0, *(stop for _, stop in extents)]
            starts = [*(start for start, _ in extents), min(ends[-1] + 4096, len(memory))]
            gaps = [range(a, b) for a, b in zip(ends, starts, strict=True) if a < b]
            for gap in rng.choices(gaps, k=500):
                memory[rng.choice(gap)] ^= 1 << rng.randrange(8)
            left -= 500
            before = pool.stored_bytes
            while store.compact():
                moved += 1
            if pool.stored_bytes != before or len(store) != len(held):
                raise AssertionError("compaction lost count")
            for index, expected in held.items():
                if store.load(index) != expected:
                    raise AssertionError(f"page {index} suffered for what lies beside it")
        if store.invalidate(0, 4 * PAGES) != len(held) or pool.stored_bytes:
            raise AssertionError("not all could be freed")
    return moved
