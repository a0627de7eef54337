"""The kernel's selftests for batchzip; zswap's own are in test_store.py and test_writeback.py."""

import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from support.store_pages import SIZE, noise, text

from batchzip import BadHandle, CompressBatch, DecompressBatch, Engine, Pool, SwapStore

VECTORS = {
    # Blocks and frames as the formats' specifications make them, and the pages they are of.
    "lz4": [
        # one literal 'a', then a match at distance 1, as long as it can be, and five literals
        (b"\x1fa\x01\x00" + b"\xff" * 15 + b"\xf6" + b"\x50aaaaa", b"a" * 4096),
        # literals alone: 15 + 255 × 16 + 1
        (b"\xf0" + b"\xff" * 16 + b"\x01" + bytes(range(256)) * 16, bytes(range(256)) * 16),
    ],
    "zstd": [
        # a frame with its size, one RLE block of 4096 times 'a'
        (bytes.fromhex("28b52ffd60000f03800061"), b"a" * 4096),
        # a frame with its size, one raw block
        (
            bytes.fromhex("28b52ffd60000f")
            + (4096 << 3 | 1).to_bytes(3, "little")
            + bytes(range(256)) * 16,
            bytes(range(256)) * 16,
        ),
    ],
}


@pytest.fixture(params=["lz4", "zstd"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(request.param, backend="sequential") as engine:
        yield engine


def test_acomp_testmgr_round_trip_of_a_batch_of_16(engine: Engine) -> None:
    pages = [text(number) if number % 3 else noise(number) for number in range(16)]
    batch = CompressBatch(pages)
    engine.compress(batch)
    assert not batch.errors.any()
    assert [len(batch.output(number)) for number in range(16)] == batch.dlens.tolist()
    back = DecompressBatch([bytes(batch.output(number)) for number in range(16)])
    engine.decompress(back)
    assert not back.errors.any()
    assert back.dlens.tolist() == [SIZE] * 16
    assert back.pages.tobytes() == b"".join(pages)


@pytest.mark.parametrize(
    ("algorithm", "stored", "page"),
    [(name, *vector) for name, vectors in VECTORS.items() for vector in vectors],
    ids=["lz4 match", "lz4 literals", "zstd RLE", "zstd raw"],
)
def test_acomp_testmgr_known_vectors_have_exact_lengths(
    algorithm: str, stored: bytes, page: bytes
) -> None:
    with Engine(algorithm, backend="sequential") as engine:
        # One byte less is no page, and one page more is none of ours.
        back = DecompressBatch([stored, stored[:-1], stored + stored])
        engine.decompress(back)
        assert back.errors[0] == 0
        assert back.dlens[0] == SIZE
        assert bytes(back.pages[0]) == page
        assert back.errors[1] < 0
        assert back.dlens[1] == 0


def written_and_read(mib: int) -> None:
    """Write so much to a store, read it back byte for byte, and reset."""
    count = mib << 8
    rng = np.random.default_rng(1)
    # Half noise, half a repeated word of its own: quick to make, and no two pages alike.
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        for first in range(0, count, 256):
            pages = np.repeat(rng.integers(0, 1 << 63, (256, 1)), SIZE // 8, axis=1)
            pages[:, ::16] = rng.integers(0, 1 << 63, (256, SIZE // 128))
            store.store(first, pages.view(np.uint8))
        assert len(store) == count
        rng = np.random.default_rng(1)
        for first in range(0, count, 256):
            pages = np.repeat(rng.integers(0, 1 << 63, (256, 1)), SIZE // 8, axis=1)
            pages[:, ::16] = rng.integers(0, 1 << 63, (256, SIZE // 128))
            found = store.load_many(range(first, first + 256))
            assert np.array_equal(found.view(np.int64), pages)
        assert store.invalidate(0, count) == count
        store.compact()
        assert store.counters.pool_total_size == 0
        assert len(store) == 0


def test_zram_selftest_what_is_written_is_read_back_and_reset() -> None:
    written_and_read(16)


@pytest.mark.stress
def test_zram_selftest_512_megabytes_are_read_back_and_reset() -> None:
    written_and_read(512)


@pytest.mark.slow
def test_85b325815b56_a_free_that_races_a_move_frees_that_object_and_no_other() -> None:
    """zsmalloc freed what had been moved under it; here each object says which it is."""
    with Pool() as pool:
        stop = threading.Event()

        def move() -> None:
            while not stop.is_set():
                pool.compact(16)

        movers = [threading.Thread(target=move) for _ in range(2)]
        for mover in movers:
            mover.start()
        rng = random.Random(1)
        live: dict[int, bytes] = {}
        try:
            for turn in range(300):
                data = [b"%d %d " % (turn, number) * rng.randrange(1, 60) for number in range(30)]
                live |= dict(zip(pool.put_many(data).tolist(), data, strict=True))
                gone = rng.sample(list(live), len(live) // 3)
                for handle in gone[:5]:
                    pool.free(handle)
                pool.free_many(gone[5:])
                for handle in gone:
                    del live[handle]
                    with pytest.raises(BadHandle):
                        pool.read(handle)
                looked_at = rng.sample(list(live), min(len(live), 20))
                assert pool.read_many(looked_at) == [live[handle] for handle in looked_at]
        finally:
            stop.set()
            for mover in movers:
                mover.join()
        assert pool.read_many(list(live)) == list(live.values())
        pool.check_invariants()
