"""Descriptors at their bounds: those that are used again, and sources of up to two pages."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from batchzip import Codec, CompressBatch, DecompressBatch, Engine

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode

PAGES = np.frombuffer(b"".join(b"%4d" % number * 1024 for number in range(4)), np.uint8)


@dataclass(frozen=True, slots=True)
class Doubled(Codec):
    """A codec whose output is the page, twice."""

    name: ClassVar[str] = "doubled"

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - any
        def compress(page: Flat) -> bytes:
            return bytes(page) * 2

        return compress

    def decompressor(self, page_size: int) -> Transcode:
        def decompress(source: Flat) -> bytes:
            return bytes(source[:page_size])

        return decompress


def test_after_a_refill_outputs_are_those_of_the_new_pages(engine: Engine) -> None:
    pages = PAGES.reshape(4, 4096)
    batch = CompressBatch(pages)
    engine.compress(batch)
    assert [engine.decompress_page(bytes(output)) for output in batch.outputs()] == [
        page.tobytes() for page in pages
    ]
    batch.refill(pages[::-1][:2].copy())
    assert len(batch) == len(batch.outputs()) == 2
    engine.compress(batch)
    assert [engine.decompress_page(bytes(output)) for output in batch.outputs()] == [
        pages[3].tobytes(),
        pages[2].tobytes(),
    ]


@pytest.mark.parametrize(("extra", "code"), [(0, 0), (1, -errno.EBADMSG)])
def test_a_source_of_up_to_two_pages_reaches_the_codec(extra: int, code: int) -> None:
    with Engine(Doubled(), backend="sequential") as engine:
        page = bytes(PAGES[:4096])
        batch = DecompressBatch([page * 2 + bytes(extra)])
        engine.decompress(batch)
        assert batch.errors.tolist() == [code]
        if not code:
            assert batch.pages.tobytes() == page


def test_a_source_of_more_than_two_pages_is_handed_to_nobody() -> None:
    lengths = [0, 1, 8191, 8192, 8193]
    batch = DecompressBatch([bytes(length) for length in lengths])
    given = [len(source) for source in batch.inputs(range(len(lengths)))]
    assert given == [0, 1, 8191, 8192, 0]
