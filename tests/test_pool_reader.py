"""PoolReader: another process gets the object or None, never other bytes, whatever the owner does."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from xxhash import xxh3_64_digest

from batchzip.errors import BadHandle, ClosedError
from batchzip.pool import Pool, PoolReader
from batchzip.segment import Segment

READER = """
import struct, sys
from xxhash import xxh3_64_digest
from batchzip.pool import PoolReader

found = gone = 0
with PoolReader(int(sys.argv[1]), int(sys.argv[2])) as reader:
    print("ready", flush=True)
    while True:
        packed = sys.stdin.buffer.read(8 * 256)
        if not packed:
            break
        handles = struct.unpack("<256Q", packed)
        for _ in range(20):
            for handle, data in zip(handles, reader.copy_many(handles)):
                if data is None:
                    gone += 1
                    continue
                assert data[:8] == xxh3_64_digest(data[8:]), "bytes of no object"
                found += 1
print(found, gone)
"""


def described(rng: random.Random) -> bytes:
    body = rng.randbytes(rng.randrange(1, 4000))
    return xxh3_64_digest(body) + body


def duplicates(pool: Pool) -> tuple[int, int]:
    data, words = pool.descriptors
    return os.dup(data), os.dup(words)


@pytest.fixture
def both() -> Iterator[tuple[Pool, PoolReader]]:
    with Pool() as pool, PoolReader(*duplicates(pool)) as reader:
        yield pool, reader


def test_a_reader_sees_what_is_live_and_nothing_else(both: tuple[Pool, PoolReader]) -> None:
    pool, reader = both
    handles = pool.put_many([b"one", b"two", b"three"])
    assert reader.copy_many(handles) == [b"one", b"two", b"three"]
    pool.free(handles[1])
    assert reader.copy_many(handles) == [b"one", None, b"three"]
    other = pool.put_many([b"other"])
    assert reader.copy(handles[1]) is None
    assert reader.copy(other[0]) == b"other"
    for never in (0, 1, 7, 8, -1, 1 << 48, (1 << 48) + 300, (1 << 64) - 1, 1 << 80):
        assert reader.copy(never) is None
    for wrong in (1.5, "1", None):
        with pytest.raises(BadHandle):
            reader.copy(wrong)  # type: ignore[arg-type]


def test_a_reader_follows_growth_and_compaction(both: tuple[Pool, PoolReader]) -> None:
    pool, reader = both
    data = [bytes([at % 251]) * 1500 for at in range(4000)]
    handles = pool.put_many(data)
    assert reader.copy_many(handles) == data
    pool.free_many(handles[::2])
    while pool.compact():
        pass
    assert reader.copy_many(handles[1::2]) == data[1::2]
    assert set(reader.copy_many(handles[::2])) == {None}
    pool.check_invariants()  # no memory came back through the reader


def test_a_reader_writes_nothing_and_outlives_the_pool() -> None:
    pool = Pool()
    handle = pool.put_many([b"kept"])[0]
    reader = PoolReader(*duplicates(pool))
    with pytest.raises(TypeError):
        reader._words[8] = 0
    pool.close()
    assert reader.copy(handle) == b"kept"
    reader.close()
    reader.close()
    with pytest.raises(ClosedError):
        reader.copy(handle)


def test_an_object_that_moved_away_and_back_is_not_mistaken(
    both: tuple[Pool, PoolReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, reader = both
    handle = pool.put_many([b"right"])[0]
    words = pool._arena.handles.words
    pread = os.pread
    copies = []

    def meanwhile(fd: int, length: int, offset: int) -> bytes:
        copies.append(offset)
        if len(copies) == 1:
            words[0] += np.uint64(2)  # two compactions, and other bytes here in between
            return b"wrong"
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", meanwhile)
    assert reader.copy(handle) == b"right"
    assert len(copies) == 2


def test_a_read_only_segment_cannot_be_written() -> None:
    with (
        Segment(4096, reserve=True) as segment,
        Segment.attach(os.dup(segment.fd), writable=False) as other,
    ):
        assert other.view.readonly
        segment.view[:2] = b"ab"
        assert bytes(other.view[:2]) == b"ab"


@pytest.mark.parametrize("turns", [50, pytest.param(300, marks=pytest.mark.stress)])
def test_a_process_beside_a_churning_and_compacting_owner_gets_no_wrong_bytes(turns: int) -> None:
    rng = random.Random(7)
    with Pool() as pool:
        held = pool.put_many([described(rng) for _ in range(2000)]).tolist()
        fds = pool.descriptors
        child = subprocess.Popen(
            [sys.executable, "-c", READER, *map(str, fds)],
            pass_fds=fds,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            os.set_blocking(child.stdin.fileno(), True)
            for turn in range(turns):
                child.stdin.write(np.array(rng.sample(held, 256), np.uint64).tobytes())
                child.stdin.flush()
                for _ in range(4):
                    rng.shuffle(held)
                    pool.free_many(held[:300])
                    pool.compact(200)
                    size = 300 if turn % 2 else 310
                    held[:300] = pool.put_many([described(rng) for _ in range(size)]).tolist()
            child.stdin.close()
            found, gone = map(int, child.stdout.read().split())
        assert child.returncode == 0
        assert found > 1000
        assert gone > 0
        pool.check_invariants()
