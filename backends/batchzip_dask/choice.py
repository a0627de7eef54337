"""Choice: where batches of one kind are done, on this machine or on the cluster, by measurement.

A kind is an operation and a size, as what sending costs depends on both. Compared are throughputs, bytes of
pages a second while any batch of the kind is under way there: those of callers that wait for each batch, and of
others that submit hundreds at once, come out as they are, and so do callers whose CPUs others use. Rejected:
the time that one batch takes, by which sending loses wherever its latency could be hidden; CPU time, which
does not show that no CPU is free.

The place that was faster has the work. Now and then the other has a part, a trial, long enough to fill the
pipe, so that the news of idle workers or busy CPUs is noticed. A trial that costs t seconds, against what
the better place would have taken, is followed by none for 50 t, so that trials take 2 % of the time.

First of all a few pages are compressed and thrown away, as a batch of 16 MiB may take a minute here.

Thread-safe. Locks: one, innermost, reentrant as a signal handler may begin a batch, too.
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
"""Bytes of pages between batches of three kinds of one operation."""

_TRIAL_BYTES = 1 << 20, 8 << 20
_TRIAL_BATCHES = 4
_TRIAL_S = 0.5
"""What a trial takes: so much that it should take so long, within bounds; and one batch at least, on the cluster
a few, as far as they fit."""

_MEASURED_S = 0.1
"""Seconds of work that make a measurement; of a trial whose batches come one by one, too."""

_TRIAL_SHARE = 50
_SOONEST_S, _LATEST_S = 1.0, 600.0
"""Seconds between two trials: 50 times what one cost, within these bounds; after one that failed, the most."""

_BETTER = 1.15
"""Times that a place must be faster to be changed to."""


@dataclass(slots=True)
class _Meter:
    """What was done at one place, and how fast."""

    speed: float | None = None
    """Bytes per second, half of it by the last measurement."""
    is_guess: bool = False
    """Whether that comes of a few pages that were done in a moment, when the CPU may have been free."""
    active: int = 0
    began: float = 0.0
    """Since when what is not measured yet has been under way."""
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
        """Take back a start: nothing was done. Of the time, only what others were under way counts."""
        if self.active > 1:
            self.busy_s += now - self.began
        self.active -= 1
        self.began = now

    def seconds(self, now: float) -> float:
        """Return for how long anything was under way since the last measurement."""
        return self.busy_s + (now - self.began if self.active else 0.0)

    def forget(self, now: float) -> None:
        """Begin a measurement."""
        self.busy_s, self.bytes, self.began = 0.0, 0, now

    def measure(self, now: float) -> None:
        """Have what was done since the last time as the speed."""
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
    """Bytes that the trial under way still takes; None: there is none."""
    trials: int = 0

    def begin(self, now: float, size: int, *, may_try: bool) -> int:
        other = 1 - self.place
        if may_try and self.trial_left is None and now >= self.trial_at:
            self.trials += 1
            speed = self.meters[other].speed or self.meters[self.place].speed or 0.0
            least, most = _TRIAL_BYTES
            # Here there is no pipe to fill.
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
            meter.forget(now)  # the last ones before the place was changed

    def _judge(self, now: float, tried: _Meter, seconds: float) -> None:
        done = tried.bytes
        first = tried.speed is None
        if done:
            tried.speed = None  # not half of what it was long ago
        tried.measure(now)
        kept = self.meters[self.place]
        if kept.speed is None:
            kept.measure(now)
        self.trial_left = None
        if not done:  # it failed
            cost_s = _LATEST_S
        elif tried.speed is not None and tried.speed > _BETTER * (kept.speed or 0.0):
            self.place = 1 - self.place
            cost_s = 0.0
        elif first or kept.speed is None:
            cost_s = 0.0  # it also paid for connections and imports: there is another one soon
        else:
            cost_s = seconds - done / kept.speed
        self.trial_at = now + min(max(_TRIAL_SHARE * cost_s, _SOONEST_S), _LATEST_S)


class Choices:
    """Chooses for each batch of an engine. `may_send` says whether the cluster has workers now."""

    def __init__(self, may_send: Callable[[], bool]) -> None:
        self._may_send = may_send
        self._kinds: dict[tuple[int, int], _Kind] = {}
        self._lock = threading.RLock()

    def begin(
        self, operation: int, size: int, sample: Callable[[], float], *, may_try: bool = True
    ) -> PlacedBatch:
        """Choose for a batch of `size` bytes of pages, and note that it begins.

        `sample` measures a few pages here and returns bytes per second. Without `may_try`, the batch is no trial.
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
        """Note that a batch is over, of which `size` bytes were done."""
        with self._lock:
            kind.end(time.monotonic(), place, size)

    def drop(self, kind: _Kind, place: int, size: int) -> None:
        """Note that a batch of `size` bytes was not done there after all."""
        with self._lock:
            kind.drop(time.monotonic(), place, size)

    def placements(self) -> tuple[Placement, ...]:
        """Say what was done where, and why."""
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
    """A batch that was given a place."""

    _choices: Choices
    _kind: _Kind
    _size: int
    place: int
    is_trial: bool
    seconds: float
    """What it should take, about."""
    _over: bool = False

    def end(self, size: int) -> None:
        """Note that the batch is over, of which `size` bytes of pages were done."""
        if self._over:
            return
        self._over = True
        self._choices.end(self._kind, self.place, size)

    def drop(self) -> None:
        """Note that the batch was refused, cancelled or done elsewhere: that says nothing of the place."""
        if self._over:
            return
        self._over = True
        self._choices.drop(self._kind, self.place, self._size)
