"""A bit flipped anywhere in what is stored is never given back as a page: a sweep over many positions."""

import pytest
from bit_flips import KINDS, sweep


@pytest.mark.slow
@pytest.mark.parametrize("where", ["pool", "file"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_goes_unnoticed(kind: str, where: str) -> None:
    noticed, harmless = sweep(kind, where, flips=1000, seed=1)
    assert noticed + harmless == 1000
    assert harmless == 0
