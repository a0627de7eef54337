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


def find_same_filled(pages: Bytes) -> npt.NDArray[np.intp]:
    """Rows of `pages`, an (n, page_size) array, that repeat one word throughout."""
    words = pages.view(np.uint64)
    rows = (words[:, 0] == words[:, -1]).nonzero()[0]
    if not len(rows):
        return rows
    candidates = words[rows]
    same = (candidates == candidates[:, :1]).all(axis=1)
    filled: npt.NDArray[np.intp] = rows[same]
    return filled


def first_words(pages: Bytes, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
    """Take the first word of each of these rows."""
    words: npt.NDArray[np.uint64] = pages.view(np.uint64)[rows, 0]
    return words


def fill(word: int, page_size: int) -> bytes:
    """Make a page that repeats `word`."""
    return word.to_bytes(WORD_BYTES, "little") * (page_size // WORD_BYTES)
