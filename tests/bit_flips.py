"""Flips bits of stored pages, one at a time, and looks at what comes back."""

import random
from collections.abc import Callable

from entries import in_file, in_pool
from faulty_file import FaultyFile
from store_pages import SIZE, noise, text

from batchzip import CorruptPage, Engine, SwapStore, train_dictionary

PAGES = 64


def page(seed: int) -> bytes:
    """Make a page of half text, half noise, so that its compressed form is long; or all noise, kept raw."""
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
        pages = [page(number) for number in range(PAGES)]
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
