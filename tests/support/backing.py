"""Objects of a backing file, as a store has them: written and committed, freed and settled."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchzip.store.backing.backing_file import BackingFile

NOTHING = np.zeros(0, np.uint64)


def write(file: BackingFile, buffers: Sequence[Any]) -> npt.NDArray[np.uint64]:
    """Write objects for good; their positions."""
    return file.write(buffers).keep()


def free(file: BackingFile, positions: npt.NDArray[np.uint64]) -> None:
    """Give objects up, and what is empty then back."""
    file.zones.free(positions)
    file.settle()
