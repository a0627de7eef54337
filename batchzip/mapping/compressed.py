"""CompressedMapping: a dictionary whose values are kept compressed in a store.

    m[key] = value ─▶ Keys ─▶ serializer ─▶ parts ─▶ one, up to 64 KiB ─▶ Records: one call
                                                  ├▶ larger            ─▶ Records: chunks
                                                  └▶ larger, and the codec runs elsewhere
                                                       ─▶ Pages        ─▶ Records: their indices
    m[key]         ─▶ Keys ─▶ Records ─▶ bytes, or Pages ─▶ serializer ─▶ the value
    full           ─▶ Room: refuse, move cold values to the backing file, or evict them

The core keeps the keys, entries and objects of a mapping (core/records.pyx). Each step there is
atomic: a key has either its old value or its new one. An operation that fails or is interrupted
leaves the old value.

Two designs were rejected. The mapping does not hand out views of the pool. It does not hold a lock
across a lookup and a change, because a key's `__eq__`, a serializer, or a finalizer that runs
between two lines may call the mapping, or wait for a thread that does.

Locks: none. A value is read before it is removed. If another thread replaced it in the meantime,
the new value is read.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import weakref
from collections.abc import ItemsView, Iterable, Mapping, MutableMapping, ValuesView
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from batchzip.arguments.checks import as_limit, as_positive, check_kind
from batchzip.core.chunks import MOST_CHUNKED
from batchzip.core.coder import Coders, most_value_bytes
from batchzip.core.gather import gather
from batchzip.core.keys import Opaque
from batchzip.core.latency import GET, PUT
from batchzip.core.records import MISSING, Found, LargeValue, Records, Timed, now_ns
from batchzip.engine import Engine
from batchzip.errors import (
    BadArgument,
    CorruptPage,
    CorruptValue,
    PageError,
    StoreRejected,
    UnreadableValue,
)
from batchzip.mapping.dictionary import Trainer, with_dictionary
from batchzip.mapping.figures import MappingStatistics, MemoryUsage, dict_bytes
from batchzip.mapping.keys import Key, Keys
from batchzip.mapping.pages import Pages
from batchzip.mapping.room import Room
from batchzip.mapping.serializers import packer_of
from batchzip.store.loader import read
from batchzip.store.swap_store import SwapStore
from batchzip.system.lifetime import Closing
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from batchzip.arguments.buffers import Flat
    from batchzip.core.ring import Ring
    from batchzip.mapping.serializers import Serializer
    from batchzip.store.group import Group
    from batchzip.store.latency import Latency

_NOTHING = object()

_BATCH = 1024
"""Maximum number of values in a batch of get_many or set_many."""

_BATCH_BYTES = 4 << 20
"""Maximum bytes in a batch. Large pages make batches shorter, down to _MIN_BATCH values."""

_MIN_BATCH = 64
"""Values per batch while a dictionary is trained from them, so that it is used early."""

_MAX_TTL_NS = 1 << 61
"""Longest time to live, in nanoseconds: 73 years. A longer one is cut to it."""

_PLAIN_TYPES = frozenset({str, bytes, int, bool, type(None)})
"""Types of keys that the core takes as they are, without Keys."""


class _Route(NamedTuple):
    """How values reach the core with the store's current engine."""

    calling_thread: bool
    """Whether the calling thread compresses small values. If the codec must not run in this
    process, they are stored as pages, which the engine's backend compresses."""
    most_bytes: int
    """The largest value that is compressed in one call."""
    in_chunks: bool
    """Whether larger values are compressed in chunks. Otherwise they are stored as pages."""


class CompressedMapping(MutableMapping[Key, Any], Closing):
    """A mapping, and a cache, whose values are kept compressed in a store.

    `store`       keeps the values. The caller owns it and closes it after the mapping. If it is
                  None, the mapping makes a store of its own that compresses with zstd at level 1.
    `name`        is the name of the mapping's group in `store`. None generates one.
    `max_bytes`   limits the bytes of compressed values in the pool. None: only the store's limit.
    `on_full`     says what happens at a limit. "raise" raises StoreRejected. "spill" moves the
                  coldest values to the store's backing file. "evict" removes the coldest values.
                  While the file fails, "spill" keeps values in the pool above `max_bytes`, and
                  `store.counters.reject_reclaim_fail` counts the attempts.
                  The default is "spill" if the store has a backing file, otherwise "raise".
    `ttl`         is the time to live of each value, in seconds. None: values do not expire.
                  `set` and `set_many` take another one for their values.
    `on_evict`    is called as on_evict(key, value) for each value that was evicted, in the thread
                  that stores a value. It may use the mapping. Its exceptions reach that caller.
    `serializer`  turns values into bytes and back, without a copy of the buffers of arrays, frames,
                  tables and tensors. It is an object with `dumps(value) -> buffer` and
                  `loads(bytes) -> value`, or one of these names:
                  "bytes" takes buffers of any length (bytes, memoryview, a contiguous array …) and
                  returns bytes. "pickle" takes anything that can be pickled. "numpy" takes NumPy's
                  arrays and scalars, without pickle. "json" and "msgpack" take lists, dicts and
                  the other types of these formats. "arrow" takes tables and record batches.
                  "torch" takes tensors on the CPU.
    `key_serializer`  is an object with the same two methods, for keys of other types than those
                  listed below. Two such keys are one if their bytes are equal.
    `dictionary`  makes small values that resemble each other smaller. "auto" trains a dictionary
                  with the first thousand small values. Bytes are a trained dictionary. Dictionaries
                  need an engine of zstd. If the store gets another engine later, new values are
                  compressed without a dictionary.

    Keys are str, bytes, int (bool and NumPy's integers, too), None, or tuples of hashable objects.
    Equal keys are one key, as in a dict. Keys of other types, and values that cannot be serialised,
    raise NotStorable, a TypeError. A returned value is a copy that belongs to the caller. A
    returned array is writable if the stored one was.

    If the store rejects a value (StoreRejected), or an exception interrupts the call, the key keeps
    its old value or stays absent. The store therefore holds the old and the new value together for
    a moment. A damaged value raises CorruptValue, a CorruptPage. All other values stay readable. An
    iterator covers the keys that existed when it was made. `copy()` and `|` make a new mapping in
    the same store.

    A mapping is thread-safe. Finalizers, signal handlers, keys and serializers may call it, too. It
    belongs to the process that made it. Closing or collecting it returns its memory to the store
    and removes its group.

    Examples:
        >>> import batchzip
        >>> rows = {f"user:{n}": f'{{"mail": "{n * 31}@example.org"}}' for n in range(20_000)}
        >>> with batchzip.CompressedMapping(serializer="pickle", dictionary="auto") as cache:
        ...     cache.update(rows)
        ...     cache["user:7"], "nobody" in cache, len(cache)
        ...     cache.get_many(["user:1", "nobody"])
        ...     usage = cache.memory_usage()
        ('{"mail": "217@example.org"}', False, 20000)
        {'user:1': '{"mail": "31@example.org"}'}
        >>> usage.total < usage.in_dict
        True

        A cache with a limit and a time to live:

        >>> with batchzip.CompressedMapping(max_bytes=1 << 20, on_full="evict", ttl=3600) as cache:
        ...     cache.set("session", b"short-lived", ttl=60)
        ...     cache.get("session"), cache.get("other", b"none")
        (b'short-lived', b'none')
    """

    def __init__(
        self,
        store: SwapStore | None = None,
        *,
        name: str | None = None,
        max_bytes: int | None = None,
        on_full: str | None = None,
        ttl: float | None = None,
        on_evict: Callable[[Any, Any], object] | None = None,
        serializer: str | Serializer = "bytes",
        key_serializer: Serializer | None = None,
        dictionary: str | bytes | None = None,
    ) -> None:
        if store is not None:
            check_kind(store, "store", SwapStore)
        limit = as_limit(max_bytes, "max_bytes")
        self._ttl_ns = _nanoseconds(ttl)
        if on_evict is not None and not callable(on_evict):
            raise BadArgument(
                f"on_evict must be a function of a key and a value, not {shown(on_evict)}"
            )
        _check_key_serializer(key_serializer)
        self._options: dict[str, Any] = {
            "max_bytes": max_bytes,
            "on_full": on_full,
            "ttl": ttl,
            "on_evict": on_evict,
            "serializer": serializer,
            "key_serializer": key_serializer,
            "dictionary": dictionary,
        }
        page_size = 4096 if store is None else store.page_size
        self._packer = packer_of(serializer, most_value_bytes(page_size))
        self._own: list[Closing] = []
        self._closed = False
        if store is None:
            engine = Engine("zstd", level=1)
            self._own.append(engine)
            store = SwapStore(engine)
            self._own.insert(0, store)
        self._store = store
        self._resources = store._resources  # noqa: SLF001 - as a group of the store
        self._batch = max(_MIN_BATCH, min(_BATCH, _BATCH_BYTES // store.page_size))
        try:
            self._group = self._new_group(name, None if on_full == "evict" else limit)
            self._pages = Pages(self._group)
            self._records = Records(self._group._entries, type(self).__name__)  # noqa: SLF001
            self._keys = Keys(key_serializer, self._records.contains)
            self._held: list[int] = []
            weakref.finalize(
                self, _release, self._group, self._held, self._resources.objects
            ).atexit = False
            self._use_engine()
            self._trainer = self._new_trainer(dictionary)
            if on_full is None:
                on_full = "raise" if self._resources.backing is None else "spill"
            room = Room(self._group, self._records, self._keys, on_full, limit, on_evict)
            self._room = room
            self._group._user = weakref.ref(self)  # noqa: SLF001 - for metrics; complete by now
        except BaseException:
            self.close()
            raise

    def _new_group(self, name: str | None, max_bytes: int | None) -> Group:
        store = self._store
        if name is None:
            names = (f"mapping-{number}" for number in store._numbers)  # noqa: SLF001
            groups = (store._new_group(each, max_bytes) for each in names)  # noqa: SLF001
            return next(group for group in groups if group is not None)
        group = store._new_group(name, max_bytes)  # noqa: SLF001
        if group is None:
            raise BadArgument(f"the store already has a group {name!r}: choose another name")
        return group

    def _new_trainer(self, dictionary: str | bytes | None) -> Trainer | None:
        if dictionary is None:
            return None
        trainer = Trainer(
            self._resources, self._records, self._resources.writer.engine.codec, self._held
        )
        if dictionary != "auto":
            if not isinstance(dictionary, bytes):
                raise BadArgument(
                    "dictionary must be 'auto', bytes from train_dictionary() or None, "
                    f"not {shown(dictionary)}"
                )
            trainer.use(dictionary)
            return None
        return trainer

    def _use_engine(self) -> None:
        """Compress new values with the codec of the store's current engine."""
        writer = self._resources.writer
        self._writer = writer
        calling_thread = not writer.engine.backend.isolate
        codec = writer.engine.codec
        if self._resources.objects.hold(writer.number, codec):
            self._held.append(writer.number)
        if calling_thread:
            coders = self._resources.coders_of(writer.number)
        else:  # for values that are stored uncompressed
            coders = Coders(codec, self._resources.page_size)
        self._records.use_codec(writer.number, coders)
        # Other threads see all of it change at once.
        self._route = _Route(
            calling_thread,
            self._records.most_bytes,
            calling_thread and writer.engine.backend.is_local and self._records.takes_chunks,
        )

    def _follow_engine(self) -> None:
        """Switch to the store's current engine if it has changed."""
        if self._writer is self._resources.writer:
            return
        self._use_engine()
        try:
            self._trainer = self._new_trainer(self._options["dictionary"])
        except BadArgument:  # the new engine's codec has no dictionaries
            self._trainer = None

    @property
    def _has_dictionaries(self) -> bool:
        """Whether the codec of the store's current engine takes a dictionary."""
        try:
            with_dictionary(self._resources.writer.engine.codec, None)
        except BadArgument:
            return False
        return True

    @property
    def _rings(self) -> tuple[Ring, ...]:
        """The rings of the engine's lanes, which share the work of a batch."""
        return self._writer.engine.backend.rings if self._route.calling_thread else ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._group.name!r} of {len(self._records)} values>"

    # One value.

    def __getitem__(self, key: Key) -> Any:
        value = self._read(self._find(key), key)
        if value is MISSING:
            raise KeyError(key)
        return value

    def get(self, key: Key, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if it has none.

        Raise CorruptValue for a damaged value, and whatever the serializer raises.
        """
        value = self._read(self._find(key), key)
        return default if value is MISSING else value

    def _find(self, key: Any) -> Any:
        return key if type(key) in _PLAIN_TYPES else self._keys.find(key)

    def _read(self, plain: Any, key: Any) -> Any:
        """Return the value of a plain key, or MISSING."""
        try:
            found = self._records.look_up(plain)
        except PageError as error:
            raise self._damage(key, error) from None
        return (
            self._restored(key, found) if type(found) is bytes else self._finish(plain, key, found)
        )

    def _restored(self, key: Any, data: bytes | list[memoryview]) -> Any:
        """Return the value of its only part, or of its parts in new memory."""
        try:
            return (
                self._packer.unpack_one(data)
                if type(data) is bytes
                else self._packer.unpack(cast("list[memoryview]", data))
            )
        except UnreadableValue as error:
            error.add_note(f"This is the value of key {shown(key)}.")
            raise

    def _finish(self, plain: Any, key: Any, found: object) -> Any:
        """Return the value of the core's lookup result, or MISSING."""
        if type(found) is Timed:
            here = found.found
            value = (
                self._restored(key, here) if type(here) is bytes else self._finish(plain, key, here)
            )
            self._records.entries.end(GET, found.started)
            return value
        while found is not MISSING:
            value = self._bytes_of(key, found)
            if value is not None:
                return value[0]
            try:
                found = self._records.get(plain, peek=True)
            except PageError as error:
                raise self._damage(key, error) from None
        return MISSING

    def _bytes_of(self, key: Any, found: object) -> tuple[Any] | None:
        """Return in a tuple a value on pages or, wholly or partly, in the backing file.

        Return None if the value changed while it was read.
        """
        if isinstance(found, LargeValue):
            try:
                return (self._restored(key, self._pages.read(found)),)
            except CorruptPage as error:
                raise CorruptValue(key) from error
            except PageError as error:
                error.add_note(f"This is a page of the value of key {shown(key)}.")
                raise
        where = cast("Found", found)
        if where.data is not None:
            return (self._restored(key, where.data),)
        gathered = None
        if where.indices:
            gathered = gather(self._group._entries, where.indices)  # noqa: SLF001
            read(self._resources, gathered)
        try:
            data = self._records.finish(where, gathered, rings=self._rings)
        except PageError as error:
            raise self._damage(key, error) from None
        return None if data is None else (self._restored(key, data),)

    def _damage(self, key: Any, error: PageError) -> Exception:
        if error.errno == -errno.EBADMSG:
            return CorruptValue(key)
        error.add_note(f"This is the value of key {shown(key)}.")
        return error

    def __setitem__(self, key: Key, value: Any) -> None:
        self._put(key, value)

    def set(self, key: Key, value: Any, *, ttl: float | None = None) -> None:
        """Store a value that expires after `ttl` seconds. None: after the mapping's own `ttl`.

        Raise NotStorable for a key or value that cannot be stored, and StoreRejected if there is no
        room for it.
        """
        self._put(key, value, deadline=self._deadline(ttl))

    def _deadline(self, ttl: float | None) -> int:
        span = self._ttl_ns if ttl is None else _nanoseconds(ttl)
        return now_ns() + span if span else 0

    def _put(self, key: Any, value: Any, *, deadline: int = -1, if_absent: bool = False) -> bool:
        """Store a value. Return False if `if_absent` is set and the key already has a value.

        A negative `deadline` means the mapping's own time to live, 0 none.
        """
        started = self._records.start_put()
        if deadline < 0:
            deadline = now_ns() + self._ttl_ns if self._ttl_ns else 0
        self._follow_engine()
        pin = None
        plain: Any = key
        if type(key) not in _PLAIN_TYPES:
            plain, pin = self._keys.add(key)
        try:
            parts = self._packer.pack(value)
            self._room.check()
            calling_thread, most, in_chunks = self._route
            if calling_thread and len(parts) == 1 and len(parts[0]) <= most:
                code = self._put_small(plain, parts[0], deadline, if_absent)
            elif in_chunks and most < sum(map(len, parts)) <= MOST_CHUNKED:
                code = self._put_chunked(plain, parts, deadline, if_absent)
            else:
                code = self._put_large(plain, parts, deadline, if_absent)
        finally:
            if pin is not None:
                self._keys.unpin(pin)
        self._room.keep(self._take)
        self._settle()
        if started and code == 0:
            self._records.entries.end(PUT, started)
        return code == 0

    def _put_small(self, plain: Any, value: Flat, deadline: int, if_absent: bool) -> int:
        for tries in itertools.count():
            code = self._records.put(
                plain, value, deadline=deadline, if_absent=if_absent, limit=self._room.hard_limit
            )
            if code in (0, -errno.EEXIST):
                break
            if not self._room.make(code, tries, self._take):
                raise self._rejection(code)
        if self._trainer is not None:
            self._trainer.note(value)
        return code

    def _put_chunked(self, plain: Any, parts: list[Flat], deadline: int, if_absent: bool) -> int:
        try:
            value = self._records.compress(parts, rings=self._rings)
        except MemoryError:
            raise self._rejection(-errno.ENOMEM) from None
        for tries in itertools.count():
            code = self._records.put_chunked(
                plain, value, deadline=deadline, if_absent=if_absent, limit=self._room.hard_limit
            )
            if code in (0, -errno.EEXIST):
                return code
            if not self._room.make(code, tries, self._take):
                break
        if self._room.on_full == "spill":  # pages can go to the backing file at once
            return self._put_large(plain, parts, deadline, if_absent)
        raise self._rejection(code)

    def _put_large(self, plain: Any, parts: list[Flat], deadline: int, if_absent: bool) -> int:
        for tries in itertools.count():
            stored = None
            try:
                stored = self._pages.write(parts)
                code = self._records.put_large(
                    plain, stored, deadline=deadline, if_absent=if_absent
                )
            except StoreRejected as error:
                full = error.reason == "pool_limit_hit" and self._room.on_full == "evict"
                if not full or not self._room.make(-errno.ENOSPC, tries, self._take):
                    raise
                continue
            finally:
                del stored  # otherwise a traceback would keep its pages
            if code in (0, -errno.EEXIST):
                return code
            raise self._rejection(code)
        raise AssertionError  # not reached: the loop has no end

    def _rejection(self, code: int) -> StoreRejected:
        if code == -errno.EDQUOT:
            self._group._entries.count_event("pool_limit_hit")  # noqa: SLF001
            return self._room.rejection(
                "pool_limit_hit",
                f"the value does not fit in the {self.max_bytes} bytes of {self._group.name!r}",
            )
        if code == -errno.ENOSPC:
            self._group._entries.count_event("pool_limit_hit")  # noqa: SLF001
            limit = self._resources.pool.max_bytes
            return self._room.rejection(
                "pool_limit_hit", f"the store's pool is at its limit of {limit} bytes"
            )
        self._group._entries.count_event("reject_alloc_fail")  # noqa: SLF001
        return StoreRejected("reject_alloc_fail", "the system has no memory for the value")

    def __delitem__(self, key: Key) -> None:
        plain = self._find(key)
        if not self._records.remove(plain):
            raise KeyError(key)
        self._forget(plain)

    def _forget(self, plain: Any) -> None:
        if type(plain) is Opaque:
            self._keys.forget(plain)
        self._settle()

    def setdefault(self, key: Key, default: Any = None) -> Any:
        """Return the value of `key`. If it has none, store and return `default`.

        If several threads call it at once, one of them stores its default, and all return that.
        """
        while True:
            value = self._read(self._find(key), key)
            if value is not MISSING:
                return value
            if self._put(key, default, if_absent=True):
                return default

    def pop(self, key: Key, default: Any = _NOTHING) -> Any:
        """Remove a value and return it. If there is none, return `default` or raise KeyError.

        The value is removed only after it was read. If several threads pop one key, one gets it.
        """
        plain = self._find(key)
        value = self._take(plain, key)
        if value is not MISSING:
            self._forget(plain)
            return value
        if default is _NOTHING:
            raise KeyError(key)
        return default

    def _take(self, plain: Any, key: Any = _NOTHING) -> Any:
        """Remove a value and return it, or return MISSING if there is none."""
        if key is _NOTHING:
            key = self._keys.shown(plain)
        while True:
            try:
                found = self._records.get(plain, peek=True)
            except PageError as error:
                raise self._damage(key, error) from None
            if found is MISSING:
                return MISSING
            value = self._bytes_of(key, found)
            if value is not None and self._records.remove(plain, found):  # type: ignore[arg-type]
                return value[0]

    def popitem(self) -> tuple[Key, Any]:
        """Remove the most recently added key. Return it with its value. Raise KeyError if empty."""
        while True:
            last = self._records.last()
            if not last:
                raise KeyError("the mapping is empty")
            keys = self._keys.back(last)
            value = self._take(last[0])
            if value is not MISSING and keys:
                self._forget(last[0])
                return keys[0], value

    def __contains__(self, key: object) -> bool:
        return self._records.contains(self._find(key))

    # Several.

    def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """Return a dict of those `keys` that have a value. Faster than one `get` per key."""
        wanted = list(keys)
        return dict(self._values_of([self._find(key) for key in wanted], wanted))

    def _values_of(self, plain: list[Any], keys: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield the keys that have a value, with their values."""
        for start in range(0, len(keys), self._batch):
            some = plain[start : start + self._batch]
            found = self._records.get_many(some, rings=self._rings)
            for each, where, key in zip(
                found, some, keys[start : start + self._batch], strict=True
            ):
                if type(each) is bytes:
                    yield key, self._restored(key, each)
                elif isinstance(each, PageError):
                    raise self._damage(key, each)
                elif (value := self._finish(where, key, each)) is not MISSING:
                    yield key, value

    def set_many(
        self, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]], *, ttl: float | None = None
    ) -> None:
        """Store several values in their order. Faster than one `set` per value.

        If one is rejected, those before it are stored and those after it are not.
        """
        deadline = self._deadline(ttl)
        pairs = items.items() if isinstance(items, Mapping) else items
        pack = self._packer.pack
        self._follow_engine()
        self._records.require_open()
        batch, most, held = self._batch_now, self._route.most_bytes, 0
        keys: list[Any] = []
        values: list[Any] = []
        try:
            for key, value in pairs:
                parts: Sequence[Flat] = pack(value) if type(key) in _PLAIN_TYPES else ()
                small = len(parts) == 1 and len(parts[0]) <= most
                if small:
                    keys.append(key)
                    values.append(parts[0])
                    held += len(parts[0])
                    if len(keys) < batch and held < _BATCH_BYTES:
                        continue
                full, keys = keys, []
                self._put_batch(full, values, deadline)
                values, batch = [], self._batch_now
                most, held = self._route.most_bytes, 0
                if not small:
                    self._put(key, value, deadline=deadline)
        finally:  # also if `items` raises
            self._put_batch(keys, values, deadline)

    @property
    def _batch_now(self) -> int:
        learns = self._trainer is not None and self._trainer.takes_samples
        return _MIN_BATCH if learns else self._batch

    def _put_batch(self, keys: list[Any], values: list[Flat], deadline: int) -> None:
        """Store up to `_batch` small values with plain keys."""
        if not keys:
            return
        self._follow_engine()
        rings = self._rings
        done = 0
        while done < len(keys):
            self._room.check()
            code = -1
            calling_thread = self._route.calling_thread
            if calling_thread:
                done, code = self._records.put_many(
                    keys,
                    values,
                    done,
                    deadline=deadline,
                    limit=self._room.hard_limit,
                    most=self._room.slack,
                    rings=rings,
                )
            if code:  # the next value makes room, or raises StoreRejected
                if calling_thread:
                    self._put_small(keys[done], values[done], deadline, if_absent=False)
                else:
                    self._put_large(keys[done], [values[done]], deadline, if_absent=False)
                done += 1
                rings = ()
            self._room.keep(self._take)
        if self._trainer is not None:
            for value in values:
                self._trainer.note(value)
        self._settle()

    def update(self, *others: Any, **values: Any) -> None:
        """Store the items of a mapping, an object with `keys()`, or an iterable of pairs.

        Then store the keyword arguments. Raise as `set_many`.
        """
        if len(others) > 1:
            raise TypeError(f"update takes at most one mapping or iterable, not {len(others)}")
        for other in others:
            if isinstance(other, CompressedMapping):
                pairs = other._pairs()  # noqa: SLF001 - one of these
                plain, keys = [where for where, _ in pairs], [key for _, key in pairs]
                self.set_many(other._values_of(plain, keys))  # noqa: SLF001
            elif isinstance(other, Mapping):
                self.set_many(other)
            elif hasattr(other, "keys"):
                self.set_many((key, other[key]) for key in other.keys())  # noqa: SIM118 - as dict
            else:
                self.set_many((key, value) for key, value in other)
        if values:
            self.set_many(values)

    def delete_many(self, keys: Iterable[Key]) -> int:
        """Remove those `keys` that have a value. Return the number of removed values."""
        gone = 0
        for key in keys:
            plain = self._find(key)
            if self._records.remove(plain):
                gone += 1
                if type(plain) is Opaque:
                    self._keys.forget(plain)
        self._settle()
        return gone

    # All.

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys.back(self._records.keys()))

    def __reversed__(self) -> Iterator[Key]:
        return iter(self._keys.back(self._records.keys()[::-1]))

    def items(self) -> ItemsView[Key, Any]:
        """Return a view of keys and values. Iteration skips values that were removed in between."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """Return a view of the values. Iteration skips values that were removed in between."""
        return _Values(self)

    def _pairs(self, step: int = 1) -> list[tuple[Any, Any]]:
        return self._keys.pairs(self._records.keys()[::step])

    def _all_items(self, step: int = 1) -> Iterator[tuple[Any, Any]]:
        for where, key in self._pairs(step):
            value = self._read(where, key)
            if value is not MISSING:  # otherwise it was removed in between
                yield key, value

    def clear(self) -> None:
        """Remove all values."""
        self._records.clear()
        self._keys.drop_absent()
        self._settle()

    def copy(self) -> CompressedMapping:
        """Return a new mapping with the same values and options, in the same store.

        If the mapping made its own store, the copy makes one, too.
        """
        return self._joined(self)

    @classmethod
    def fromkeys(cls, keys: Iterable[Key], value: Any = b"", **options: Any) -> Self:
        """Return a new mapping with `value` for each of `keys`. `options` are the constructor's."""
        made = cls(**options)
        try:
            made.set_many((key, value) for key in keys)
        except BaseException:
            made.close()
            raise
        return made

    def __eq__(self, other: object) -> bool:
        return other is self or super().__eq__(other)

    __hash__ = None  # type: ignore[assignment] # as a dict's

    def __or__(self, other: Mapping[Key, Any]) -> CompressedMapping:
        return self._joined(self, other) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[Key, Any]) -> CompressedMapping:
        return self._joined(other, self) if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc] # takes more than |, as dict's
        self.update(other)
        return self

    def _joined(self, *others: Mapping[Key, Any]) -> CompressedMapping:
        options = self._options
        if not self._own and options["dictionary"] is not None and not self._has_dictionaries:
            options = {**options, "dictionary": None}
        made = CompressedMapping(None if self._own else self._store, **options)
        try:
            for other in others:
                made.update(other)
        except BaseException:
            made.close()
            raise
        return made

    # Coroutines.

    async def aget(self, key: Key, default: Any = None) -> Any:
        """Return a value as `get` does, without blocking the event loop.

        The loop itself restores a value of up to 64 KiB in the pool, which takes microseconds. A
        thread restores larger values and those in the backing file. An absent key takes no thread.
        """
        await asyncio.sleep(0)  # lets other tasks run if this one only reads
        plain = self._find(key)
        try:
            found = self._records.look_up(plain)
        except PageError as error:
            raise self._damage(key, error) from None
        if found is MISSING:
            return default
        if type(found) is bytes:
            return self._restored(key, found)
        if type(found) is Timed and type(found.found) is bytes:
            return self._finish(plain, key, found)
        value = await self._resources.threads.call(partial(self._finish, plain, key, found))
        return default if value is MISSING else value

    async def aset(self, key: Key, value: Any, *, ttl: float | None = None) -> None:
        """Store a value as `set` does, without blocking the event loop.

        If it is cancelled, the value is either stored completely or not at all.
        """
        await self._resources.threads.call(partial(self.set, key, value, ttl=ttl))

    async def apop(self, key: Key, default: Any = _NOTHING) -> Any:
        """Remove and return a value as `pop` does, without blocking the event loop."""
        return await self._resources.threads.call(partial(self.pop, key, default))

    async def adelete(self, key: Key) -> None:
        """Remove a value as `del` does, without blocking the event loop. Raise KeyError."""
        await self._resources.threads.call(partial(self.__delitem__, key))

    async def asetdefault(self, key: Key, default: Any = None) -> Any:
        """Return or store a value as `setdefault` does, without blocking the event loop."""
        return await self._resources.threads.call(partial(self.setdefault, key, default))

    async def aget_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """Return values as `get_many` does, without blocking the event loop."""
        return await self._resources.threads.call(partial(self.get_many, list(keys)))

    async def aset_many(
        self, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]], *, ttl: float | None = None
    ) -> None:
        """Store values as `set_many` does, without blocking the event loop."""
        await self._resources.threads.call(partial(self.set_many, items, ttl=ttl))

    async def adelete_many(self, keys: Iterable[Key]) -> int:
        """Remove values as `delete_many` does, without blocking the event loop."""
        return await self._resources.threads.call(partial(self.delete_many, list(keys)))

    async def aupdate(self, *others: Any, **values: Any) -> None:
        """Store items as `update` does, without blocking the event loop."""
        await self._resources.threads.call(partial(self.update, *others, **values))

    # Figures and limits.

    def expire(self) -> int:
        """Remove all expired values. Return the number of removed values.

        Lookups and iterators never return an expired value, but `len()` and `stats()` count it
        until it is removed. Calling this only frees the memory earlier: each stored value checks
        the next four deadlines in turn and removes an expired value it meets.
        """
        gone = self._records.expire()
        self._settle()
        return gone

    def stats(self) -> MappingStatistics:
        """Return the counters of calls so far and the current size of the mapping."""
        figures = self._records.figures()
        large = self._records.large_values()
        return MappingStatistics(
            values=figures["values"],
            hits=figures["hits"],
            misses=figures["misses"],
            evictions=figures["evictions"],
            expirations=figures["expirations"],
            nbytes=figures["raw_bytes"] + sum(sum(value.lengths) for value in large),
            pool_bytes=self._group._pool_bytes(),  # noqa: SLF001
            file_bytes=self._group._entries.backed_bytes(),  # noqa: SLF001
            index_bytes=figures["index_bytes"],
        )

    @property
    def latencies(self) -> dict[str, Latency]:
        """Histograms of the durations of "get" and "put" calls, from a sample: see Latency."""
        found = self._group.latencies
        return {operation: found[operation] for operation in ("get", "put")}

    def memory_usage(self) -> MemoryUsage:
        """Return the mapping's memory by part, and the memory that a dict would need."""
        figures = self._records.figures()
        entries = self._group._entries.figures()  # noqa: SLF001
        pool = self._resources.pool
        stored = pool.stored_bytes
        share = entries["pool_bytes"] / stored if stored else 0.0
        objects = entries["records"] + entries["slices"] + entries["compressed"] + entries["raw"]
        large = self._records.large_values()
        nbytes = figures["raw_bytes"] + sum(sum(value.lengths) for value in large)
        key_bytes = figures["key_bytes"]
        return MemoryUsage(
            values=round(pool.held_bytes * share),
            tables=entries["table_bytes"] + 10 * objects,
            index=figures["index_bytes"] + 250 * len(large),
            dictionaries=self._records.coder_bytes(),
            in_dict=dict_bytes(figures["values"], key_bytes, nbytes),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all values, serialised and uncompressed."""
        return self.stats().nbytes

    @property
    def cbytes(self) -> int:
        """Bytes of all values, compressed, in the pool and in the backing file."""
        return self._group.stored_bytes

    @property
    def cratio(self) -> float:
        """The memory of a dict of the same values ÷ the mapping's, from `memory_usage()`."""
        usage = self.memory_usage()
        return usage.in_dict / usage.total if usage.total and len(self._records) else 1.0

    @property
    def group(self) -> Group:
        """The group of the store that holds the values, with its counters and `writeback`."""
        return self._group

    @property
    def max_bytes(self) -> int | None:
        """The limit of compressed values in the pool, in bytes. None: only the store's limit.

        Setting a lower limit evicts or spills values at once, as `on_full` says.
        """
        return self._room.max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        limit = as_limit(value, "max_bytes")
        if self._room.on_full != "evict":
            self._group.max_bytes = limit
        self._room.max_bytes = limit
        self._room.keep(self._take)

    def close(self) -> None:
        """Remove all values and return their memory to the store. Further calls do nothing."""
        self._closed = True
        records = getattr(self, "_records", None)
        if records is not None:
            records.close()
            self._keys.clear()
        group = getattr(self, "_group", None)
        if group is not None:
            _release(group, self._held, self._resources.objects)
        for each in self._own:
            each.close()

    @property
    def closed(self) -> bool:
        """Whether the mapping or its store is closed, or belongs to another process."""
        return self._closed or self._group.closed

    def check_invariants(self) -> None:
        """Raise AssertionError if an invariant is violated. No other thread may use the mapping."""
        self._records.require_open()
        fault = self._records.fault() or self._keys.fault(self._records.keys())
        if fault is not None:
            raise AssertionError(fault)
        space = self._pages.space
        space.check_invariants()
        held = [value.reservation for value in self._records.large_values() if value.reservation]
        indices = {index for each in held for index in range(each.first, each.first + each.count)}
        pages = sum(each.count for each in held)
        figures = self._group._entries.figures()  # noqa: SLF001
        slices = figures["slices"] + figures["backed_slices"]
        stored = figures["pages"] - len(self._records) - slices
        if not pages == len(indices) == space.taken == stored:
            raise AssertionError(
                f"large values have {pages} pages at {len(indices)} indices, {space.taken} "
                f"indices are taken, and the group has {stored} pages: all four must be equal"
            )

    def _settle(self) -> None:
        """Free the space in the backing file that removed values took."""
        if self._resources.backing is not None and not self._group.closed:
            self._group._settle()  # noqa: SLF001


class _Items(ItemsView[Key, Any]):
    _mapping: CompressedMapping

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        return self._mapping._all_items()  # noqa: SLF001 - this module's own class

    def __contains__(self, item: object) -> bool:
        key, value = cast("tuple[Key, Any]", item)
        found = self._mapping.get(key, MISSING)
        return found is not MISSING and (found is value or found == value)

    def __reversed__(self) -> Iterator[tuple[Key, Any]]:
        return self._mapping._all_items(-1)  # noqa: SLF001


class _Values(ValuesView[Any]):
    _mapping: CompressedMapping

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._mapping._all_items())  # noqa: SLF001

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)

    def __reversed__(self) -> Iterator[Any]:
        return (value for _, value in self._mapping._all_items(-1))  # noqa: SLF001


def _nanoseconds(ttl: float | None) -> int:
    return 0 if ttl is None else max(1, round(min(as_positive(ttl, "ttl") * 1e9, _MAX_TTL_NS)))


def _check_key_serializer(serializer: object) -> None:
    if serializer is not None and not all(
        callable(getattr(serializer, name, None)) for name in ("dumps", "loads")
    ):
        raise BadArgument(
            f"key_serializer must be an object with dumps and loads, not {shown(serializer)}"
        )


def _release(group: Group, held: list[int], objects: Any) -> None:
    """Close a mapping's group and release its references to codecs."""
    group.close()
    while held:
        objects.let_go(held.pop())
