"""A store that is used for long grows in nothing: memory, descriptors, threads, held ÷ stored."""

from __future__ import annotations

import random
import statistics
import threading
import time
from typing import TYPE_CHECKING

import pytest
from stress.test_soak import held
from support.faulty_file import FaultyFile
from support.store_pages import noise, text, word

from batchzip import CompressBatch, CompressedMapping, Engine, PageNotStored, SwapStore, attach

if TYPE_CHECKING:
    from support.reporting import Report

pytestmark = pytest.mark.stress

THREADS = 2
INDICES, KEYS, FOLIO = 4096, 400, 16
SAMPLE_S = 0.5
SAMPLES = 720
"""Number of samples that a long run keeps. The memory of many more would look like growth."""
DAY_S = 86_400
LONG_S = 1800.0
"""From here on what is left of a trend is not chance, and may be projected."""

MOST = {"descriptors": 8, "threads": 2, "KiB": 48 << 10, "held per cent": 15}
"""How much more of each there may be at most in the second half than in the first."""

MOST_PER_DAY = {"descriptors": 8, "threads": 2, "KiB": 192 << 10, "held per cent": 15}
"""How much more of each there may be after a day, by the trend of a long run's second half."""


class Use:
    """Threads that use one store as a service does, each in its own indices and keys."""

    def __init__(self, store: SwapStore, mapping: CompressedMapping, seed: int) -> None:
        self._store, self._mapping, self._seed = store, mapping, seed
        self._over = threading.Event()
        self._failures: list[BaseException] = []
        self.calls = [0] * THREADS

    def run(self, seconds: float) -> list[tuple[float, dict[str, float]]]:
        """Use it for so long. Return what there was from time to time."""
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        samples = []
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < seconds and not self._failures:
            self._over.wait(max(SAMPLE_S, seconds / SAMPLES))
            samples.append((passed, self._sample()))
        self._over.set()
        for thread in threads:
            thread.join()
        for failure in self._failures:
            raise failure
        return samples

    def _sample(self) -> dict[str, float]:
        counters = self._store.counters
        stored = max(1, self._store.compressed_bytes)
        found = {"held per cent": 100 * counters.pool_total_size / stored}
        return found | held()

    def _work(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        model: dict[int, int] = {}
        values: dict[int, int] = {}
        try:
            while not self._over.is_set():
                rng.choice((self._store_some, self._store_some, self._load_some, self._drop_some))(
                    rng, number, model
                )
                self._use_values(rng, number, values)
                if rng.random() < 0.02:
                    self._look_elsewhere(number, model)
                self.calls[number] += 1
        except BaseException as failure:  # noqa: BLE001 - raised in the main thread
            self._failures.append(failure)

    @staticmethod
    def _page(version: int) -> bytes:
        return (text, text, noise, word)[version % 4](version)

    def _store_some(self, rng: random.Random, number: int, model: dict[int, int]) -> None:
        first = number * INDICES + rng.randrange(INDICES - FOLIO)
        versions = [rng.randrange(1 << 12) for _ in range(rng.randint(1, FOLIO))]
        self._store.store(first, [self._page(version) for version in versions])
        model.update(enumerate(versions, first))

    def _load_some(self, rng: random.Random, _: int, model: dict[int, int]) -> None:
        for index in rng.sample(list(model), min(8, len(model))):
            assert self._store.load(index) == self._page(model[index])

    def _drop_some(self, rng: random.Random, number: int, model: dict[int, int]) -> None:
        first = number * INDICES + rng.randrange(INDICES - 3 * FOLIO)
        self._store.invalidate(first, 3 * FOLIO)
        for index in range(first, first + 3 * FOLIO):
            model.pop(index, None)

    def _use_values(self, rng: random.Random, number: int, values: dict[int, int]) -> None:
        key, version = rng.randrange(KEYS), rng.randrange(1 << 12)
        if rng.random() < 0.2:
            self._mapping.pop((number, key), None)
            values.pop(key, None)
            return
        self._mapping[number, key] = self._page(version) * rng.randint(1, 3)
        values[key] = version
        other = rng.choice(list(values))
        assert self._mapping[number, other].startswith(self._page(values[other]))

    def _look_elsewhere(self, number: int, model: dict[int, int]) -> None:
        """Open a reader, and an engine, and close them."""
        with attach(self._store.share()) as view:
            for index, version in list(model.items())[:4]:
                assert view.load(index) == self._page(version)
            with pytest.raises(PageNotStored):
                view.load(INDICES * (THREADS + 1 + number))
        with Engine("zstd", level=1, backend="threads", workers=1) as engine:
            batch = CompressBatch([self._page(number)] * 8)
            engine.compress(batch)
            assert not batch.has_errors


def trend_per_day(samples: list[tuple[float, dict[str, float]]], name: str) -> float:
    """Return how much more of something there is after a day, by the second half of the samples."""
    times, values = zip(
        *((at, sample[name]) for at, sample in samples[len(samples) // 2 :]), strict=True
    )
    return statistics.linear_regression(times, values).slope * DAY_S


def test_a_store_in_use_grows_in_nothing(stress_s: float, seed: int, report: Report) -> None:
    file = FaultyFile()
    with (
        Engine("lz4", backend="threads", workers=1) as engine,
        SwapStore(engine, backing=file, max_pool_bytes=8 << 20) as store,
        CompressedMapping(store, serializer="bytes") as mapping,
    ):
        use = Use(store, mapping, seed)
        samples = use.run(stress_s)
        store.check_invariants()
        half = len(samples) // 2
        for name, most in MOST.items():
            first, second = (
                max(sample[name] for _, sample in part) for part in (samples[:half], samples[half:])
            )
            assert second - first <= most, (name, first, second)
        per_day = {name: round(trend_per_day(samples, name)) for name in MOST}
        if stress_s >= LONG_S:
            assert all(per_day[name] <= MOST_PER_DAY[name] for name in MOST), per_day
        now = samples[-1][1]
    projected = ", ".join(f"{name} {amount:+,}" for name, amount in per_day.items())
    report(
        f"growth: {sum(use.calls)} calls in {stress_s:g} s, held ÷ stored "
        f"{now['held per cent'] / 100:.2f}, RSS {now['KiB'] / 1024:.0f} MiB; by the trend of the "
        f"second half, after a day: {projected}",
        seconds=int(stress_s),
    )
