"""A store has numbers for 255 codecs; mappings that are gone keep none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import batchzip
from batchzip import CompressedMapping, Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = [b'{"number": %d, "name": "user-%d", "active": true}' % (n, n) * 3 for n in range(500)]


def close(mapping: CompressedMapping) -> None:
    mapping.close()


def drop(_: CompressedMapping) -> None:
    pass


@pytest.mark.parametrize("end", [close, drop])
def test_more_mappings_than_there_are_numbers_come_and_go(
    end: Callable[[CompressedMapping], None],
) -> None:
    with Engine("zstd", level=1, backend="sequential") as engine, SwapStore(engine) as store:
        dictionary = batchzip.train_dictionary(SAMPLES, size=1024, level=1)
        for number in range(300):
            mapping = CompressedMapping(store, dictionary=dictionary)
            mapping["key"] = SAMPLES[number]
            assert mapping["key"] == SAMPLES[number]
            end(mapping)
            del mapping
        assert not store.groups
