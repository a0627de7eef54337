"""Choices: decides by measurement whether batches run on this machine or on the cluster.

Batches of one operation and similar size form a kind, because the cost of sending depends on both.
Each place is judged by its throughput: bytes of pages per second while any batch of the kind is in
progress there. That figure is right for callers that wait for each batch, for callers that submit
hundreds at once, and where other programs use the CPUs. Rejected: the time of one batch, by which
sending loses even where its latency can be hidden; CPU time, which does not show that no CPU is
free.

The faster place gets the work. Now and then the other place gets a trial, which is long enough to
fill the pipeline. So idle workers or busy CPUs are noticed. If a trial took t seconds longer than
the better place would have, the next one comes after 50 t. Trials therefore cost at most 2 % of the
time.

The first batch of a kind may have 16 MiB and take a minute here. So a few of its pages are
compressed first, to learn the local speed; their results are discarded.

Thread-safe. There is one lock. It is innermost, and reentrant because a signal handler may begin a
batch, too.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batchzip.statistics import Placement

if TYPE_CHECKING:
    from collections.abc import Callable

LOCAL, SENT = 0, 1
_NAMES = "local", "sent"
_OPERATIONS = "compress", "decompress"

_SIZES = 256 << 10, 4 << 20
"""Bounds in bytes of pages between the three kinds of an operation."""

_TRIAL_BYTES = 1 << 20, 8 << 20
_TRIAL_BATCHES = 4
_TRIAL_S = 0.5
"""Size of a trial: bytes that should take _TRIAL_S, within _TRIAL_BYTES. A trial has at least one
batch; on the cluster it has up to _TRIAL_BATCHES if they fit."""

_MEASURED_S = 0.1
"""Seconds of work per measurement, also in a trial whose batches come one at a time."""

_TRIAL_SHARE = 50
_SOONEST_S, _LATEST_S = 1.0, 600.0
"""A trial is followed by a pause of _TRIAL_SHARE times its cost, within these bounds in seconds.
After a failed trial, the pause is _LATEST_S."""

_BETTER = 1.15
"""Factor by which the other place must be faster to get the work."""


@dataclass(slots=True)
class _Meter:
    """The work done at one place, and its speed."""

    speed: float | None = None
    """Bytes per second. Each measurement counts half of the new value."""
    is_guess: bool = False
    """Whether `speed` comes from the short sample, during which the CPU may have been free."""
    active: int = 0
    began: float = 0.0
    """Start of the active time that `busy_s` does not contain yet."""
    busy_s: float = 0.0
    bytes: int = 0
    all_bytes: int = 0

    def start(self, now: float) -> None:
        if not self.active:
            self.began = now
        self.active += 1

    def stop(self, now: float, size: int) -> None:
        self.active -= 1
        self.bytes += size
        self.all_bytes += size
        self.busy_s += now - self.began
        self.began = now

    def drop(self, now: float) -> None:
        """Take back a start. Its time counts only if other batches were in progress."""
        if self.active > 1:
            self.busy_s += now - self.began
        self.active -= 1
        self.began = now

    def seconds(self, now: float) -> float:
        """Return the active seconds since the last measurement."""
        return self.busy_s + (now - self.began if self.active else 0.0)

    def forget(self, now: float) -> None:
        """Begin a new measurement."""
        self.busy_s, self.bytes, self.began = 0.0, 0, now

    def measure(self, now: float) -> None:
        """Turn the work since the last measurement into the speed."""
        seconds = self.seconds(now)
        if self.bytes and seconds > 0:
            speed = self.bytes / seconds
            known = speed if self.speed is None or self.is_guess else self.speed
            self.speed = (known + speed) / 2
            self.is_guess = False
        self.forget(now)


@dataclass(slots=True)
class _Kind:
    """Batches of one operation and size."""

    place: int = LOCAL
    meters: tuple[_Meter, _Meter] = field(default_factory=lambda: (_Meter(), _Meter()))
    trial_at: float = 0.0
    trial_left: int | None = None
    """Bytes left in the current trial, or None outside a trial."""
    trials: int = 0

    def begin(self, now: float, size: int, *, may_try: bool) -> int:
        other = 1 - self.place
        if may_try and self.trial_left is None and now >= self.trial_at:
            self.trials += 1
            speed = self.meters[other].speed or self.meters[self.place].speed or 0.0
            least, most = _TRIAL_BYTES
            # Locally there is no pipeline to fill.
            least = 1 if other == LOCAL else min(max(least, _TRIAL_BATCHES * size), most)
            self.trial_left = int(min(max(speed * _TRIAL_S, least), most))
        place = self.place
        if may_try and self.trial_left is not None and self.trial_left > 0:
            self.trial_left -= size
            place = other
        self.meters[place].start(now)
        return place

    def drop(self, now: float, place: int, size: int) -> None:
        self.meters[place].drop(now)
        if place != self.place and self.trial_left is not None:
            self.trial_left += size

    def end(self, now: float, place: int, size: int) -> None:
        meter = self.meters[place]
        meter.stop(now, size)
        if place == self.place:
            if meter.seconds(now) >= _MEASURED_S:
                meter.measure(now)
        elif self.trial_left is not None:
            seconds = meter.seconds(now)
            if not meter.active if self.trial_left <= 0 else seconds >= _MEASURED_S:
                self._judge(now, meter, seconds)
        else:
            meter.forget(now)  # the last batches from before the place changed

    def _judge(self, now: float, tried: _Meter, seconds: float) -> None:
        done = tried.bytes
        first = tried.speed is None
        if done:
            tried.speed = None  # the speed of an earlier trial must not count
        tried.measure(now)
        kept = self.meters[self.place]
        if kept.speed is None:
            kept.measure(now)
        self.trial_left = None
        if not done:  # the trial failed
            cost_s = _LATEST_S
        elif tried.speed is not None and tried.speed > _BETTER * (kept.speed or 0.0):
            self.place = 1 - self.place
            cost_s = 0.0
        elif first or kept.speed is None:
            # The first trial also paid for connections and imports, so another one follows soon.
            cost_s = 0.0
        else:
            cost_s = seconds - done / kept.speed
        self.trial_at = now + min(max(_TRIAL_SHARE * cost_s, _SOONEST_S), _LATEST_S)


class Choices:
    """Chooses where each batch of an engine runs. `may_send` says if there are workers."""

    def __init__(self, may_send: Callable[[], bool]) -> None:
        self._may_send = may_send
        self._kinds: dict[tuple[int, int], _Kind] = {}
        self._lock = threading.RLock()

    def begin(
        self, operation: int, size: int, sample: Callable[[], float], *, may_try: bool = True
    ) -> PlacedBatch:
        """Choose a place for a batch of `size` bytes of pages, and note that it begins.

        `sample` measures a few pages here and returns bytes per second. Without `may_try`, the
        batch takes no part in a trial.
        """
        key = operation, sum(size >= limit for limit in _SIZES)
        if key not in self._kinds:
            kind = _Kind()
            local = kind.meters[LOCAL]
            local.speed, local.is_guess = sample(), True
            with self._lock:
                self._kinds.setdefault(key, kind)
        kind = self._kinds[key]
        may_try = may_try and (self._may_send() or kind.place == SENT)
        with self._lock:
            place = kind.begin(time.monotonic(), size, may_try=may_try)
            seconds = size / (kind.meters[place].speed or size)
            return PlacedBatch(self, kind, size, place, place != kind.place, seconds)

    def end(self, kind: _Kind, place: int, size: int) -> None:
        """Note that a batch has ended, of which `size` bytes were processed."""
        with self._lock:
            kind.end(time.monotonic(), place, size)

    def drop(self, kind: _Kind, place: int, size: int) -> None:
        """Note that a batch of `size` bytes did not run there after all."""
        with self._lock:
            kind.drop(time.monotonic(), place, size)

    def placements(self) -> tuple[Placement, ...]:
        """Return what ran where, and the speeds that decided it."""
        with self._lock:
            kinds = sorted(self._kinds.items())
        return tuple(
            Placement(
                operation=_OPERATIONS[operation],
                below_bytes=_SIZES[size] if size < len(_SIZES) else None,
                place=_NAMES[kind.place],
                local_speed=kind.meters[LOCAL].speed,
                sent_speed=kind.meters[SENT].speed,
                local_bytes=kind.meters[LOCAL].all_bytes,
                sent_bytes=kind.meters[SENT].all_bytes,
                trials=kind.trials,
            )
            for (operation, size), kind in kinds
        )


@dataclass(slots=True)
class PlacedBatch:
    """A batch with the place that was chosen for it."""

    _choices: Choices
    _kind: _Kind
    _size: int
    place: int
    is_trial: bool
    seconds: float
    """Predicted duration."""
    _over: bool = False

    def end(self, size: int) -> None:
        """Note that the batch has ended, of which `size` bytes of pages were processed."""
        if self._over:
            return
        self._over = True
        self._choices.end(self._kind, self.place, size)

    def drop(self) -> None:
        """Note that the batch did not run here: it was refused, cancelled or run elsewhere."""
        if self._over:
            return
        self._over = True
        self._choices.drop(self._kind, self.place, self._size)
