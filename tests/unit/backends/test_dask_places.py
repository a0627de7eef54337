"""Where the dask backend does batches: the faster place, found by trials that cost little."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchzip_dask import choice
from batchzip_dask.choice import LOCAL, SENT, Choices, PlacedBatch

if TYPE_CHECKING:
    from batchzip.statistics import Placement

KIB, MIB = 1 << 10, 1 << 20
SIZE = MIB
COMPRESS, DECOMPRESS = 0, 1


class Machine:
    """A clock, and batches that take as long as their place's speed has it."""

    def __init__(self, local: float, sent: float) -> None:
        self.now = 1000.0
        self.speeds = [local, sent]
        self.may_send = True
        self.samples = 0
        self.choices = Choices(lambda: self.may_send)

    def monotonic(self) -> float:
        return self.now

    def sample(self) -> float:
        self.samples += 1
        return self.speeds[LOCAL]

    def begin(
        self, size: int = SIZE, operation: int = COMPRESS, *, may_try: bool = True
    ) -> PlacedBatch:
        return self.choices.begin(operation, size, self.sample, may_try=may_try)

    def do(self, size: int = SIZE, *, may_try: bool = True) -> PlacedBatch:
        batch = self.begin(size, may_try=may_try)
        self.now += size / self.speeds[batch.place]
        batch.end(size)
        return batch

    def work(self, seconds: float) -> list[PlacedBatch]:
        """Do one batch after the other for a while."""
        end, done = self.now + seconds, []
        while self.now < end:
            done.append(self.do())
        return done

    @property
    def placement(self) -> Placement:
        (found,) = self.choices.placements()
        return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(10 * MIB, 10 * MIB)
    monkeypatch.setattr(choice, "time", machine)
    return machine


@pytest.mark.parametrize(
    ("times", "place"), [(0.1, "local"), (1.0, "local"), (1.1, "local"), (1.2, "sent"), (9, "sent")]
)
def test_the_place_that_is_clearly_faster_has_the_work(
    machine: Machine, times: float, place: str
) -> None:
    machine.speeds[SENT] = times * machine.speeds[LOCAL]
    machine.work(60)
    found = machine.placement
    assert found.place == place
    assert found.local_speed == pytest.approx(machine.speeds[LOCAL])
    assert found.sent_speed == pytest.approx(machine.speeds[SENT])


@pytest.mark.slow
def test_the_place_changes_when_the_machine_or_the_cluster_does(machine: Machine) -> None:
    machine.speeds[SENT] = 3 * machine.speeds[LOCAL]
    machine.work(20)
    assert machine.placement.place == "sent"
    machine.speeds = [9 * machine.speeds[LOCAL], machine.speeds[SENT]]
    machine.work(700)
    assert machine.placement.place == "local"
    machine.speeds[LOCAL] /= 90
    machine.work(700)
    assert machine.placement.place == "sent"


def test_trials_take_two_percent_of_the_time(machine: Machine) -> None:
    machine.speeds[SENT] = machine.speeds[LOCAL] / 4
    machine.work(20)  # the first one is followed by another soon
    began, done = machine.now, machine.work(2000)
    trials = [batch for batch in done if batch.is_trial]
    assert trials
    assert {batch.place for batch in trials} == {SENT}
    lost_s = sum(SIZE / machine.speeds[SENT] - SIZE / machine.speeds[LOCAL] for _ in trials)
    assert lost_s / (machine.now - began) == pytest.approx(0.02, rel=0.25)


def test_after_a_trial_that_failed_there_is_none_for_ten_minutes(machine: Machine) -> None:
    failed = machine.begin()
    assert failed.is_trial
    machine.now += 1
    failed.end(0)
    # What a trial takes is handed out until it is judged; all of it fails.
    while (batch := machine.begin()).is_trial:
        machine.now += 1
        batch.end(0)
    batch.drop()
    began = machine.now
    while not (batch := machine.do()).is_trial:
        pass
    assert 598 < machine.now - began < 603
    assert machine.placement.trials == 2


def test_trials_come_a_second_apart_at_the_soonest(machine: Machine) -> None:
    while machine.do().is_trial:
        pass
    began = machine.now
    while not machine.do().is_trial:
        pass
    assert 0.7 < machine.now - began < 1.3


def test_without_workers_or_where_trials_are_not_wanted_all_is_done_here(machine: Machine) -> None:
    assert not any(machine.do(may_try=False).is_trial for _ in range(50))
    machine.may_send = False
    assert not any(batch.is_trial for batch in machine.work(20))
    assert machine.placement.trials == machine.placement.sent_bytes == 0
    machine.may_send = True
    assert machine.begin().place == SENT


@pytest.mark.slow
def test_local_trials_happen_even_when_the_workers_are_gone(machine: Machine) -> None:
    machine.speeds[SENT] = 5 * machine.speeds[LOCAL]
    machine.work(20)
    machine.may_send = False
    assert any(batch.place == LOCAL and batch.is_trial for batch in machine.work(700))


@pytest.mark.parametrize(
    ("size", "below"),
    [
        (1, 256 * KIB),
        (256 * KIB - 1, 256 * KIB),
        (256 * KIB, 4 * MIB),
        (4 * MIB - 1, 4 * MIB),
        (4 * MIB, None),
        (1 << 40, None),
    ],
)
def test_sizes_are_told_apart_at_their_bounds(
    machine: Machine, size: int, below: int | None
) -> None:
    machine.begin(size).drop()
    assert machine.placement.below_bytes == below


def test_each_operation_and_size_is_measured_for_itself(machine: Machine) -> None:
    sizes = (KIB, MIB, 8 * MIB)
    for _ in range(3):
        for operation in (COMPRESS, DECOMPRESS):
            for size in sizes:
                machine.begin(size, operation, may_try=False).end(size)
    assert machine.samples == 6, "a few pages for each"
    found = machine.choices.placements()
    assert [each.operation for each in found] == ["compress"] * 3 + ["decompress"] * 3
    assert [each.below_bytes for each in found] == [256 * KIB, 4 * MIB, None] * 2
    assert [each.local_bytes for each in found] == [3 * size for size in sizes] * 2


@pytest.mark.parametrize(
    ("size", "speed", "batches"),
    [
        (MIB, 10 * MIB, 5),  # half a second's work
        (3 * MIB, 2 * MIB, 3),  # as much of four batches as fits 8 MiB
        (MIB // 2, 1.0, 4),  # four batches
        (64 * KIB, 1.0, 16),  # 1 MiB
        (MIB, 1000 * MIB, 8),  # 8 MiB
    ],
)
def test_a_trial_on_the_cluster_fills_the_pipe_and_no_more(
    machine: Machine, size: int, speed: float, batches: int
) -> None:
    machine.speeds[LOCAL] = speed
    taken = [machine.begin(size) for _ in range(40)]
    assert [batch.is_trial for batch in taken] == [True] * batches + [False] * (40 - batches)


def test_the_first_measurement_takes_the_place_of_the_sample_and_others_count_half(
    machine: Machine,
) -> None:
    machine.may_send = False
    machine.do()
    assert machine.placement.local_speed == pytest.approx(10 * MIB)
    for speed, known in ((20, 15), (5, 10), (10, 10)):
        machine.speeds[LOCAL] = speed * MIB
        batch = machine.do(4 * MIB - 1)
        assert machine.placement.local_speed == pytest.approx(known * MIB, rel=0.01)
        assert batch.seconds > 0


def test_short_batches_are_measured_together(machine: Machine) -> None:
    machine.may_send = False
    machine.do()
    machine.speeds[LOCAL] = 40 * MIB
    for _ in range(3):
        machine.do(MIB)  # 0.025 s each
    assert machine.placement.local_speed == pytest.approx(10 * MIB)
    machine.do(MIB + MIB // 8)  # 0.103 s together
    assert machine.placement.local_speed == pytest.approx(25 * MIB)


def test_a_batch_is_said_to_take_what_its_place_takes(machine: Machine) -> None:
    machine.may_send = False
    assert machine.begin(2 * MIB).seconds == pytest.approx(0.2)


def test_batches_at_once_count_their_time_once(machine: Machine) -> None:
    machine.may_send = False
    machine.do()
    batches = [machine.begin() for _ in range(4)]
    machine.now += 0.1
    for batch in batches:
        batch.end(SIZE)
    machine.do()
    assert machine.placement.local_bytes == 6 * SIZE
    assert machine.placement.local_speed is not None
    assert machine.placement.local_speed > 12 * MIB


def test_the_end_of_a_batch_counts_once(machine: Machine) -> None:
    machine.may_send = False
    batch = machine.begin()
    machine.now += 1
    batch.end(SIZE)
    batch.end(SIZE)
    batch.drop()
    assert machine.placement.local_bytes == SIZE
