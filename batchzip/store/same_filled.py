"""Same-filled pages: one word repeated. Only the word is kept, nothing is compressed.

Zeroed memory is the usual case and often a quarter of a process. Comparing every page in full would
read all of it once more, so the first and the last word are compared before: nearly all but the
same-filled ones fail that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchzip.buffers import Bytes

WORD_BYTES = 8

_MIX = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ divided by the golden ratio: each bit of a word reaches the upper half of the product."""


def find_same_filled(pages: Bytes) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64]]:
    """Find the rows of `pages` (n, page_size) that repeat one word throughout, and those words.

    Rows and words are of one reading of a page, even while its owner writes to it.
    """
    words = pages.view(np.uint64)
    rows = (words[:, 0] == words[:, -1]).nonzero()[0]
    if not len(rows):
        return rows, words[:0, 0]
    candidates = words[rows]
    same = (candidates == candidates[:, :1]).all(axis=1)
    return rows[same], candidates[same, 0]


def check_words(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Give each word a checksum of 32 bits: one half of an entry does not pass for another's."""
    return (words * _MIX) >> np.uint64(32)


def check_word(word: int) -> int:
    """Give one word its checksum."""
    return (word * int(_MIX) & 0xFFFFFFFFFFFFFFFF) >> 32


def fill(word: int, page_size: int) -> bytes:
    """Make a page that repeats `word`."""
    return word.to_bytes(WORD_BYTES, "little") * (page_size // WORD_BYTES)
