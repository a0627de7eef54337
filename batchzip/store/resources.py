"""Resources: what the groups of one store share: pool, backing file, codecs and current engine.

The engine can be replaced at run time. All that is needed to write with an engine is in one object,
its Writer. So a call that began with one engine ends with it.

Each codec has a number of one byte, which is kept in the entries (core/entries.pyx). The pages of a
codec are restored by the engine that has it, and count in that engine's statistics. An engine with
`isolate` restores them in its workers, while it is open.

Locks: none. Changes that must be atomic are one call of the core.
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
"""Engines kept for recompression. Each has lanes, and may have a dictionary."""

_WORTH = 8
"""The pool is compacted when more than 1/_WORTH of its bytes are holes."""


@contextlib.contextmanager
def unless_dropped(entries: Entries) -> Iterator[None]:
    """Skip a group that is dropped while a call works on all groups of a store."""
    try:
        yield
    except ClosedError:
        if not entries.closed:
            raise


class CleaningTurn:
    """A thread's turn to clean the backing file. It ends with `over`, or when it is dropped."""

    def __init__(self) -> None:
        self.over = False
        self.thread = threading.get_ident()


class Resources:
    """The parts of a store that its groups share. The store opens and closes them."""

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
        """The Entries of all groups by their `id()`."""
        self.threads = CallThreads()
        """Threads for the store's async methods, so that they do not block the event loop."""
        self._engines_of: dict[int, Engine] = {}
        self.writer = self.writer_of(engine, current=True)
        self.wake: Callable[[], None] = lambda: None
        """Called when a limit was reached."""
        self.forget: Callable[[Owned], None] = lambda _: None
        """Called with each group that is closed."""
        self.accept_threshold_percent = accept_threshold_percent
        self.full = Hysteresis()
        self._engines: dict[Codec, Engine] = {}
        """Engines for recompression."""
        self.turns: list[weakref.ref[CleaningTurn]] = []
        """The turn of the thread that cleans the backing file, then those that wait."""

    def writer_of(self, engine: Engine, *, current: bool = False) -> Writer:
        """Return a Writer that uses an engine, after giving the engine's codec a number.

        `current` hints that most pages will have this number. Raise ClosedError if the engine is
        closed, and BadArgument if its page size is not the store's.
        """
        engine._refuse()  # noqa: SLF001 - raise now, not at the first use
        if engine.page_size != self.page_size:
            raise BadArgument(
                f"the engine must have pages of {self.page_size} bytes, not {engine.page_size}"
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
            max_batch=self.max_batch,
            keep_incompressible=self.keep_incompressible,
        )
        weakref.finalize(writer, self.objects.let_go, number).atexit = False
        return writer

    def _number(self, codec: Codec) -> int:
        """Return the number of a codec, or a new one, with a reference held on it."""
        objects = self.objects
        for number, known in enumerate(objects.numbered()):
            same = known is codec or (type(known) is type(codec) and known == codec)
            if same and objects.hold(number, known):
                return number
        return objects.add_codec(codec)

    def engine_of(self, number: int) -> Engine | None:
        """Return the last engine that had the codec of this number, or None."""
        return self._engines_of.get(number)

    def coders_of(self, number: int) -> Coders:
        """Return the Coders that restore pages of a codec in this process."""
        coders = self.objects.coders_of(number)
        if coders is None:  # of an isolated engine, which has been closed
            coders = Coders(self.objects.codec(number), self.page_size)
            self.objects.set_coders(number, coders)
        return coders

    def second_writer(self, algorithm: str | Engine, parameters: dict[str, object]) -> Writer:
        """Return a writer for recompression. The last few engines created here are kept."""
        if isinstance(algorithm, Engine):
            if parameters:
                raise BadArgument(
                    "an engine has its own parameters: give an algorithm's name, or no parameters"
                )
            return self.writer_of(algorithm)
        codec = codec_of(algorithm, **parameters)  # type: ignore[arg-type] # it checks them
        engine = self._engines.get(codec)
        if engine is None or engine.closed:
            made = Engine(codec, backend=self._backend_for(codec), page_size=self.page_size)
            if engine is not None:
                self._engines.pop(codec, None)
            engine = self._engines.setdefault(codec, made)
            if engine is not made:  # another thread was first
                made.close()
        writer = self.writer_of(engine)
        for old in list(self._engines)[:-_MOST_ENGINES]:
            self._forget_engine(self._engines.pop(old, None))
        return writer

    def _forget_engine(self, engine: Engine | None) -> None:
        """Drop the reference to an engine created here. Its pages stay readable."""
        for number, other in list(self._engines_of.items()):
            if other is engine:
                self._engines_of.pop(number, None)

    def _backend_for(self, codec: Codec) -> str:
        """Return the backend for recompression: the current engine's, if it can run the codec."""
        name = self.writer.engine.backend.name
        return "auto" if name == "threads" and not is_native(codec) else name

    def compact(self) -> None:
        """Compact the pool while more than an eighth of it is holes. Less is not worth copying."""
        pool = self.pool
        while pool.fragmented_bytes * _WORTH > pool.held_bytes:
            if not pool.compact():
                return

    def descriptors(self) -> list[int]:
        """Return read-only descriptors of objects, words and, if there is one, the backing file.

        The caller owns them.
        """
        found: list[int] = []
        try:
            found += map(open_to_read, self.pool.descriptors)
        except BaseException:
            for fd in found:
                os.close(fd)
            raise
        if self.backing is not None and self.backing.descriptor is not None:
            with contextlib.suppress(OSError):  # without it, readers ask the owner for its bytes
                found.append(open_to_read(self.backing.descriptor))
        return found

    def current_turn(self) -> CleaningTurn | None:
        """Return the first turn that is not over, and remove those before it."""
        for each in list(self.turns):
            turn = each()
            if turn is not None and not turn.over:
                return turn
            with contextlib.suppress(ValueError):  # another thread removed it
                self.turns.remove(each)
        return None

    def in_a_call_of_the_file(self) -> bool:
        """Return whether this thread is inside a call of the file that others may wait for.

        That is so in a signal handler or finalizer that interrupted the call. It must not wait for
        other threads.
        """
        turn = self.current_turn()
        cleans = turn is not None and turn.thread == threading.get_ident()
        return cleans or (self.backing is not None and self.backing.is_locked_here)

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant does not hold. No thread may change anything."""
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
            raise AssertionError("the pool's objects and those of the entries differ")
        if self.backing is not None:
            live = [
                np.frombuffer(entries.values(kind), np.uint64)
                for entries in all_entries
                for kind in IN_FILE
            ]
            self.backing.check_invariants(np.concatenate(live))

    def close(self) -> None:
        """Close all parts. The store calls this once nothing uses them."""
        for entries in list(self.all_entries.values()):
            entries.close()
        self.writer.close()
        for engine in list(self._engines.values()):
            engine.close()
        self.pool.close()
        if self.backing is not None:
            self.backing.close()
