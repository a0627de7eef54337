"""A store that changes in every way there is, and processes that read it meanwhile."""

import multiprocessing
import random
from pathlib import Path

from support import share_readers
from support.share_readers import SIZE, Versions, gone, page

from batchzip import Engine, SwapStore

spawn = multiprocessing.get_context("spawn")


class Churn:
    """Changes a store of self-telling pages in every way there is."""

    def __init__(self, store: SwapStore, versions: Versions, count: int) -> None:
        self.store = store
        self.versions = versions
        self.count = count
        self.rng = random.Random(5)
        self.engines = [store.engine]

    def step(self) -> None:
        what = self.rng.random()
        index = self.rng.randrange(self.count if what < 0.3 else 8)
        count = min(self.rng.randrange(1, 9), self.count - index)
        if what < 0.8:
            self.put(index, count)
        elif what < 0.85:
            self.store.writeback(self.rng.sample(range(self.count), 8))
        elif what < 0.9:
            self.store.compact()
        elif what < 0.93:
            self.store.recompress("zstd", min_length=200)
        elif what < 0.96:
            self.store.engine = self.rng.choice(self.engines)
        else:
            self.store.max_pool_bytes = self.rng.choice([64, 256, 4096]) * SIZE
            self.store.shrink()

    def put(self, first: int, count: int) -> None:
        """Give each of these indices its next version, which for some is none at all."""
        versions = (self.versions.least[first : first + count] + 1).tolist()
        where = range(first, first + count)
        self.versions.most[first : first + count] = versions
        if any(gone(version) for version in versions):
            for index, version in zip(where, versions, strict=True):
                if gone(version):
                    self.take(index)
                else:
                    self.store.store(index, page(index, version))
        else:
            self.store.store(first, [page(*pair) for pair in zip(where, versions, strict=True)])
        self.versions.least[first : first + count] = versions

    def take(self, index: int) -> None:
        if self.rng.random() < 0.5 and index in self.store:
            self.store.load(index, exclusive=True)
        else:
            self.store.invalidate(index)


def churn(tmp_path: Path, engine: Engine, seconds: float, readers: int) -> tuple[int, int]:
    """Churn beside readers. Return the numbers of reads and changes. Fail at a wrong page."""
    count = 600
    path = tmp_path / "versions"
    path.write_bytes(bytes(16 * count))
    versions = Versions(path, count)
    changes = 0
    with (
        Engine("zstd", backend="sequential") as second,
        Engine("lz4", backend="sequential", shuffle=2) as third,
        SwapStore(engine, backing=tmp_path, max_pool_bytes=256 * SIZE) as store,
    ):
        pipes, processes = [], []
        for seed in range(readers):
            here, there = spawn.Pipe(duplex=False)
            arguments = (store.share(), path, count, seconds, seed, there)
            process = spawn.Process(target=share_readers.read_for, args=arguments)
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        work = Churn(store, versions, count)
        work.engines += [second, third]
        while any(process.is_alive() for process in processes) and not any(
            pipe.poll() for pipe in pipes
        ):
            for _ in range(20):
                work.step()
                changes += 1
        results = [pipe.recv() for pipe in pipes]
        for process, pipe in zip(processes, pipes, strict=True):
            process.join()
            process.close()
            pipe.close()
        store.check_invariants()
        assert store.check().ok
    failures = [line for _, wrong in results for line in wrong]
    if failures:  # no assert: pytest explains those of test modules only
        raise AssertionError("\n".join(failures))
    return sum(reads for reads, _ in results), changes
