"""A page with a flipped bit is never given back: a sweep over many positions."""

import pytest
from support.bit_flips import KINDS, sweep, sweep_around


@pytest.mark.slow
@pytest.mark.parametrize("where", ["pool", "file"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_goes_unnoticed(kind: str, where: str) -> None:
    noticed, harmless = sweep(kind, where, flips=2000, seed=1)
    assert noticed + harmless == 2000
    assert harmless == 0


@pytest.mark.slow
def test_a_bit_flipped_beside_the_objects_harms_none_of_them() -> None:
    assert sweep_around(10_000, seed=1) > 0
