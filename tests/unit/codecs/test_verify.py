"""With verify=True, a page that would not come back is -EIO wherever it was compressed."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.codecs.spoiling import MARKS, SpoilingCodec

from batchzip import CompressBatch, DecompressBatch, Engine, PageError, StoreRejected, SwapStore
from batchzip.codecs.verified import Verified
from batchzip.testing.plain import PAGE, SLACK_S, check_restored, make_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.arguments.buffers import Bytes

pytestmark = pytest.mark.usefixtures("always_hand_over")


BACKENDS: list[dict[str, Any]] = [
    {"backend": "sequential"},
    {"backend": "workers", "workers": 1},
]


@pytest.fixture(scope="module", params=BACKENDS, ids=["sequential", "workers"])
def verifying(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(SpoilingCodec(acceleration=7), verify=True, **request.param) as engine:
        assert engine.wait_ready(SLACK_S)
        engine.submit(CompressBatch(make_pages(1))).wait(SLACK_S)  # what starts with the first
        yield engine


def pages_spoilt_at(indices: range | list[int], count: int = 120) -> Bytes:
    pages = make_pages(count)
    for number, index in enumerate(indices):
        pages[index, :4] = np.frombuffer(MARKS[number % len(MARKS)], np.uint8)
    return pages


# With one worker, even pages are the caller's and odd ones the worker's, as far as a region goes.
@pytest.mark.parametrize(
    "spoilt",
    [range(0), range(0, 60, 4), range(1, 60, 4), range(120), [0, 119]],
    ids=["none", "the caller's", "the worker's", "all", "first and last"],
)
@pytest.mark.parametrize("submitted", [False, True])
@pytest.mark.parametrize("in_arena", [False, True])
def test_a_page_that_would_not_come_back_is_eio_and_no_other(
    verifying: Engine, spoilt: range | list[int], submitted: bool, in_arena: bool
) -> None:
    pages = pages_spoilt_at(spoilt)
    dsts = None
    if in_arena:
        private, pages = pages, verifying.arena(120)
        pages[:] = private
        dsts = verifying.arena(120, 2 * PAGE)
    batch = CompressBatch(pages, dsts=dsts)
    if submitted:
        verifying.submit(batch).wait(SLACK_S)
    else:
        verifying.compress(batch)
    assert np.flatnonzero(batch.errors == -errno.EIO).tolist() == list(spoilt)
    assert np.flatnonzero(batch.errors).tolist() == list(spoilt)
    assert np.flatnonzero(batch.dlens == 0).tolist() == list(spoilt)
    good = [index for index in range(120) if index not in spoilt]
    if good:
        back = DecompressBatch([batch.output(index) for index in good])
        verifying.decompress(back)
        check_restored(back, pages[good])


def test_without_it_nobody_notices() -> None:
    with Engine(SpoilingCodec(), backend="sequential") as engine:
        batch = CompressBatch(pages_spoilt_at(range(120)))
        engine.compress(batch)
        assert not batch.errors.any()


def test_a_single_page_is_verified_too(verifying: Engine) -> None:
    pages = pages_spoilt_at([0, 1, 2])
    for page in pages[:3]:
        with pytest.raises(PageError) as failure:
            verifying.compress_page(page)
        assert failure.value.errno == -errno.EIO
    assert verifying.decompress_page(verifying.compress_page(pages[3])) == pages[3].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", BACKENDS, ids=["sequential", "workers"])
@pytest.mark.parametrize(
    ("algorithm", "parameters"),
    [
        ("lz4", {}),
        ("lz4", {"acceleration": 50}),
        ("lz4", {"high_compression": 9}),
        ("zstd", {"level": 1}),
        ("zstd", {"level": 19}),
    ],
)
def test_the_parameters_and_outputs_are_those_of_the_codec(
    how: dict[str, Any], algorithm: str, parameters: dict[str, Any]
) -> None:
    pages = make_pages(60)
    batches = [CompressBatch(pages), CompressBatch(pages)]
    for batch, verify in zip(batches, (False, True), strict=True):
        with Engine(algorithm, verify=verify, **how, **parameters) as engine:
            assert engine.wait_ready(SLACK_S)
            engine.compress(batch)
            assert isinstance(engine.codec, Verified) is verify
            for name, value in parameters.items():
                assert f"{name}={value}" in repr(engine)
    assert [bytes(output) for output in batches[0].outputs()] == [
        bytes(output) for output in batches[1].outputs()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [512, 2 << 20])
def test_pages_of_every_size_are_verified(page_size: int) -> None:
    pages = make_pages(5, page_size=page_size)
    pages[3, :4] = np.frombuffer(MARKS[0], np.uint8)
    with Engine(
        SpoilingCodec(), verify=True, page_size=page_size, backend="workers", workers=1
    ) as engine:
        assert engine.wait_ready(SLACK_S)
        batch = CompressBatch(pages)
        engine.compress(batch)
        assert batch.errors.tolist() == [0, 0, 0, -errno.EIO, 0]


def test_a_store_on_it_keeps_no_page_that_would_not_come_back() -> None:
    with (
        Engine(SpoilingCodec(), verify=True, backend="sequential") as engine,
        SwapStore(engine) as store,
    ):
        pages = make_pages(4)
        store.store(0, pages)
        np.testing.assert_array_equal(store.load_many(range(4)), pages)
        pages[2, :4] = np.frombuffer(MARKS[1], np.uint8)
        with pytest.raises(StoreRejected, match="compress") as rejected:
            store.store(0, pages)
        assert rejected.value.errors == [0, 0, -errno.EIO, 0]
        assert len(store) == 0
