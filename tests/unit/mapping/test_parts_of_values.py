"""Which buffers of a value stay where they are, exactly at the length from which they do."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

from batchzip.mapping.serializers import packer_of

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = 4096


def shares(parts: Sequence[object], array: np.ndarray) -> bool:
    """Tell whether one of the parts lies in the array's own memory."""
    views = [np.frombuffer(part, np.uint8) for part in parts]  # type: ignore[call-overload]
    return any(np.shares_memory(view, array) for view in views)


@pytest.mark.parametrize(("length", "stays"), [(PAGE - 1, False), (PAGE, True), (PAGE + 1, True)])
@pytest.mark.parametrize("serializer", ["numpy", "pickle"])
def test_an_array_of_a_page_is_not_copied(serializer: str, length: int, stays: bool) -> None:
    array = np.arange(length).astype(np.uint8)
    packer = packer_of(serializer, PAGE)
    parts = packer.pack(array)
    assert shares(parts, array) is stays
    restored = packer.unpack([memoryview(bytes(part)) for part in parts])
    assert isinstance(restored, np.ndarray)
    assert restored.dtype == array.dtype
    assert np.array_equal(restored, array)


def test_an_array_that_fits_with_its_head_is_one_part() -> None:
    packer = packer_of("numpy", PAGE)
    (alone,) = packer.pack(np.zeros(0, np.uint8))
    head = len(alone)
    lengths = {extra: len(packer.pack(np.zeros(PAGE - head + extra, np.uint8))) for extra in (0, 1)}
    assert lengths == {0: 1, 1: 2}


def test_a_buffer_of_a_table_that_has_a_page_is_not_copied() -> None:
    arrow = pytest.importorskip("pyarrow")
    packer = packer_of("arrow", PAGE)
    for length, own_parts in ((PAGE - 64, 0), (PAGE, 1), (PAGE + 64, 1)):
        column = np.arange(length).astype(np.uint8)
        table = arrow.table({"column": arrow.array(column)})
        parts = packer.pack(table)
        assert shares(parts, column) == bool(own_parts), length
        assert packer.unpack([memoryview(bytes(part)) for part in parts]).equals(table)  # type: ignore[attr-defined]


def test_a_pickle_without_large_buffers_is_one_part() -> None:
    packer = packer_of("pickle", PAGE)
    value = {"numbers": np.arange(100, dtype=np.uint8), "name": "n"}
    (part,) = packer.pack(value)
    assert pickle.loads(bytes(part))["name"] == "n"
