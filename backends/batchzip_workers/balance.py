"""Balance: whether a batch is worth dividing, from what was measured.

For each operation and size of batch both ways are timed as work goes on: the whole batch in the calling
thread, and divided with the workers. The faster one is used, and the other tried again now and then.
No constant would do: an lz4 page takes 2 µs to decompress, a zstd-19 page a millisecond to compress.
Rejected: adding up the parts of a hand-over (staging, posting, collecting). It missed what cannot be
timed by itself, caches that get cold and the wait at the end, and took small batches for a gain.

Workers asleep are a decision of their own. One small batch does not pay for a wake-up; a stream of them
does, as the workers stay awake from one to the next. So what the batches of a stream lose by being done
alone is added up, and when it has reached the price of a wake-up, they are woken: never more than
twice what knowing the future would have cost (the rule of renting until the rent has paid for buying).

Several threads may update a figure at once and lose an update; it is a hint, and the next one
comes with the next batch.
"""

from __future__ import annotations

_WEIGHT = 0.1
"""Weight of a new measurement: about the last twenty count."""

_OUTLIER = 3.0
"""A measurement counts as at most this many times what is known: the core was away."""

_FIRST_SAMPLES = 5
"""Measurements that it takes to know a way; their median counts, as memory is touched, code is warmed and
cores are away in some."""

_CHANGE = 0.25
"""Change of a cost, as a fraction, after which the other way is worth another look."""

_TRY_AGAIN, _LAST_TRY = 256, 4096
"""Batches of a size after which the way that is not used is measured anew; twice as many each time it
was the slower one still, up to a limit. That is five batches, of twice the time maybe: two percent at
first, and then ever less."""

_SETTLED = 31
"""Batches that go without a decision after one found that their size does not pay."""

SIZES = 12
"""Classes of batch size, by bits of the page count; the last is 2048 pages and more."""

_FIRST_WAKE_S = 200e-6
"""Price of a wake-up until one was measured: what it takes in a virtual machine."""


class _Way:
    """What one way of doing batches of one size takes, in seconds a page."""

    __slots__ = ("_known_s", "_samples", "cost_s", "patience", "unused")

    def __init__(self) -> None:
        self.cost_s = 0.0
        self.unused = 0
        """Batches of this size since it was measured last."""
        self.patience = _TRY_AGAIN
        """Batches until it is tried again."""
        self._known_s = 0.0
        """What it took when the other way was last compared with it."""
        self._samples: list[float] = []

    @property
    def known(self) -> bool:
        """Whether it was measured often enough."""
        return len(self._samples) >= _FIRST_SAMPLES

    @property
    def wanted(self) -> bool:
        """Whether it needs to be measured (again)."""
        return len(self._samples) < _FIRST_SAMPLES or self.unused >= self.patience

    def note(self, cost_s: float, other_s: float) -> None:
        """Record a measurement; the other way's cost tells when this one is to be tried again."""
        if self.unused >= self.patience:
            self._samples.clear()
        self.unused = 0
        if len(self._samples) >= _FIRST_SAMPLES:
            self.cost_s += (min(cost_s, _OUTLIER * self.cost_s) - self.cost_s) * _WEIGHT
            return
        self._samples.append(cost_s)
        self.cost_s = sorted(self._samples)[len(self._samples) // 2]
        if len(self._samples) == _FIRST_SAMPLES:
            self._known_s = self.cost_s
            if self.cost_s > other_s:
                self.patience = min(2 * self.patience, _LAST_TRY)

    def has_changed(self) -> bool:
        """Whether it takes so much more or less now that the other way is to be tried again soon."""
        changed = abs(self.cost_s - self._known_s) > _CHANGE * self._known_s
        if changed:
            self._known_s = self.cost_s
        return changed

    def try_soon(self) -> None:
        """Be patient as in the beginning."""
        self.patience = _TRY_AGAIN


class Balance:
    """What one operation takes, alone and divided, by size of batch."""

    __slots__ = ("_alone", "_close_s", "_divided", "_last", "_lost_s", "_settled", "_wake_s")

    def __init__(self, close_s: float, settled: list[int] | None = None) -> None:
        self._settled = [0] * SIZES if settled is None else settled
        """Batches of each size to be done alone without another thought."""
        self._close_s = close_s
        """Batches that begin within this after the end of the one before are a stream."""
        self._alone = [_Way() for _ in range(SIZES)]
        self._divided = [_Way() for _ in range(SIZES)]
        self._wake_s = _FIRST_WAKE_S
        self._lost_s = 0.0
        self._last = 0.0
        """When the last batch was done."""

    def is_settled(self, pages: int) -> bool:
        """Whether a batch of `pages` pages is done alone, as the last ones were."""
        size = min(pages.bit_length(), SIZES - 1)
        if not self._settled[size]:
            return False
        self._settled[size] -= 1
        self._divided[size].unused += 1
        return True

    def is_worth(self, pages: int, now: float, *, asleep: bool) -> bool:
        """Whether to divide a batch of `pages` pages at the time `now`, with workers `asleep`."""
        size = min(pages.bit_length(), SIZES - 1)
        alone, divided = self._alone[size], self._divided[size]
        alone.unused += 1
        divided.unused += 1
        if alone.wanted:
            return False
        if not divided.wanted and alone.cost_s <= divided.cost_s:
            self._settled[size] = _SETTLED
            return False
        if not asleep:
            return True
        if now - self._last > self._close_s:
            self._lost_s = 0.0
        # What is not known yet, or was no gain lately, is taken to bring half of what it could.
        gain_s = max(alone.cost_s - divided.cost_s, alone.cost_s / 4)
        self._lost_s += pages * gain_s
        if self._lost_s < self._wake_s:
            return False
        self._lost_s = 0.0
        return True

    def note_alone(self, pages: int, seconds: float, now: float) -> None:
        """Record what a batch, done at the time `now`, took in the calling thread alone."""
        self._last = now
        size = min(pages.bit_length(), SIZES - 1)
        _note(self._alone[size], seconds / pages, self._divided[size])

    def note_divided(self, pages: int, seconds: float, now: float, *, woke: bool) -> None:
        """Record what a divided batch took; one that woke a worker tells the price of that."""
        self._last = now
        size = min(pages.bit_length(), SIZES - 1)
        way = self._divided[size]
        if not woke:
            _note(way, seconds / pages, self._alone[size])
        elif way.known:
            extra_s = min(max(0.0, seconds - pages * way.cost_s), _OUTLIER * self._wake_s)
            self._wake_s += (extra_s - self._wake_s) * _WEIGHT


def _note(way: _Way, cost_s: float, other: _Way) -> None:
    way.note(cost_s, other.cost_s)
    if way.known and way.has_changed():
        other.try_soon()
