"""What a worker reports is checked. If it is impossible, its pages are done again."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.fake_lane import FakeLane, Results

from batchzip import CompressBatch, DecompressBatch
from batchzip.codecs.lz4 import Lz4
from batchzip.codecs.verified import Verified
from batchzip.core.coder import Coders
from batchzip.core.division import DONE, WAITING, Divider
from batchzip.testing.plain import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.arguments.buffers import Bytes
    from batchzip.batch import Batch
    from batchzip.codecs import Codec
    from batchzip.core.division import Job

    Spoil = Callable[[Results], object]

COUNT = 16
NEVER_S = 1000.0


def some_pages() -> Bytes:
    return np.random.default_rng(1).integers(0, 6, (COUNT, PAGE), np.uint8)


def compressed() -> list[bytes]:
    compress = Lz4().compressor(PAGE)
    return [compress(page.tobytes()) for page in some_pages()]


def make_divider(codec: Codec, *, isolate: bool = False) -> tuple[Divider, Coders]:
    coders = Coders(codec, PAGE)
    divider = Divider(coders, isolate=isolate, verify=codec.plan().verify)
    divider.generous = True
    return divider, coders


def set_word(name: str, number: int, value: int) -> Spoil:
    return lambda results: getattr(results, name).__setitem__(number, value)


def flip(results: Results) -> None:
    results.outputs = bytes([results.outputs[0], results.outputs[1] ^ 1, *results.outputs[2:]])


def fail_with_length(results: Results) -> None:
    results.errors[2] = -errno.EIO


LIES: dict[str, Spoil] = {
    "a length of 0": set_word("dlens", 3, 0),
    "a length over the capacity": set_word("dlens", 3, 2 * PAGE + 1),
    "a length beyond all": set_word("dlens", 0, 2**32 - 1),
    "an error above zero": set_word("errors", 3, 5),
    "an error that is none": set_word("errors", 3, -5000),
    "an error with a length": fail_with_length,
}


def check(batch: Batch) -> None:
    assert not batch.errors.any()
    if isinstance(batch, DecompressBatch):
        np.testing.assert_array_equal(batch.pages, some_pages())
    else:
        assert isinstance(batch, CompressBatch)
        assert batch.outputs() == compressed()


def make_batch(kind: str) -> Batch:
    return CompressBatch(some_pages()) if kind == "compress" else DecompressBatch(compressed())


def finish(job: Job, lane: FakeLane, spoil: Spoil = lambda _: None) -> None:
    """Run a job with a lane that does what it is given."""
    while job.run(may_wait=False) != DONE:
        if lane.has_work:
            lane.do_share(spoil)


@pytest.mark.parametrize("kind", ["compress", "decompress"])
def test_a_lane_that_tells_the_truth_is_believed(kind: str) -> None:
    codec = Verified(Lz4())
    divider, coders = make_divider(codec)
    lane, batch = FakeLane(codec, PAGE), make_batch(kind)
    job = divider.start(batch.pointers, (lane.ring,))
    assert lane.do_share() == COUNT // 2
    finish(job, lane)
    check(batch)
    assert not lane.ring.dead
    assert coders.totals(batch.operation)["fallbacks"] == 0
    assert coders.totals(batch.operation)["pages"] < COUNT


@pytest.mark.parametrize("kind", ["compress", "decompress"])
@pytest.mark.parametrize("lie", LIES)
def test_pages_of_a_lane_that_lies_are_done_by_the_caller(kind: str, lie: str) -> None:
    divider, coders = make_divider(Lz4())
    lane, batch = FakeLane(Lz4(), PAGE), make_batch(kind)
    job = divider.start(batch.pointers, (lane.ring,))
    told = lane.do_share(LIES[lie])
    assert job.run(may_wait=False) == WAITING
    assert lane.ring.dead
    assert job.untrusted(NEVER_S) == [lane.ring], "it is killed"
    assert job.run() == DONE
    check(batch)
    assert coders.totals(batch.operation)["fallbacks"] == told


def test_a_lane_that_says_more_than_it_was_given_is_not_believed() -> None:
    divider, _ = make_divider(Lz4())
    lane, batch = FakeLane(Lz4(), PAGE), make_batch("compress")
    job = divider.start(batch.pointers, (lane.ring,))
    lane.do_share(set_word("dlens", 0, 0), done=77)
    assert job.run(may_wait=False) == WAITING
    assert job.untrusted(NEVER_S) == [lane.ring]
    assert job.run() == DONE
    check(batch)


def test_a_lane_that_says_twice_that_a_share_is_done_is_not_believed() -> None:
    divider, _ = make_divider(Lz4())
    lane, batch = FakeLane(Lz4(), PAGE), make_batch("compress")
    job = divider.start(batch.pointers, (lane.ring,))
    job.run(0, may_wait=False)
    assert lane.ring.posted == 2
    lane.do_share(done=2)
    while job.run(may_wait=False) != WAITING:
        pass
    assert job.untrusted(NEVER_S) == [lane.ring]
    assert job.run() == DONE
    check(batch)


def test_a_lane_that_takes_every_page_and_does_none_is_found_out() -> None:
    divider, _ = make_divider(Lz4())
    lane, batch = FakeLane(Lz4(), PAGE), make_batch("compress")
    job = divider.start(batch.pointers, (lane.ring,))
    lane.begin_share(0, claim=(COUNT // 2, COUNT // 2))
    assert job.run(may_wait=False) == WAITING
    assert job.untrusted(0) == []
    assert job.untrusted(0) == [lane.ring]


CLAIMS = (0, 0), (8, 0), (2, 9), (9, 9), (2**32 - 1, 2**32 - 1), (7, 2**31)


@pytest.mark.parametrize("kind", ["compress", "decompress"])
@pytest.mark.parametrize("claim", [None, *CLAIMS], ids=str)
@pytest.mark.parametrize("results", [None, 0, 2**64 - 1])
@pytest.mark.parametrize("finished", [0, 7, 8])
def test_of_a_lane_that_dies_the_results_are_kept_and_one_page_is_suspected(
    finished: int, results: int | None, claim: tuple[int, int] | None, kind: str
) -> None:
    divider, _ = make_divider(Lz4())
    lane, other, batch = FakeLane(Lz4(), PAGE), FakeLane(Lz4(), PAGE), make_batch(kind)
    job = divider.start(batch.pointers, (lane.ring,))
    assert lane.begin_share(finished, claim=claim, results=results) == 8
    lane.ring.mark_gone()
    assert job.run(may_wait=False) == WAITING or not job.only_lanes
    if results is None and claim is None:
        assert job.only_lanes == (finished < 8)
    elif results is None:  # the claim may say that no page was taken, where one was
        assert job.only_lanes <= 1
    elif claim is None:
        assert job.only_lanes == min(finished + 1, 8)
    job.set_rings((other.ring,))
    finish(job, other)
    check(batch)


def test_pages_of_lanes_of_which_nothing_tells_are_tried_a_few_times_each() -> None:
    divider, coders = make_divider(Lz4(), isolate=True)
    batch = make_batch("compress")
    died = 0
    lane = FakeLane(Lz4(), PAGE)
    job = divider.start(batch.pointers, (lane.ring,))
    while job.run(may_wait=False) != DONE:
        if lane.has_work:
            lane.begin_share(0, claim=(5, 2), results=7)
            lane.ring.mark_gone()
            died += 1
            lane = FakeLane(Lz4(), PAGE)
            job.set_rings((lane.ring,))
    assert (batch.errors == -errno.EOWNERDEAD).all()
    assert died == 1 + 3 * COUNT
    assert coders.totals(0)["pages"] == 0


@pytest.mark.parametrize(
    "spoil", [flip, set_word("hashes", 5, 1)], ids=["the output", "the hash of it"]
)
def test_with_verify_what_changes_behind_the_codec_is_noticed(spoil: Spoil) -> None:
    codec = Verified(Lz4())
    divider, _ = make_divider(codec)
    lane, batch = FakeLane(codec, PAGE), make_batch("compress")
    job = divider.start(batch.pointers, (lane.ring,))
    lane.do_share(spoil)
    assert job.run(may_wait=False) == WAITING
    assert job.untrusted(NEVER_S) == [lane.ring]
    assert job.run() == DONE
    check(batch)


@pytest.mark.parametrize("lie", LIES)
def test_with_isolate_pages_of_a_lane_that_lies_are_done_by_another_and_never_here(
    lie: str,
) -> None:
    divider, coders = make_divider(Lz4(), isolate=True)
    lane, other, batch = FakeLane(Lz4(), PAGE), FakeLane(Lz4(), PAGE), make_batch("compress")
    job = divider.start(batch.pointers, (lane.ring,))
    job.run(may_wait=False)
    lane.do_share(LIES[lie])
    assert job.run(may_wait=False) == WAITING
    assert job.untrusted(NEVER_S) == [lane.ring]
    lane.ring.mark_gone()
    job.set_rings((other.ring,))
    finish(job, other)
    check(batch)
    assert coders.totals(0)["pages"] == 0


def test_with_isolate_pages_that_every_lane_lies_about_get_eownerdead() -> None:
    divider, coders = make_divider(Lz4(), isolate=True)
    batch = make_batch("compress")
    lane = FakeLane(Lz4(), PAGE)
    job = divider.start(batch.pointers, (lane.ring,))
    for _ in range(100):
        if job.run(may_wait=False) == DONE:
            break
        if job.untrusted(NEVER_S):
            lane.ring.mark_gone()
            lane = FakeLane(Lz4(), PAGE)
            job.set_rings((lane.ring,))
        elif lane.has_work:
            lane.do_share(set_word("dlens", 0, 0))
    assert (batch.errors == -errno.EOWNERDEAD).all()
    assert not batch.dlens.any()
    assert coders.totals(0)["pages"] == 0
