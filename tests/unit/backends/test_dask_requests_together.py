"""Several requests travel in one task, and each gets what it would get alone."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pytest
from distributed import Client
from support.cluster.commands import other_environment, scheduler_command, worker_command
from support.cluster.fixtures import leaves_nothing_behind, offloading  # noqa: F401 - used by every test
from support.cluster.process import dask_cluster
from support.codecs.faulty import KILL, KILL_ONCE, FaultyCodec

from batchzip import (
    BackendUnavailable,
    CompressBatch,
    DecompressBatch,
    Engine,
    RequestCancelled,
)
from batchzip.testing.plain import (
    SLACK_S,
    Plain,
    in_threads,
    make_pages,
)
from batchzip_dask import DaskBackend
from batchzip_dask.flight import Parcel

if TYPE_CHECKING:
    from pathlib import Path

    from batchzip.batch import Batch
    from batchzip.request import Request


pytestmark = pytest.mark.slow


def marked(pages: np.ndarray, mark: bytes, index: int) -> np.ndarray:
    pages[index, :4] = np.frombuffer(mark, np.uint8)
    return pages


# Several requests in one task.


@pytest.fixture
def parcels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each task had pages of, in the order they were handed out."""
    sizes: list[int] = []
    pack = Parcel.pack

    def note(parcel: Parcel, codec: bytes) -> object:
        sizes.append(len(parcel.parts))
        return pack(parcel, codec)

    monkeypatch.setattr(Parcel, "pack", note)
    return sizes


def test_a_batch_alone_goes_at_once_and_many_go_together(cluster: str, parcels: list[int]) -> None:
    with Engine("lz4", backend=DaskBackend(cluster, local="never")) as engine:
        pages = make_pages(16)
        engine.compress(CompressBatch(pages))
        assert parcels == [1]
        requests = [engine.submit(CompressBatch(pages)) for _ in range(200)]
        expected = Plain(engine).compress(pages)
        for request in requests:
            assert request.wait(SLACK_S).outputs() == expected
        assert sum(parcels) < 300, "few were divided"
        assert len(parcels) < 60
        done = engine.statistics.compress
        assert (done.batches, done.divided, done.pages) == (201, 201, 201 * 16)
        assert done.bytes_out == 201 * sum(map(len, expected))


class Submitted(NamedTuple):
    """A request, and what must become of it."""

    request: Request[Any]
    expected: Batch
    """The same batch, done by the sequential backend."""
    may_end: bool
    """Whether it has a deadline, or is cancelled."""


def submit_some(engine: Engine, plain: Engine, seed: int) -> list[Submitted]:
    """Submit batches of all kinds, some of which end early."""
    rng = random.Random(seed)
    submitted = []
    for number in range(30):
        pages = [bytes(page) for page in make_pages(rng.choice([2, 3, 16, 40, 700]), seed=number)]
        capacity = rng.choice([2 * 4096, 2 * 4096, 1500, 3])
        if rng.random() < 0.3:
            pages[rng.randrange(len(pages))] = b"of another size"
        twins: list[Batch] = [
            CompressBatch(pages, page_size=4096, capacity=capacity) for _ in range(2)
        ]
        if rng.random() < 0.5:
            packed = CompressBatch(make_pages(len(pages), seed=number))
            plain.compress(packed)
            srcs = [bytes(output) for output in packed.outputs()]
            for bad in (b"", b"bad", bytes(9000)):
                srcs[rng.randrange(len(srcs))] = bad
            twins = [DecompressBatch(srcs) for _ in range(2)]
        plain.run(twins[1])
        ends = rng.random() < 0.3
        deadline_s = rng.choice([0, 0.005, 0.02]) if ends and rng.random() < 0.6 else None
        request = engine.submit(twins[0], deadline_s=deadline_s)
        if ends and deadline_s is None:
            request.cancel()
        submitted.append(Submitted(request, twins[1], ends))
    return submitted


def outputs_of(batch: Batch) -> list[bytes]:
    if isinstance(batch, DecompressBatch):
        return [bytes(page) for page in batch.pages]
    assert isinstance(batch, CompressBatch)
    return [bytes(output) for output in batch.outputs()]


@pytest.mark.parametrize("local", ["never", "auto"])
@pytest.mark.parametrize("seed", range(4))
def test_batches_that_travel_together_match_the_sequential_backend(
    cluster: str, seed: int, local: Literal["never", "auto"]
) -> None:
    ended: list[Submitted] = []

    def work(thread: int) -> None:
        ended.extend(submit_some(engine, plain, 10 * seed + thread))

    with (
        Engine("lz4", backend=DaskBackend(cluster, local=local)) as engine,
        Engine("lz4", backend="sequential") as plain,
    ):
        in_threads(3, work)
        for request, expected, may_end in ended:
            with contextlib.suppress(RequestCancelled):
                request.wait(SLACK_S)
            batch = request.batch
            done = ~np.isin(batch.errors, [-errno.ETIMEDOUT, -errno.ECANCELED])
            assert may_end or done.all()
            np.testing.assert_array_equal(batch.errors[done], expected.errors[done])
            np.testing.assert_array_equal(batch.dlens[done], expected.dlens[done])
            assert not batch.dlens[~done].any()
            results = zip(outputs_of(batch), outputs_of(expected), batch.errors, strict=True)
            assert all(output == other for output, other, error in results if not error)
        statistics = engine.statistics
    for operation, kind in ((CompressBatch, "compress"), (DecompressBatch, "decompress")):
        certain = [one.expected for one in ended if not one.may_end]
        least = sum(len(batch) for batch in certain if isinstance(batch, operation))
        assert getattr(statistics, kind).pages >= least


def test_a_worker_killed_with_pages_of_many_batches_changes_no_result(
    tmp_path: Path, parcels: list[int]
) -> None:
    flag = tmp_path / "flag"
    codec = FaultyCodec(os.getpid(), str(flag))
    with (
        dask_cluster(2) as address,
        Engine(codec, backend=DaskBackend(address, local="never")) as engine,
    ):
        engine.compress(CompressBatch(make_pages(4)))
        flag.touch()
        work = [make_pages(16, seed=seed) for seed in range(100)]
        marked(work[50], KILL_ONCE, 7)
        requests = [engine.submit(CompressBatch(pages)) for pages in work]
        plain = Plain(engine)
        for pages, request in zip(work, requests, strict=True):
            assert request.wait(SLACK_S).outputs() == plain.compress(pages)
        assert not flag.exists(), "a worker was killed"
        assert max(parcels) > 1
        assert engine.statistics.compress.pages == 4 + 100 * 16


def test_a_page_that_kills_every_worker_fails_its_own_batch_and_no_other() -> None:
    codec = FaultyCodec(os.getpid())
    with (
        dask_cluster(1, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as address,
        Engine(codec, backend=DaskBackend(address, local="never")) as engine,
    ):
        work = [make_pages(16, seed=seed) for seed in range(20)]
        marked(work[10], KILL, 7)
        requests = [engine.submit(CompressBatch(pages)) for pages in work]
        errors = [set(request.wait(SLACK_S).errors.tolist()) for request in requests]
        assert errors == [{0}] * 10 + [{-errno.EOWNERDEAD}] + [{0}] * 9


# Workers that cannot.


def test_a_worker_without_batchzip_is_named_when_the_engine_opens_and_when_it_joins_later(
    tmp_path: Path,
) -> None:
    with (
        scheduler_command() as address,
        Client(address, set_as_default=False) as client,
        Engine("lz4", backend=DaskBackend(client, local="never")) as engine,
        worker_command(address, "--name", "odd one", **other_environment("missing", tmp_path)),
    ):
        pid = client.submit(os.getpid).result(SLACK_S)
        command = r"pip install 'batchzip\[dask\]==.*(?s:.)*named odd one"
        with pytest.raises(BackendUnavailable, match=command):
            Engine("lz4", backend=DaskBackend(client))
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match=command):
                engine.compress(CompressBatch(make_pages(100)))
        assert client.submit(os.getpid, pure=False).result(SLACK_S) == pid, "it lives on"
