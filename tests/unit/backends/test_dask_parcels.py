"""Parcels of the dask backend: what travels, and how answers are read, without a cluster."""

from __future__ import annotations

import errno
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributed.protocol import pickle

from batchzip import BackendUnavailable, CompressBatch, DecompressBatch, Engine
from batchzip.codecs import make_codec
from batchzip_dask.flight import Flight, Parcel
from batchzip_dask.task_pages import Outcome, as_task

if TYPE_CHECKING:
    from batchzip.batch import Batch

SIZE = 4096
CODEC = pickle.dumps(make_codec("lz4"))
PAGES = [(b"page %d, " % number * 600)[:SIZE] for number in range(5)]


def flight(batch: Batch) -> Flight:
    return Flight(SimpleNamespace(batch=batch, pages=len(batch)))  # type: ignore[arg-type]


def counters() -> tuple[Counter[str], Counter[str]]:
    return Counter(), Counter()


def compressed(pages: list[bytes]) -> list[bytes]:
    with Engine("lz4", backend="sequential") as engine:
        return [engine.compress_page(page) for page in pages]


def travel(parcel: Parcel) -> Outcome:
    """Do a parcel as a worker does: pickled, run, and its outcome pickled back."""
    task = pickle.loads(pickle.dumps(as_task(parcel.pack(CODEC))))
    outcome = pickle.loads(pickle.dumps(task()))
    assert isinstance(outcome, Outcome)
    assert outcome.busy_s > 0
    return outcome


def test_pages_of_several_requests_travel_together_and_come_back_to_their_own() -> None:
    sources = compressed(PAGES[3:])
    batches: list[Any] = [
        CompressBatch(PAGES[:2]),
        CompressBatch(PAGES[2:3]),
        DecompressBatch(sources),
    ]
    flights = [flight(batch) for batch in batches]
    parcel = Parcel([(each, each.cut(10)) for each in flights])
    assert parcel.pages == 5
    assert [group.pages for group in parcel.pack(CODEC).groups] == [3, 2]
    worked = counters()
    parcel.accept(travel(parcel), worked)
    assert [bytes(output) for batch in batches[:2] for output in batch.outputs()] == compressed(
        PAGES[:3]
    )
    assert batches[2].pages.tobytes() == b"".join(PAGES[3:])
    assert [each.undone for each in flights] == [0, 0, 0]
    one, other = worked
    stored = sum(map(len, compressed(PAGES[:3])))
    assert one == {"pages": 3, "bytes_in": 3 * SIZE, "bytes_out": stored}
    assert other == {"pages": 2, "bytes_in": sum(map(len, sources)), "bytes_out": 2 * SIZE}


def test_pages_of_the_same_kind_that_follow_each_other_are_one_group() -> None:
    sources = compressed(PAGES[:4])
    batches: list[Any] = [
        CompressBatch(PAGES[:1]),
        DecompressBatch(sources[:2]),
        DecompressBatch(sources[2:]),
        CompressBatch(PAGES[1:3]),
    ]
    flights = [flight(batch) for batch in batches]
    parcel = Parcel([(each, each.cut(10)) for each in flights])
    groups = parcel.pack(CODEC).groups
    assert [(group.operation, group.pages) for group in groups] == [
        (CompressBatch.operation, 1),
        (DecompressBatch.operation, 4),
        (CompressBatch.operation, 2),
    ]
    parcel.accept(travel(parcel), counters())
    assert batches[2].pages.tobytes() == b"".join(PAGES[2:4])


def test_a_page_that_fails_counts_no_bytes_and_hides_no_other() -> None:
    good, bad = compressed(PAGES[:1])[0], b"\xff" * 100
    batch = DecompressBatch([good, bad, good])
    own, worked = flight(batch), counters()
    parcel = Parcel([(own, own.cut(3))])
    parcel.accept(travel(parcel), worked)
    assert batch.errors.tolist() == [0, -errno.EBADMSG, 0]
    assert batch.pages[[0, 2]].tobytes() == PAGES[0] * 2
    assert worked[DecompressBatch.operation] == {
        "pages": 3,
        "bytes_in": 2 * len(good) + len(bad),
        "bytes_out": 2 * SIZE,
    }
    assert not worked[CompressBatch.operation]


def test_pages_are_cut_off_until_none_is_left() -> None:
    own = flight(CompressBatch(PAGES))
    assert own.left == own.undone == 5
    assert list(own.cut(2)) == [0, 1]
    assert own.left == 3
    assert list(own.cut(10)) == [2, 3, 4]
    assert own.left == 0
    assert list(own.cut(1)) == []
    assert own.undone == 5


def test_giving_up_fails_the_pages_left_and_keeps_finished_ones() -> None:
    batch = CompressBatch(PAGES)
    own = flight(batch)
    first = Parcel([(own, own.cut(2))])
    first.accept(travel(first), counters())
    own.fail(own.cut(1), -errno.EIO)
    assert own.undone == 2
    own.give_up(-errno.ETIMEDOUT)
    assert own.left == 0
    assert batch.errors.tolist() == [0, 0, -errno.EIO, -errno.ETIMEDOUT, -errno.ETIMEDOUT]
    assert [bytes(output) for output in batch.outputs()[:2]] == compressed(PAGES[:2])


def test_nothing_is_written_to_a_request_that_is_over() -> None:
    batch = CompressBatch(PAGES[2:4])
    over, live = flight(CompressBatch(PAGES[:2])), flight(batch)
    parcel = Parcel([(over, over.cut(2)), (live, live.cut(2))])
    outcome = travel(parcel)
    over.over = True
    assert [each for each, _ in parcel.live_parts] == [live]
    worked = counters()
    parcel.accept(outcome, worked)
    assert over.undone == 2
    assert not over.request.batch.dlens.any()
    assert live.undone == 0
    assert [bytes(output) for output in batch.outputs()] == compressed(PAGES[2:4])
    assert worked[CompressBatch.operation]["pages"] == 2


@pytest.mark.parametrize("results", [[], [5], [5, 5, 5]])
def test_another_number_of_results_is_refused(results: list[int]) -> None:
    own = flight(CompressBatch(PAGES[:2]))
    parcel = Parcel([(own, own.cut(2))])
    outcome = Outcome(np.array(results, np.int32), np.zeros(20, np.uint8), 0.1)
    with pytest.raises(BackendUnavailable, match=f"{len(results)} results for 2 pages"):
        parcel.accept(outcome, counters())
    assert own.undone == 2


@pytest.mark.parametrize("results", [[10, 11], [1 << 20, 1], [0, 20]])
def test_lengths_that_cannot_be_right_are_refused(results: list[int]) -> None:
    own = flight(CompressBatch(PAGES[:2]))
    parcel = Parcel([(own, own.cut(2))])
    outcome = Outcome(np.array(results, np.int32), np.zeros(20, np.uint8), 0.1)
    with pytest.raises(BackendUnavailable, match="do not fit its data"):
        parcel.accept(outcome, counters())
    assert own.undone == 2
