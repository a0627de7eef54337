"""The checks that zict makes of its own mappings hold for a CompressedMapping."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zict.tests import utils_test as zict_tests

if TYPE_CHECKING:
    from batchzip import CompressedMapping


def test_zicts_check_of_a_mapping(mapping: CompressedMapping) -> None:
    zict_tests.check_mapping(mapping)


@pytest.mark.slow
@pytest.mark.parametrize("check", ["check_different_keys_threadsafe", "check_same_key_threadsafe"])
def test_zicts_checks_of_threads(mapping: CompressedMapping, check: str) -> None:
    getattr(zict_tests, check)(mapping)


@pytest.mark.parametrize("check", ["check_bad_key_types", "check_bad_value_types"])
def test_zicts_checks_of_what_is_refused(mapping: CompressedMapping, check: str) -> None:
    getattr(zict_tests, check)(mapping)
