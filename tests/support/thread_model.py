"""What one thread has in a store, and must find there, whatever is cut short.

A `Model` has a dict for each of two groups that nobody else touches. An operation that raises
leaves its indices in doubt. `resolve` looks at what became of them, and fails if that is not
allowed.
"""

from __future__ import annotations

import inspect
import random
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Self

from support.store_pages import noise, text, word

from batchzip import PageNotStored, StoreRejected
from batchzip.store.storer import Storer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from batchzip import Engine, SwapStore
    from batchzip.store.group import Group

SIZE = 512
INDICES = 48
FOLIO = 12


class Alarm(Exception):
    """What a signal handler of a program raises."""


INTERRUPTS = (KeyboardInterrupt, SystemExit, Alarm)
"""What interrupts raise here."""

Pages = list[bytes | None]
"""What indices hold; None: nothing."""

_source, _line = inspect.getsourcelines(Storer.store)
_BEGUN = _line + next(at for at, line in enumerate(_source) if line.strip() == "try:")


def make_page(seed: int) -> bytes:
    return (text, text, noise, word)[seed % 4](seed, SIZE)


def had_begun(error: BaseException) -> bool:
    """Whether a store had begun when it was cut short: before, its indices keep what they had."""
    at: TracebackType | None = error.__traceback__
    while at is not None:
        if at.tb_frame.f_code is Storer.store.__code__ and at.tb_lineno > _BEGUN:
            return True
        at = at.tb_next
    return False


class Model:
    """What one thread does with its two groups, and what they hold. `name` is its alone."""

    def __init__(self, store: SwapStore, name: str, seed: int) -> None:
        self.store = store
        self.random = random.Random(f"{name} {seed}")
        self.pages: dict[str, dict[int, bytes]] = {f"{name} one": {}, f"{name} two": {}}
        self.version = self.random.randrange(1 << 30)
        self.second: str | Engine = "zstd"
        self._doubt: tuple[str, range, list[Pages]] | None = None
        self._dropped = ""

    def group(self, name: str) -> Group:
        return self.store.group(name)

    def folio(self) -> tuple[str, range]:
        """Choose a group and some indices of it."""
        count = self.random.randrange(1, FOLIO + 1)
        first = self.random.randrange(INDICES - count + 1)
        return self.random.choice(list(self.pages)), range(first, first + count)

    def held(self, name: str, folio: range) -> Pages:
        return [self.pages[name].get(index) for index in folio]

    def note(self, name: str, folio: range, pages: Pages) -> None:
        for index, page in zip(folio, pages, strict=True):
            if page is None:
                self.pages[name].pop(index, None)
            else:
                self.pages[name][index] = page

    # Operations.

    def store_some(self) -> None:
        name, folio = self.folio()
        self.version += len(folio)
        new: Pages = [make_page(self.version + at) for at in range(len(folio))]
        self._doubt = name, folio, [new, [None] * len(folio)]
        try:
            self.group(name).store(folio[0], [page for page in new if page is not None])
        except StoreRejected:
            new = [None] * len(folio)
        self.done(name, folio, new)

    def invalidate(self) -> None:
        name, folio = self.folio()
        gone: Pages = [None] * len(folio)
        self._doubt = name, folio, [gone, self.held(name, folio)]
        count = self.group(name).invalidate(folio[0], len(folio))
        assert count == len(folio) - self.held(name, folio).count(None)
        self.done(name, folio, gone)

    def load(self) -> None:
        name, folio = self.folio()
        expected = self.pages[name].get(folio[0])
        try:
            page = self.group(name).load(folio[0])
        except PageNotStored:
            assert expected is None
        else:
            assert page == expected

    def load_many(self) -> None:
        name = self.random.choice(list(self.pages))
        indices = [at for at in self.pages[name] if self.random.random() < 0.5]
        if indices:
            found = self.group(name).load_many(indices)
            assert found.tobytes() == b"".join(self.pages[name][at] for at in indices)

    def take(self) -> None:
        name, folio = self.folio()
        folio = folio[:1]
        expected = self.pages[name].get(folio[0])
        self._doubt = name, folio, [[expected], [None]]
        try:
            assert self.group(name).load(folio[0], exclusive=True) == expected
        except PageNotStored:
            assert expected is None
        self.done(name, folio, [None])

    def take_many(self) -> None:
        name, folio = self.folio()
        pages = self.held(name, folio)
        if None in pages:
            return
        gone: Pages = [None] * len(folio)
        self._doubt = name, folio, [pages, gone]
        found = self.group(name).load_many(folio, exclusive=True)
        assert found.tobytes() == b"".join(page for page in pages if page is not None)
        self.done(name, folio, gone)

    def write_back(self) -> None:
        name, folio = self.folio()
        self.group(name).writeback(folio)
        self.group(name).writeback(3)

    def recompress(self) -> None:
        name, _ = self.folio()
        self.group(name).recompress(self.second)

    def drop(self) -> None:
        name, _ = self.folio()
        self.group(name)
        self._dropped = name
        self.store.drop_group(name)
        self.pages[name].clear()
        self._dropped = ""

    def clear(self) -> None:
        """Forget all pages of both groups: zones of the file go, and its end is cut off."""
        for name, pages in self.pages.items():
            folio = range(INDICES)
            gone: Pages = [None] * INDICES
            self._doubt = name, folio, [gone, self.held(name, folio)]
            assert self.group(name).invalidate(0, INDICES) == len(pages)
            self.done(name, folio, gone)

    def compact(self) -> None:
        self.store.compact()

    def shrink(self) -> None:
        self.store.shrink()

    def look(self) -> None:
        assert self.store.check().ok
        assert self.store.counters.decompress_fail == 0
        self.store.status()

    OPERATIONS: tuple[tuple[str, int], ...] = (
        ("store_some", 10),
        ("load", 6),
        ("load_many", 4),
        ("invalidate", 2),
        ("take", 3),
        ("take_many", 2),
        ("write_back", 3),
        ("recompress", 1),
        ("drop", 1),
        ("clear", 1),
        ("compact", 1),
        ("shrink", 1),
    )

    def step(self) -> None:
        """Do something at random."""
        names, weights = zip(*self.OPERATIONS, strict=True)
        work: Callable[[], None] = getattr(self, self.random.choices(names, weights)[0])
        work()

    # What was cut short.

    def done(self, name: str, folio: range, pages: Pages) -> None:
        """Note what an operation that came to its end has left."""
        self.note(name, folio, pages)
        self._doubt = None

    def resolve(self, error: BaseException) -> None:
        """Find what became of an operation that ended with an error which it does not foresee.

        Where looking fails, too, it can be called again.
        """
        if self._dropped and not len(self.store.group(self._dropped)):
            self.pages[self._dropped].clear()
        self._dropped = ""
        if self._doubt is None:
            return
        name, folio, outcomes = self._doubt
        if not had_begun(error):
            outcomes = [*outcomes, self.held(name, folio)]
        found = [_load(self.group(name), index) for index in folio]
        assert found in outcomes, f"{name} {folio}: neither whole nor empty after {error!r}"
        self.done(name, folio, found)

    def check(self) -> None:
        """Look at everything."""
        for name, pages in self.pages.items():
            group = self.group(name)
            assert len(group) == len(pages)
            for index in range(INDICES):
                assert _load(group, index) == pages.get(index), f"{name}: index {index}"


def _load(group: Group, index: int) -> bytes | None:
    try:
        return group.load(index)
    except PageNotStored:
        assert index not in group
        return None


class Beside:
    """Models that work in threads of their own, while the code in this context makes faults.

    Each makes `steps` steps, and looks at all of its pages now and then. `faults` are the errors
    that faults raise. Any other is raised at the end.
    """

    def __init__(
        self,
        store: SwapStore,
        steps: int,
        faults: tuple[type[BaseException], ...],
        threads: int = 3,
    ) -> None:
        self.met = 0
        """Faults that came through to a caller."""
        self._faults = faults
        self._steps = steps
        self._failures: list[BaseException] = []
        models = [Model(store, f"thread {number}", steps) for number in range(threads)]
        self._threads = [threading.Thread(target=self._work, args=(one,)) for one in models]

    def __enter__(self) -> Self:
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(2e-4)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()
        sys.setswitchinterval(self._interval)
        if self._failures:
            raise self._failures[0]

    def are_at_work(self, pause_s: float) -> bool:
        """Wait a moment. Return whether all threads are still at work."""
        time.sleep(pause_s)
        return all(thread.is_alive() for thread in self._threads)

    def _work(self, model: Model) -> None:
        try:
            for step in range(self._steps):
                error = self._do(model.step)
                while error is not None:
                    first, error = error, self._do(partial(model.resolve, error))
                    error = first if error is not None else None
                while step % 50 == 0 and self._do(model.check) is not None:
                    pass
        except BaseException as error:  # noqa: BLE001 - raised again by __exit__
            self._failures.append(error)

    def _do(self, work: Callable[[], None]) -> BaseException | None:
        try:
            work()
        except AssertionError:
            raise
        except self._faults as error:
            self.met += 1
            return error
        return None
