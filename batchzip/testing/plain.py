"""The reference for every backend: the codec called directly, page by page. Also test pages."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from batchzip.batch import CompressBatch, DecompressBatch
from batchzip.codecs.dictionary import train_dictionary
from batchzip.codecs.shuffled import Shuffled
from batchzip.codecs.zstd import Zstd
from batchzip.errors import PageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchzip.arguments.buffers import Bytes
    from batchzip.codecs import Codec
    from batchzip.engine import Engine

PAGE = 4096
SLACK_S = 60.0
"""Seconds after which a test counts as hung. No test measures time."""


def make_pages(count: int, seed: int = 0, page_size: int = PAGE) -> Bytes:
    """Return mixed pages: some compress to a third, some to almost nothing, some not at all."""
    rng = np.random.default_rng(seed)
    pages = rng.integers(0, 6, (count, page_size), np.uint8)
    pages[1::5] = (np.arange(count) % 256)[1::5, None]
    pages[2::5] = rng.integers(0, 256, pages[2::5].shape, np.uint8)
    return pages


def make_layered_codec() -> Codec:
    """Return a codec with a dictionary and a filter: the most complex case."""
    dictionary = train_dictionary(make_pages(60, seed=9), size=4096, level=1, shuffle="f4")
    return Shuffled(Zstd(level=1, dictionary=dictionary), 4, floats=True)


class Plain:
    """The engine's codec, called directly: every backend must have the same results."""

    def __init__(self, engine: Engine) -> None:
        self.page_size = engine.page_size
        self._compress = engine.codec.compressor(engine.page_size)
        self._decompress = engine.codec.decompressor(engine.page_size)

    def compress(self, pages: Sequence[Any] | Bytes) -> list[bytes]:
        """Return the output of each page; b"" for one of another length."""
        size = self.page_size
        return [self._compress(bytes(page)) if len(page) == size else b"" for page in pages]

    def restore(self, src: bytes) -> bytes | None:
        """Return the restored page, or None if the source is not a valid one."""
        try:
            page = self._decompress(src)
        except Exception:  # noqa: BLE001 - a codec may raise anything
            return None
        return page if len(page) == self.page_size and len(src) <= 2 * self.page_size else None


def check_compressed(engine: Engine, batch: CompressBatch, pages: Sequence[Any] | Bytes) -> None:
    """Assert that each output equals the codec's own, or its error is -ENOSPC if that is too long.

    If the codec is not deterministic, assert that it restores the page from the output.
    """
    plain = Plain(engine)
    expected = plain.compress(pages)
    if not engine.codec.deterministic:
        for index, page in enumerate(pages):
            if not batch.errors[index]:
                output = bytes(batch.output(index))
                assert plain.restore(output) == bytes(page), index
                expected[index] = output
    fits = [len(output) <= batch.capacity for output in expected]
    assert batch.errors.tolist() == [0 if fit else -errno.ENOSPC for fit in fits]
    assert batch.dlens.tolist() == [
        len(o) if fit else 0 for o, fit in zip(expected, fits, strict=True)
    ]
    for index, output in enumerate(expected):
        if fits[index]:
            assert batch.output(index) == output, index
            assert bytes(batch.dsts[index, : len(output)]) == output, index
        else:
            with pytest.raises(PageError):
                batch.output(index)


def check_restored(batch: DecompressBatch, pages: Bytes) -> None:
    """Assert that every page of `batch` was restored."""
    assert not batch.errors.any()
    assert (batch.dlens == batch.page_size).all()
    np.testing.assert_array_equal(np.asarray(batch.pages), pages)


def check_round_trip(engine: Engine, pages: Bytes) -> None:
    """Compress and decompress a batch, and check both results."""
    batch = CompressBatch(pages)
    engine.compress(batch)
    check_compressed(engine, batch, pages)
    back = DecompressBatch(batch.outputs(), page_size=engine.page_size)
    engine.decompress(back)
    check_restored(back, pages)


def in_threads(count: int, work: Callable[[int], None], *, limit_s: float = SLACK_S) -> None:
    """Run work(0) … work(count - 1) in threads at the same time. Raise the first failure."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as failure:  # noqa: BLE001 - raised in the test's thread
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(limit_s)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]
