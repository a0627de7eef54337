"""Each target of the fuzzer holds for its seeds, for inputs that once failed and random ones."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from fuzz.targets import LONGEST, TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.fuzzing import Target
    from support.reporting import Report

RANDOM = 200

PATIENT = {"view": 3}
"""Random inputs for those that wait long before they call something damaged."""

FAILED: dict[str, list[str]] = {}
"""Inputs that once failed, as hexadecimal digits."""


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[tuple[str, Target]]:
    name: str = request.param
    target = TARGETS[name]()
    yield name, target
    target.close()


@pytest.mark.slow
def test_a_target_holds(target: tuple[str, Target], report: Report) -> None:
    name, check = target
    rng = random.Random(name)
    seeds = list(check.seeds())
    assert all(len(seed) <= LONGEST[name] for seed in seeds)
    for data in (b"", *seeds, *map(bytes.fromhex, FAILED.get(name, []))):
        check(data)
    tried = PATIENT.get(name, RANDOM)
    for _ in range(tried):
        changed = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(changed) + 1)
            changed[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
        check(bytes(changed))
    report(f"fuzz: {name}, {len(seeds)} seeds and {tried} random inputs")
