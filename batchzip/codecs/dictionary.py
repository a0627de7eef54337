"""Dictionaries: the common content of pages, trained from samples, for `Zstd(dictionary=…)`.

The first bytes of a 4 KiB page have no earlier data to refer to. A dictionary provides such data.
libzstd trains it (COVER chooses the segments whose parts occur in most samples).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard

from batchzip.arguments.buffers import as_inputs, as_matrix, flat, is_sequence
from batchzip.arguments.checks import as_integer
from batchzip.codecs.shuffled import shuffle_bytes
from batchzip.codecs.zstd import DEFAULT_LEVEL, MAX_DICTIONARY, Zstd
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Buffer, Flat

DEFAULT_SIZE = 64 << 10
"""Default size in bytes. Larger ones compress little better, and no longer fit the nearer caches
together with their tables: see docs/decisions/codecs.md."""

MIN_SIZE = 1 << 10
"""Smallest size in bytes. The entropy tables alone take about 150."""

_SEGMENT, _PART = 256, 8
"""COVER's k and d: bytes of the segments that it collects, and of the parts that it compares."""

_LEAST_SAMPLES = 8
"""Fewest samples. libzstd refuses fewer than five."""

_LEAST_TIMES = 4
"""Fewest bytes of samples per byte of dictionary. With an equal number, a dictionary loses."""

_SHORT = 512
"""Length in bytes below which a sample is used even if it does not shrink by itself."""

SAMPLE_TIMES = 100
"""Most bytes of samples per byte of dictionary, as zstd recommends. More takes longer and gains
nothing."""


def train_dictionary(
    pages: Buffer | Sequence[Buffer],
    *,
    size: int = DEFAULT_SIZE,
    level: int = DEFAULT_LEVEL,
    shuffle: int | str | None = None,
) -> bytes:
    """Train a dictionary of at most `size` bytes from sample pages. Equal pages give equal results.

    `pages` is an (n, page_size) uint8 array or a sequence of buffers, which are only read. If there
    are more than needed, evenly spread ones are used. `level` and `shuffle` are those of the engine
    that will use the dictionary:

        Engine("zstd", level=1, dictionary=train_dictionary(pages, level=1))

    Raise BadArgument if the pages are too few, too similar, or noise. Thread-safe. It takes about a
    tenth of a second, and as much memory as the samples, up to 100 times `size`.

    Examples:
        >>> import random
        >>> import batchzip
        >>> words = [name.encode() for name in sorted(dir(int) + dir(str) + dir(bytes) + dir(dict))]
        >>> draw = random.Random(0).choices
        >>> pages = [b" ".join(draw(words, k=1000))[:4096] for _ in range(256)]
        >>> dictionary = batchzip.train_dictionary(pages[::2], size=4096, level=1)
        >>> with batchzip.Engine("zstd", level=1) as plain:
        ...     without = len(plain.compress_page(pages[1]))
        >>> with batchzip.Engine("zstd", level=1, dictionary=dictionary) as trained:
        ...     len(trained.compress_page(pages[1])) < without
        True
    """
    size = as_integer(size, "size", MIN_SIZE, MAX_DICTIONARY)
    level = Zstd(level).level or DEFAULT_LEVEL
    given: Sequence[Flat]
    if is_sequence(pages):
        given = as_inputs(pages, "pages")
    else:
        given = [flat(row) for row in as_matrix(pages, "pages", rows=None, width=None)]
    samples = _usable(given, size, shuffle)
    found = sum(map(len, samples))
    if len(samples) < _LEAST_SAMPLES or found < _LEAST_TIMES * size:
        raise BadArgument(
            f"a dictionary of {size} bytes needs at least {_LEAST_SAMPLES} pages of at least "
            f"{_LEAST_TIMES * size} bytes in total that differ and can be compressed; of the "
            f"{len(given)} given, {len(samples)} do, with {found} bytes: "
            "give more pages, or a smaller size"
        )
    try:
        trained = zstandard.train_dictionary(size, list(samples), k=_SEGMENT, d=_PART, level=level)
    except zstandard.ZstdError as error:
        raise BadArgument(
            f"no dictionary can be trained from these {len(samples)} pages: {error}"
        ) from None
    return trained.as_bytes()


def _usable(given: Sequence[Flat], size: int, shuffle: int | str | None) -> list[bytes]:
    """Return evenly spread samples, as many as needed, without duplicates and noise.

    A page that does not shrink is noise. A short page may fail to shrink only because it is too
    short to have repeats, so it is kept.
    """
    step = max(1, sum(map(len, given)) // (SAMPLE_TIMES * size))
    pages = {bytes(page): None for page in given[::step]}
    shuffled = [page if shuffle is None else shuffle_bytes(page, shuffle) for page in pages]
    compress = zstandard.ZstdCompressor(level=1).compress
    return [page for page in shuffled if len(page) < _SHORT or len(compress(page)) < len(page)]
