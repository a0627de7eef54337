"""Targets: what the coders of each codec are given."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from support.store_pages import noise, text, word

from batchzip import train_dictionary
from batchzip.codecs.brotli import Brotli
from batchzip.codecs.deflate import Deflate
from batchzip.codecs.lz4 import Lz4
from batchzip.codecs.lz4hc import Lz4hc
from batchzip.codecs.shuffled import Shuffled
from batchzip.codecs.snappy import Snappy
from batchzip.codecs.verified import Verified
from batchzip.codecs.zstd import Zstd
from batchzip.core.coder import Coder
from batchzip.errors import PageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.fuzzing import Target

    from batchzip.codecs.codec import Codec

SIZES = 512, 4096


def codecs() -> list[Codec]:
    dictionary = train_dictionary([text(seed) for seed in range(100)], size=4096)
    return [
        Lz4(),
        Zstd(level=1),
        Zstd(level=1, dictionary=dictionary),
        Lz4hc(),
        Shuffled(Lz4(), 2),
        Shuffled(Lz4(), 8, floats=True),
        Shuffled(Zstd(level=1), 4),
        Verified(Lz4()),
        Deflate(),
        Snappy(),
        Brotli(),
    ]


class _Coders:
    """The first byte of an input chooses a coder, the rest is what the coder is given."""

    def __init__(self) -> None:
        self._coders = [
            (Coder(codec, size), size, bytes([at]))
            for at, (size, codec) in enumerate(
                (size, codec) for size in SIZES for codec in codecs()
            )
        ]

    def close(self) -> None:
        self._coders.clear()


class Restore(_Coders):
    """Any bytes are restored to exactly a page, or refused."""

    def __call__(self, data: bytes) -> None:
        coder, size, _ = self._coders[(data[0] if data else 0) % len(self._coders)]
        try:
            page = coder.decompress(data[1:])
        except PageError as error:
            assert error.errno in {-errno.EBADMSG, -errno.EINVAL}, error
        else:
            assert len(page) == size

    def seeds(self) -> Iterator[bytes]:
        for coder, size, number in self._coders:
            for make in (text, word, noise):
                yield number + coder.compress(make(1, size))


class Compress(_Coders):
    """Every page comes back unchanged, and buffers of other sizes are refused."""

    def __call__(self, data: bytes) -> None:
        coder, size, _ = self._coders[(data[0] if data else 0) % len(self._coders)]
        given = data[1:]
        if len(given) != size:
            try:
                coder.compress(given)
            except PageError as error:
                assert error.errno == -errno.EINVAL, error
            else:
                raise AssertionError(f"{len(given)} bytes were taken for a page of {size}")
            given = (given or b"x") * (size // max(1, len(given)) + 1)
        page = given[:size]
        assert coder.decompress(coder.compress(page)) == page

    def seeds(self) -> Iterator[bytes]:
        for _, size, number in self._coders:
            yield number + b"page"
            yield number + text(1, size)
            yield number + noise(1, size)


TARGETS: dict[str, type[Target]] = {"restore": Restore, "compress": Compress}
