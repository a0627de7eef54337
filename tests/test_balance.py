"""Balance: batches are divided where that measured faster, and nowhere else."""

from __future__ import annotations

from batchzip_workers.balance import Balance


def run(
    balance: Balance, batches: int, alone_s: float, divided_s: float, *, asleep: bool = False
) -> int:
    """Do batches of 64 pages, one right after the other; how many were divided."""
    now, divided = 1.0, 0
    for _ in range(batches):
        if not balance.is_settled(64) and balance.is_worth(64, now, asleep=asleep):
            divided += 1
            now += 64 * divided_s
            balance.note_divided(64, 64 * divided_s, now, woke=False)
            asleep = False
        else:
            now += 64 * alone_s
            balance.note_alone(64, 64 * alone_s, now)
    return divided


def test_both_ways_are_tried_and_the_faster_one_is_used() -> None:
    assert run(Balance(1e-3), 1000, alone_s=10e-6, divided_s=6e-6) > 950
    assert run(Balance(1e-3), 1000, alone_s=6e-6, divided_s=10e-6) < 50


def test_what_changes_is_noticed() -> None:
    balance = Balance(1e-3)
    run(balance, 1000, alone_s=6e-6, divided_s=10e-6)
    assert run(balance, 20_000, alone_s=10e-6, divided_s=6e-6) > 10_000
    assert run(balance, 20_000, alone_s=6e-6, divided_s=10e-6) < 2000


def test_a_first_measurement_far_off_is_not_remembered() -> None:
    balance = Balance(1e-3)
    balance.note_divided(64, 1.0, 1.0, woke=False)
    assert run(balance, 1000, alone_s=10e-6, divided_s=6e-6) > 900


def test_sleeping_workers_are_woken_for_a_stream_but_not_for_batches_far_apart() -> None:
    balance = Balance(1e-3)
    run(balance, 100, alone_s=10e-6, divided_s=6e-6)
    assert run(balance, 20, alone_s=10e-6, divided_s=6e-6, asleep=True) > 10
    now = 100.0
    for _ in range(100):
        now += 0.1
        assert not balance.is_worth(8, now, asleep=True)
        balance.note_alone(8, 8 * 10e-6, now)
