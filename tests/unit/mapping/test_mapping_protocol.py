"""The mapping tests of the standard library hold for a CompressedMapping.

All tests for mappings in general run, and those for string keys. A dict's copy() and fromkeys() do
not exist here. Pythons without the package `test` skip these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from batchzip import CompressedMapping, Engine, SwapStore

if TYPE_CHECKING:
    from collections.abc import Iterator

mapping_tests: Any = pytest.importorskip(
    "test.mapping_tests", reason="this Python comes without the standard library's tests"
)


class TestProtocol(mapping_tests.BasicTestMappingProtocol):  # type: ignore[misc] # not typed
    store: ClassVar[SwapStore]

    @pytest.fixture(autouse=True)
    def _in_a_store(self) -> Iterator[None]:
        with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
            type(self).store = store
            yield
            store.check_invariants()
            del type(self).store

    def type2test(self, **items: object) -> CompressedMapping:
        mapping = CompressedMapping(self.store, serializer="pickle")
        mapping.update(items)
        return mapping

    test_bool = mapping_tests.TestMappingProtocol.test_bool
    test_contains = mapping_tests.TestMappingProtocol.test_contains
    test_get = mapping_tests.TestMappingProtocol.test_get
    test_getitem = mapping_tests.TestMappingProtocol.test_getitem
    test_keys = mapping_tests.TestMappingProtocol.test_keys
    test_len = mapping_tests.TestMappingProtocol.test_len
    test_pop = mapping_tests.TestMappingProtocol.test_pop
