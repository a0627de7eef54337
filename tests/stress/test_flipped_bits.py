"""100,000 flipped bits, in the pool and in the backing file, with every codec."""

from collections.abc import Callable

import pytest
from bit_flips import KINDS, sweep

pytestmark = pytest.mark.stress

FLIPS = 100_000


def test_of_a_hundred_thousand_flipped_bits_each_is_noticed(report: Callable[[str], None]) -> None:
    share = FLIPS // (2 * len(KINDS))
    noticed = harmless = 0
    for kind in KINDS:
        for where in ("pool", "file"):
            found = sweep(kind, where, flips=share, seed=7)
            noticed, harmless = noticed + found[0], harmless + found[1]
    assert harmless == 0
    report(f"bit flips: {noticed} of {noticed + harmless} noticed, 0 wrong pages")
