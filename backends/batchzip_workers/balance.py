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

_OUTLIER = 4.0
"""A measurement counts as at most this many times what is kept: the core was away."""

_FIRST_SAMPLES = 4
"""Measurements of a way, after a first that does not count, that it takes to know it."""

_TRY_AGAIN, _LAST_TRY = 512, 16384
"""Batches of a size after which the way that is not used is timed again; twice as many each time it
was the slower one still. A wake-up costs 0.2 ms, a small batch 10 µs: trying is to cost a percent."""

_SETTLED = 31
"""Batches that go without a decision after one found that their size does not pay."""

SIZES = 12
"""Classes of batch size, by bits of the page count; the last is 2048 pages and more."""

_FIRST_WAKE_S = 200e-6
"""Price of a wake-up until one was measured: what it takes in a virtual machine."""


class _Way:
    """What one way of doing batches of one size takes, in seconds a page."""

    __slots__ = ("cost_s", "patience", "samples", "unused")

    def __init__(self) -> None:
        self.cost_s = 0.0
        self.samples = -1  # the first one is not counted: memory is touched, code is warmed
        self.unused = 0
        """Batches of this size since it was measured last."""
        self.patience = _TRY_AGAIN
        """Batches until it is tried again."""

    @property
    def wanted(self) -> bool:
        """Whether it needs to be measured (again)."""
        return self.samples < _FIRST_SAMPLES or self.unused >= self.patience

    def note(self, cost_s: float, other_s: float) -> None:
        """Record a measurement; the other way's cost tells when this one is to be tried again."""
        if self.unused >= self.patience:
            slower = cost_s > other_s
            self.patience = min(2 * self.patience, _LAST_TRY) if slower else _TRY_AGAIN
        self.unused = 0
        self.samples += 1
        if self.samples > _FIRST_SAMPLES:
            cost_s = min(cost_s, _OUTLIER * self.cost_s)
        if self.samples:
            self.cost_s += (cost_s - self.cost_s) * max(_WEIGHT, 1 / self.samples)


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
        self._alone[size].note(seconds / pages, self._divided[size].cost_s)

    def note_divided(self, pages: int, seconds: float, now: float, *, woke: bool) -> None:
        """Record what a divided batch took; one that woke a worker tells the price of that."""
        self._last = now
        size = min(pages.bit_length(), SIZES - 1)
        way = self._divided[size]
        if not woke:
            way.note(seconds / pages, self._alone[size].cost_s)
        elif way.samples > 0:
            extra_s = min(max(0.0, seconds - pages * way.cost_s), _OUTLIER * self._wake_s)
            self._wake_s += (extra_s - self._wake_s) * _WEIGHT
