"""Dictionaries: what pages have in common, found in samples of them, for `Zstd(dictionary=…)`.

A page of 4 KiB begins with nothing to refer to; a dictionary is that beginning. The finding is
libzstd's (COVER: the segments whose parts occur in most samples).
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
"""Bytes. Ratios of 4 KiB pages not trained on, level 1, without and with 4, 16, 64, 256 KiB: Python
source 2.79; 2.98, 3.05, 3.11, 3.12; JSON text 5.07; 5.66, 5.77, 6.03, 6.25. Restoring was a fifth
faster with 64; that stays in the nearer caches, beside the tables made of it."""

MIN_SIZE = 1 << 10
"""Bytes; the tables alone take some 150."""

_SEGMENT, _PART = 256, 8
"""Bytes of what COVER puts together and compares (its k and d). k 1024 gave up to 1 % less, and having
COVER try several, for four times as long, no more."""

_LEAST_SAMPLES = 8
"""libzstd refuses fewer than five."""

_LEAST_TIMES = 4
"""Sample bytes for one of the dictionary. On source, 16 times gives 92 % of what 32 times gains over no
dictionary, 4 times 72 %, and 1 loses."""

_SHORT = 512
"""Bytes of a sample that may teach something though it does not shrink alone."""

SAMPLE_TIMES = 100
"""As above; zstd's own advice. More takes longer (64 KiB: 0.1 s) and brings nothing."""


def train_dictionary(
    pages: Buffer | Sequence[Buffer],
    *,
    size: int = DEFAULT_SIZE,
    level: int = DEFAULT_LEVEL,
    shuffle: int | str | None = None,
) -> bytes:
    """Make a dictionary of at most `size` bytes out of sample pages; the same ones give the same.

    `pages` is an (n, page_size) uint8 array or a sequence of buffers, only read; of many, evenly chosen
    ones are used. `level` and `shuffle` are those of the engine it is for:

        Engine("zstd", level=1, dictionary=train_dictionary(pages, level=1))

    Raises BadArgument where the pages are too few or too much alike, or noise. Thread-safe; takes
    a tenth of a second and as much memory as the samples used, up to 100 times `size`.

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
            f"{_LEAST_TIMES * size} bytes in all that differ and can be compressed; of the "
            f"{len(given)} given, {len(samples)} do, with {found} bytes: give more, or a smaller size"
        )
    try:
        trained = zstandard.train_dictionary(size, list(samples), k=_SEGMENT, d=_PART, level=level)
    except zstandard.ZstdError as error:
        raise BadArgument(f"these {len(samples)} pages give no dictionary: {error}") from None
    return trained.as_bytes()


def _usable(given: Sequence[Flat], size: int, shuffle: int | str | None) -> list[bytes]:
    """Choose samples, evenly and no more than needed, and drop what teaches nothing.

    A page that a codec does not make smaller is noise. Of a short one that cannot be said: alone it has
    little that repeats itself.
    """
    step = max(1, sum(map(len, given)) // (SAMPLE_TIMES * size))
    pages = {bytes(page): None for page in given[::step]}
    shuffled = [page if shuffle is None else shuffle_bytes(page, shuffle) for page in pages]
    compress = zstandard.ZstdCompressor(level=1).compress
    return [page for page in shuffled if len(page) < _SHORT or len(compress(page)) < len(page)]
