"""Lanes get the largest sources of a decompressed batch first, and results are the same."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.codecs.recording import RecordingCodec

from batchzip import CompressBatch, DecompressBatch, Engine
from batchzip.testing.plain import PAGE, SLACK_S, check_restored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batchzip.arguments.buffers import Bytes

pytestmark = pytest.mark.usefixtures("always_hand_over")


COUNT = 300


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("lz4", backend="workers", workers=2) as engine:
        assert engine.wait_ready(SLACK_S)
        engine.submit(CompressBatch(np.zeros((1, PAGE), np.uint8))).wait(SLACK_S)
        yield engine


def pages_of_many_sizes(seed: int) -> Bytes:
    """Pages that compress to anything between a few bytes and more than a page."""
    rng = np.random.default_rng(seed)
    pages = np.zeros((COUNT, PAGE), np.uint8)
    for page, noise in zip(pages, rng.integers(0, PAGE + 1, COUNT), strict=True):
        page[:noise] = rng.integers(0, 256, noise)
    return pages


def compressed(engine: Engine, pages: Bytes) -> CompressBatch:
    batch = CompressBatch(pages)
    engine.compress(batch)
    assert not batch.errors.any()
    return batch


@pytest.mark.parametrize(
    "lengths", [[3, 1, 2], [0], [5] * 4, [1, 9, 9, 1, 0, 100], list(range(1000))]
)
def test_the_order_is_every_index_once_by_falling_size_and_else_as_given(
    lengths: list[int],
) -> None:
    order = DecompressBatch([bytes(length) for length in lengths]).order()
    assert list(order) == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


def test_compress_batches_keep_their_order() -> None:
    assert CompressBatch(np.zeros((5, PAGE), np.uint8)).order() == range(5)


@pytest.mark.slow
@pytest.mark.parametrize("submitted", [False, True])
@pytest.mark.parametrize("sources", ["list", "array and lengths"])
@pytest.mark.parametrize("pages", ["made", "array", "flat", "rows", "arena"])
def test_results_are_right_whatever_the_order(
    engine: Engine, sources: str, pages: str, submitted: bool
) -> None:
    expected = pages_of_many_sizes(seed=1)
    batch = compressed(engine, expected)
    srcs: Any = batch.outputs() if sources == "list" else (batch.dsts, batch.dlens)
    memory = np.empty((COUNT, PAGE), np.uint8)
    wanted: dict[str, Any] = {
        "made": None,
        "array": memory,
        "flat": memory.reshape(-1),
        "rows": list(memory),
        "arena": engine.arena(COUNT),
    }
    back = DecompressBatch(srcs, pages=wanted[pages])
    assert list(back.order()) != list(range(COUNT))
    if submitted:
        engine.submit(back).wait(SLACK_S)
    else:
        engine.decompress(back)
    check_restored(back, expected)


@pytest.mark.parametrize("pages", ["array", "rows", "arena"])
def test_errors_are_those_of_their_own_pages(engine: Engine, pages: str) -> None:
    expected = pages_of_many_sizes(seed=2)
    srcs: list[Any] = list(compressed(engine, expected).outputs())
    bad = sorted(np.random.default_rng(3).choice(COUNT, 40, replace=False).tolist())
    for number, index in enumerate(bad):
        srcs[index] = b"\xff" * (1, 500, 8000, 9000)[number % 4]
    memory = engine.arena(COUNT) if pages == "arena" else np.empty((COUNT, PAGE), np.uint8)
    memory.fill(0xA5)
    back = DecompressBatch(srcs, pages=list(memory) if pages == "rows" else memory)
    engine.decompress(back)
    assert np.flatnonzero(back.errors == -errno.EBADMSG).tolist() == bad
    assert np.flatnonzero(back.errors).tolist() == bad
    expected[bad] = 0xA5
    np.testing.assert_array_equal(memory, expected)


@pytest.mark.slow
def test_lanes_are_given_the_largest_first(tmp_path: Path) -> None:
    codec = RecordingCodec(str(tmp_path / "log"))
    expected = pages_of_many_sizes(seed=4)
    with Engine(codec, backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        back = DecompressBatch(compressed(engine, expected).outputs())
        engine.decompress(back)
        check_restored(back, expected)
        (worker,) = engine.worker_pids
    lengths = [length for pid, what, length in codec.calls() if (pid, what) == (worker, "restore")]
    assert len(lengths) > 10
    assert lengths[0] >= sorted(back.slens.tolist())[-3]
    # As far as 1/256 of the longest that a source can be.
    finest = 2 * PAGE // 256
    assert all(later < earlier + finest for earlier, later in pairwise(lengths))
