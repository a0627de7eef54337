"""Resources: what the groups of one store share: pool, backing file, codecs, and the engine of now.

The engine can be changed at run time. What it takes to write with it stands in one object, `writer`,
so that a call which began with one engine ends with it.

Codecs have numbers of one byte, which stand in the entries (core/entries.pyx). Pages of an engine's codec are
restored, and counted, by what that engine has ready. With `isolate` that is its workers, while it is open.

Locks: none. Everything that has to change in one step does so in one call of the core.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING

import numpy as np

from batchzip.asynchronous import CallThreads
from batchzip.backend import is_native
from batchzip.core.coder import Coders
from batchzip.core.entries import Entries, Objects
from batchzip.core.table import IN_FILE, IN_POOL
from batchzip.engine import Engine, codec_of
from batchzip.errors import BadArgument, ClosedError
from batchzip.store.hysteresis import Hysteresis
from batchzip.store.writer import Writer
from batchzip.system.descriptors import open_to_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.codecs import Codec
    from batchzip.pool import Pool
    from batchzip.store.backing.backing_file import BackingFile
    from batchzip.system.lifetime import Owned

_MOST_ENGINES = 4
"""Engines that are kept for recompression: each has lanes, and a dictionary perhaps."""

_WORTH = 8
"""The pool is compacted when more than one in so many of its bytes could be given back."""


@contextlib.contextmanager
def unless_dropped(entries: Entries) -> Iterator[None]:
    """Leave a group alone that is dropped while something is done to all groups of a store."""
    try:
        yield
    except ClosedError:
        if not entries.closed:
            raise


class CleaningTurn:
    """A thread's turn to clean the backing file: over when it says so, or when its call is gone."""

    def __init__(self) -> None:
        self.over = False
        self.thread = threading.get_ident()


class Resources:
    """The shared parts of a store; no life cycle of its own."""

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        backing: BackingFile | None,
        *,
        max_batch: int,
        keep_incompressible: bool,
        accept_threshold_percent: int,
    ) -> None:
        self.page_size = engine.page_size
        self.max_batch = max_batch
        self.keep_incompressible = keep_incompressible
        self.pool = pool
        self.backing = backing
        zones = None if backing is None else backing.zones
        self.objects = Objects(pool.allocator, zones, engine.page_size)
        self.all_entries: dict[int, Entries] = {}
        """Those of all groups, by their `id()`."""
        self.threads = CallThreads()
        """What asyncio's calls block instead of the loop."""
        self._engines_of: dict[int, Engine] = {}
        self.writer = self.writer_of(engine, current=True)
        self.wake: Callable[[], None] = lambda: None
        """Called when a limit was met."""
        self.forget: Callable[[Owned], None] = lambda _: None
        """Called with a group that is closed."""
        self.accept_threshold_percent = accept_threshold_percent
        self.full = Hysteresis()
        self._engines: dict[Codec, Engine] = {}
        """Engines for recompression."""
        self.turns: list[weakref.ref[CleaningTurn]] = []
        """Who cleans the backing file, and then those who wait for it: see cleaning.py."""

    def writer_of(self, engine: Engine, *, current: bool = False) -> Writer:
        """Make what writes with an engine; its codec gets a number. Raise ClosedError.

        `current` says that most pages will have this number.
        """
        engine._refuse()  # noqa: SLF001 - at once, and not when it is first used
        if engine.page_size != self.page_size:
            raise BadArgument(
                f"the engine has pages of {engine.page_size} bytes, this store of {self.page_size}"
            )
        number = self._number(engine.codec)
        self._engines_of[number] = engine
        isolated = engine.backend.isolate
        self.objects.set_coders(
            number, None if isolated else engine.backend.coders, current=current
        )
        for entries in list(self.all_entries.values()):
            entries.note_codecs()
        writer = Writer(
            engine,
            number,
            self.objects,
            max_batch=self.max_batch,
            keep_incompressible=self.keep_incompressible,
        )
        weakref.finalize(writer, self.objects.let_go, number).atexit = False
        return writer

    def _number(self, codec: Codec) -> int:
        """Return the number of a codec, a new one if it has none, held."""
        objects = self.objects
        for number, known in enumerate(objects.numbered()):
            same = known is codec or (type(known) is type(codec) and known == codec)
            if same and objects.hold(number, known):
                return number
        return objects.add_codec(codec)

    def engine_of(self, number: int) -> Engine | None:
        """Return the engine that made pages of a number last, or None."""
        return self._engines_of.get(number)

    def coders_of(self, number: int) -> Coders:
        """Return what restores pages of a number in this process."""
        coders = self.objects.coders_of(number)
        if coders is None:  # an isolated engine's, which is closed by now
            coders = Coders(self.objects.codec(number), self.page_size)
            self.objects.set_coders(number, coders)
        return coders

    def second_writer(self, algorithm: str | Engine, parameters: dict[str, object]) -> Writer:
        """Make a writer for recompression; the last few engines that are made here are kept."""
        if isinstance(algorithm, Engine):
            if parameters:
                raise BadArgument("an engine brings its own parameters")
            return self.writer_of(algorithm)
        codec = codec_of(algorithm, **parameters)  # type: ignore[arg-type] # it checks them
        engine = self._engines.get(codec)
        if engine is None or engine.closed:
            made = Engine(codec, backend=self._backend_for(codec), page_size=self.page_size)
            if engine is not None:
                self._engines.pop(codec, None)
            engine = self._engines.setdefault(codec, made)
            if engine is not made:  # another thread was faster
                made.close()
        writer = self.writer_of(engine)
        for old in list(self._engines)[:-_MOST_ENGINES]:
            self._let_go(self._engines.pop(old, None))
        return writer

    def _let_go(self, engine: Engine | None) -> None:
        """Let go of an engine made here; it ends when nobody uses it any more. Its pages stay readable."""
        for number, other in list(self._engines_of.items()):
            if other is engine:
                self._engines_of.pop(number, None)

    def _backend_for(self, codec: Codec) -> str:
        """Return the backend of an engine that compresses again: that of the first if it can."""
        name = self.writer.engine.backend.name
        return "auto" if name == "threads" and not is_native(codec) else name

    def compact(self) -> None:
        """Compact the pool if an eighth of it is holes: less is not worth the copying."""
        pool = self.pool
        while pool.fragmented_bytes * _WORTH > pool.held_bytes:
            if not pool.compact():
                return

    def descriptors(self) -> list[int]:
        """Return descriptors of objects, words and, if it has one, the backing file, to read only; the caller's."""
        found: list[int] = []
        try:
            found += map(open_to_read, self.pool.descriptors)
        except BaseException:
            for fd in found:
                os.close(fd)
            raise
        if self.backing is not None and self.backing.descriptor is not None:
            with contextlib.suppress(OSError):  # then it is read through the owner
                found.append(open_to_read(self.backing.descriptor))
        return found

    def current_turn(self) -> CleaningTurn | None:
        """Return the first turn that is not over; those before it go."""
        for each in list(self.turns):
            turn = each()
            if turn is not None and not turn.over:
                return turn
            with contextlib.suppress(ValueError):  # another thread was faster
                self.turns.remove(each)
        return None

    def in_a_call_of_the_file(self) -> bool:
        """Return whether this is a handler or finalizer in the middle of a call that others may wait for.

        It must not wait for other threads.
        """
        turn = self.current_turn()
        cleans = turn is not None and turn.thread == threading.get_ident()
        return cleans or (self.backing is not None and self.backing.is_locked_here)

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold; nobody may be changing anything."""
        self.pool.check_invariants()
        all_entries = list(self.all_entries.values())
        for entries in all_entries:
            fault = entries.fault()
            if fault is not None:
                raise AssertionError(fault)
        owned = np.concatenate(
            [
                np.frombuffer(entries.values(kind), np.uint64)
                for entries in all_entries
                for kind in IN_POOL
            ]
        )
        if not np.array_equal(np.sort(owned), np.sort(self.pool.handles())):
            raise AssertionError("the pool's objects and the entries do not pair up")
        if self.backing is not None:
            live = [
                np.frombuffer(entries.values(kind), np.uint64)
                for entries in all_entries
                for kind in IN_FILE
            ]
            self.backing.check_invariants(np.concatenate(live))

    def close(self) -> None:
        """Close what was made here; called once nothing uses it any more."""
        for entries in list(self.all_entries.values()):
            entries.close()
        self.writer.close()
        for engine in list(self._engines.values()):
            engine.close()
        self.pool.close()
        if self.backing is not None:
            self.backing.close()
