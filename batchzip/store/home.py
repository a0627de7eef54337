"""Home: what the groups of one store share: lock, pool, backing file, codecs, and the engine of now.

The engine can be changed at run time. What it takes to write with it stands in one object, `writer`,
so that a call which began with one engine ends with it.

Lock order: `lock`, then the pool's or the backing file's. None is held while an engine works or a file is
read or written.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from batchzip.asynchronous import Threads
from batchzip.backend import is_native
from batchzip.codecs import make_codec
from batchzip.descriptors import above_standard
from batchzip.engine import Engine
from batchzip.errors import BadArgument
from batchzip.store.codec_table import CodecTable
from batchzip.store.folio import FolioWriter, checksum
from batchzip.store.hysteresis import Hysteresis
from batchzip.store.ledger import Objects
from batchzip.store.page_table import BACKED, SAME_FILLED
from batchzip.store.restore import Restorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.pool import Pool
    from batchzip.store.backing_file import BackingFile
    from batchzip.store.ledger import Ledger

Result = TypeVar("Result")


_WORTH = 8
"""The pool is compacted when more than one in so many of its bytes could be given back."""


class Home:
    """The shared parts of a store; no life cycle of its own."""

    def __init__(
        self,
        engine: Engine,
        pool: Pool,
        backing: BackingFile | None,
        *,
        max_batch: int,
        keep_incompressible: bool,
    ) -> None:
        self.lock = threading.Lock()
        self.page_size = engine.page_size
        self.max_batch = max_batch
        self.keep_incompressible = keep_incompressible
        self.objects = Objects(pool, backing)
        self.codecs = CodecTable(engine.page_size)
        self.restorer = Restorer(self.codecs)
        self.threads = Threads()
        """What asyncio's calls block instead of the loop."""
        self._writers: weakref.WeakSet[FolioWriter] = weakref.WeakSet()
        self.writer = self.writer_of(engine)
        self.wake: Callable[[], None] = lambda: None
        """Called, outside the lock, when a limit was met."""
        self.accept_threshold_percent = 90
        self.full = Hysteresis()
        self._engines: dict[tuple[object, ...], Engine] = {}
        """Engines for recompression, by algorithm and parameters."""
        self._engines_lock = threading.Lock()
        self.cleaning = threading.Lock()
        """Held by who cleans the backing file."""

    def writer_of(self, engine: Engine) -> FolioWriter:
        """Make what writes with an engine; its codec gets a number. Raises ClosedError."""
        engine._refuse()  # noqa: SLF001 - at once, and not when it is first used
        if engine.page_size != self.page_size:
            raise BadArgument(
                f"the engine has pages of {engine.page_size} bytes, this store of {self.page_size}"
            )
        with self.lock:
            number = self.codecs.number_of(engine.codec, self._numbers())
            self.codecs.adopt(number, engine)
            for ledger in self.objects.ledgers:
                ledger.table.note_codecs(self.codecs.given)
            writer = FolioWriter(
                engine,
                number,
                self.objects,
                max_batch=self.max_batch,
                keep_incompressible=self.keep_incompressible,
            )
            self._writers.add(writer)
        return writer

    def second_writer(self, algorithm: str | Engine, parameters: dict[str, object]) -> FolioWriter:
        """Make a writer for recompression; an engine made here is kept until the store is closed."""
        if isinstance(algorithm, Engine):
            if parameters:
                raise BadArgument("an engine brings its own parameters")
            return self.writer_of(algorithm)
        key = algorithm, tuple(sorted(parameters.items()))
        with self._engines_lock:
            engine = self._engines.get(key)
            if engine is None or engine.closed:
                engine = self._engines[key] = Engine(
                    algorithm,
                    backend=_backend_for(algorithm, parameters, self.writer.engine),
                    page_size=self.page_size,
                    **parameters,  # type: ignore[arg-type] # the engine checks them
                )
        return self.writer_of(engine)

    def change(
        self,
        ledger: Ledger,
        first: int,
        count: int,
        body: Callable[[], Result],
        *,
        harmless: tuple[type[Exception], ...] = (),
    ) -> Result:
        """Run `body`, which changes these indices of a ledger; with a count of 0, objects only.

        Cut short anywhere, the indices hold nothing and all else is whole; an error that is `harmless`
        is one before which nothing was changed.
        """
        outer = ledger.begin(first, count)
        try:
            result = body()
        except harmless:
            ledger.end(outer)
            raise
        except BaseException:
            with self.lock:
                ledger.recover(first, count)
            ledger.end(outer)
            raise
        ledger.end(outer)
        return result

    def compact(self) -> None:
        """Compact the pool if an eighth of it is holes: less is not worth the copying."""
        pool = self.objects.pool
        while pool.fragmented_bytes * _WORTH > pool.held_bytes:
            if not pool.compact():
                return

    def descriptors(self) -> list[int]:
        """Descriptors of objects, words and, if it has one, the backing file, to read only; the caller's."""
        pool, backing = self.objects.pool, self.objects.backing
        found: list[int] = []
        try:
            found += map(_open_to_read, pool.descriptors)
        except BaseException:
            for fd in found:
                os.close(fd)
            raise
        if backing is not None and backing.descriptor is not None:
            with contextlib.suppress(OSError):  # then it is read through the owner
                found.append(_open_to_read(backing.descriptor))
        return found

    def close(self) -> None:
        """Close what was made here; called once nothing uses it any more."""
        for ledger in self.objects.ledgers:
            ledger.table.close()
        for engine in self._engines.values():
            engine.close()
        self.objects.pool.close()
        if self.objects.backing is not None:
            self.objects.backing.close()

    def _numbers(self) -> set[int]:
        """Numbers of codecs that entries have, or that a write under way may give."""
        found = {writer.number for writer in self._writers}
        for ledger in self.objects.ledgers:
            found.update(np.unique(ledger.table.entries["codec"]).tolist())
        return found

    def pooled(self, entries: np.ndarray) -> list[bytes]:
        """Copy the bytes of entries in the pool; called under the lock."""
        return self.objects.pool.copy_many(entries["value"])

    def fetch(self, entries: np.ndarray, pooled: list[bytes]) -> list[bytes]:
        """Bytes of the entries that are not same-filled; those of the pool are there already.

        Called outside the lock: what an entry refers to in the file may be another's by now, which its
        checksum tells. Raises OSError.
        """
        kinds = entries["kind"]
        backed = kinds == BACKED
        backing = self.objects.backing
        if backing is None or not backed.any():
            return pooled
        of_pool, of_file = iter(pooled), iter(backing.read(entries["value"][backed]))
        held = kinds[kinds != SAME_FILLED].tolist()
        return [next(of_file if kind == BACKED else of_pool) for kind in held]

    @staticmethod
    def intact(entries: np.ndarray, stored: list[bytes]) -> np.ndarray:
        """Tell which of the stored bytes are what the entries say."""
        told = zip(stored, entries["codec"].tolist(), entries["checksum"].tolist(), strict=True)
        return np.array([checksum(data, codec) == check for data, codec, check in told], np.bool_)


def _open_to_read(fd: int) -> int:
    """Open what a descriptor refers to once more, so that who is given it cannot write."""
    with above_standard():
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def _backend_for(algorithm: str, parameters: dict[str, object], engine: Engine) -> str:
    """Return the backend of an engine that compresses again: that of the first if it can."""
    name = engine.backend.name
    if name == "threads" and not is_native(make_codec(algorithm, **parameters)):
        return "auto"
    return name
