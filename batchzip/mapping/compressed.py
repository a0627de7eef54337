"""CompressedMapping: a dictionary whose values are kept compressed in a store.

    m[key] = value ─▶ Keys ─▶ serializer ─▶ parts ─▶ one of up to 64 KiB ─▶ Records: compressed in one call
                                                  └─▶ larger             ─▶ Pages ─▶ Records: where they are
    m[key]         ─▶ Keys ─▶ Records ─▶ bytes, or Pages ─▶ serializer ─▶ the value
    full           ─▶ Room: refuse, move cold values to the file, or forget them

Keys, entries and objects of a mapping are the core's (core/records.pyx): a key has its old value or its new
one, whatever comes in between. What fails or is cut short leaves the old one.

Rejected: handing out views of the pool; a lock around looking and changing (a key's `__eq__`, a serializer,
or a finalizer that comes between two lines, may call the mapping, or wait for a thread that does).

Locks: none. A value is read before it is taken out; if it was replaced meanwhile, the new one is read.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import weakref
from collections.abc import ItemsView, Iterable, Mapping, MutableMapping, ValuesView
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from batchzip.arguments.checks import as_limit, as_positive, check_kind
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
from batchzip.mapping.dictionary import Trainer
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
"""Values that are read or put in at a time, if pages are of 4 KiB."""

_BATCH_BYTES = 4 << 20
"""Most bytes of such a batch. If pages are large, a batch has fewer values, but at least _FEW."""

_FEW = 64
"""Values that are put in at a time as long as a dictionary is learnt from them."""

_MOST_NS = 1 << 61
"""Nanoseconds of a time to live, 73 years: what is longer is as long."""

_QUICK = frozenset({str, bytes, int, bool, type(None)})


class CompressedMapping(MutableMapping[Key, Any], Closing):
    """A mapping, and a cache, whose values are kept compressed in a store.

    `store`       keeps the values; stays the caller's, and is closed after the mapping. Without one, the
                  mapping makes its own, with zstd at level 1.
    `name`        of the group in `store` that is the mapping's own; one is made up if none is given.
    `max_bytes`   bytes of compressed values it may have in the pool, or None for the store's limit.
    `on_full`     what happens at a limit: "raise" (StoreRejected), "spill" (the coldest values go to the
                  store's backing file) or "evict" (they are forgotten). By default "spill" if the
                  store has a backing file, else "raise".
    `ttl`         seconds after which a value is gone; None: never. `set` has one for each value.
    `on_evict`    called as on_evict(key, value) with each value that was forgotten to make room, in the thread
                  that puts a value in; it may use the mapping. What it raises goes to that caller.
    `serializer`  "bytes": values are buffers of any length (bytes, memoryview, a contiguous array …) and come
                  back as bytes. "pickle": anything that can be pickled. "numpy": arrays and scalars of
                  NumPy, without pickle. "json", "msgpack": lists, dicts and what such files have in them.
                  "arrow": tables and record batches. "torch": tensors on the CPU. The buffers of arrays,
                  frames, tables and tensors are not copied on the way. Or an object with
                  `dumps(value) -> buffer` and `loads(bytes) -> value`.
    `key_serializer`  an object with the same methods, for keys of other types than those below.
    `dictionary`  "auto": learn from the first thousand small values what they have in common, so that those
                  which follow get smaller. Or the bytes of one. It needs an engine of zstd; if the store
                  is given another one later, values go without.

    Keys are str, bytes, int (bool and NumPy's, too), None, or tuples of anything that has a hash; equal ones are
    one key, as in a dict. Others, and values that cannot be serialised, raise NotStorable, a TypeError. What
    is given back is a copy that is the caller's; an array can be written to if the one that was put in could.

    Where the store rejects a value (StoreRejected), or anything else interrupts, the key keeps the value
    it had, or stays absent: old and new lie in the store together for a moment. A damaged value raises
    CorruptValue, a CorruptPage; others stay readable. Iteration is over the keys as they
    were when it began. `copy()` and `|` make a mapping of its own in the same store.

    Thread-safe, also in finalizers and signal handlers, and where keys and serializers call it; bound to the
    process that made it. Closing or losing it gives the memory back to the store and ends its group.

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
            raise BadArgument(f"on_evict is a function of key and value, not {shown(on_evict)}")
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
        self._resources = store._resources  # noqa: SLF001 - a mapping is a group of it, with other indices
        self._page_size = store.page_size
        self._batch = max(_FEW, min(_BATCH, _BATCH_BYTES // store.page_size))
        try:
            self._group = self._new_group(name, None if on_full == "evict" else limit)
            self._pages = Pages(self._group)
            self._keys = Keys(key_serializer)
            self._records = Records(self._group._entries, type(self).__name__)  # noqa: SLF001
            self._held: list[int] = []
            weakref.finalize(
                self, _let_go, self._group, self._held, self._resources.objects
            ).atexit = False
            self._use_engine()
            self._trainer = self._new_trainer(dictionary)
            if on_full is None:
                on_full = "raise" if self._resources.backing is None else "spill"
            room = Room(self._group, self._records, self._keys, on_full, limit, on_evict)
            self._room = room
            self._group._user = weakref.ref(self)  # noqa: SLF001 - whole by now, for whoever scrapes
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
            raise BadArgument(f"the store has a group {name!r} already: take another name")
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
                    f"dictionary is 'auto', bytes from train_dictionary() or None, not {shown(dictionary)}"
                )
            trainer.use(dictionary)
            return None
        return trainer

    def _use_engine(self) -> None:
        """Compress what comes with the codec of the store's engine of now."""
        writer = self._resources.writer
        self._writer = writer
        # Small values are compressed by their caller; where the codec must not run in this process, on pages.
        self._has_coders = not writer.engine.backend.isolate
        codec = writer.engine.codec
        if self._resources.objects.hold(writer.number, codec):
            self._held.append(writer.number)
        if self._has_coders:
            coders = self._resources.coders_of(writer.number)
        else:  # they copy what is stored as it is
            coders = Coders(codec, self._page_size)
        self._records.use_codec(writer.number, coders)

    def _follow_engine(self) -> None:
        """Use the store's engine of now, if it is another one."""
        if self._writer is self._resources.writer:
            return
        self._use_engine()
        try:
            self._trainer = self._new_trainer(self._options["dictionary"])
        except BadArgument:  # an engine that has no dictionaries
            self._trainer = None

    @property
    def _rings(self) -> tuple[Ring, ...]:
        """The rings of the engine's lanes, which help with batches."""
        return self._writer.engine.backend.rings if self._has_coders else ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._group.name!r} of {len(self._records)} values>"

    # One value.

    def __getitem__(self, key: Key) -> Any:
        value = self._read(self._find(key), key)
        if value is MISSING:
            raise KeyError(key)
        return value

    def get(self, key: Key, default: Any = None) -> Any:
        """Return the key's value, or `default` if it has none; what its serializer raises is raised."""
        value = self._read(self._find(key), key)
        return default if value is MISSING else value

    def _find(self, key: Any) -> Any:
        return key if type(key) in _QUICK else self._keys.find(key)

    def _read(self, plain: Any, key: Any) -> Any:
        """Return a value, or MISSING."""
        try:
            found = self._records.look_up(plain)
        except PageError as error:
            raise self._damage(key, error) from None
        return (
            self._restored(key, found) if type(found) is bytes else self._finish(plain, key, found)
        )

    def _restored(self, key: Any, data: bytes) -> Any:
        try:
            return self._packer.unpack_one(data)
        except UnreadableValue as error:
            error.add_note(f"it is the value of key {shown(key)}")
            raise

    def _finish(self, plain: Any, key: Any, found: object) -> Any:
        """Return the value of what the core found, or MISSING."""
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
        """Read a value that lies on pages, or in the file, in part or as a whole; None: it has changed."""
        if isinstance(found, LargeValue):
            try:
                return (self._packer.unpack(self._pages.read(found)),)
            except UnreadableValue as error:
                error.add_note(f"it is the value of key {shown(key)}")
                raise
            except CorruptPage as error:
                raise CorruptValue(key) from error
            except PageError as error:
                error.add_note(f"it is a page of the value of key {shown(key)}")
                raise
        where = cast("Found", found)
        if where.data is not None:
            return (self._restored(key, where.data),)
        gathered = gather(self._group._entries, where.indices)  # noqa: SLF001
        read(self._resources, gathered)
        try:
            data = self._records.finish(where, gathered)
        except PageError as error:
            raise self._damage(key, error) from None
        return None if data is None else (self._restored(key, data),)

    def _damage(self, key: Any, error: PageError) -> Exception:
        if error.errno == -errno.EBADMSG:
            return CorruptValue(key)
        error.add_note(f"it is the value of key {shown(key)}")
        return error

    def __setitem__(self, key: Key, value: Any) -> None:
        self._put(key, value)

    def set(self, key: Key, value: Any, *, ttl: float | None = None) -> None:
        """Put a value in that is gone after `ttl` seconds; None: after those of the mapping, if it has any."""
        self._put(key, value, deadline=self._deadline(ttl))

    def _deadline(self, ttl: float | None) -> int:
        span = self._ttl_ns if ttl is None else _nanoseconds(ttl)
        return now_ns() + span if span else 0

    def _put(self, key: Any, value: Any, *, deadline: int = -1, if_absent: bool = False) -> bool:
        """Store a value. Return whether it was: not, if the key has one, and `if_absent`."""
        started = self._records.start_put()
        if deadline < 0:
            deadline = now_ns() + self._ttl_ns if self._ttl_ns else 0
        self._follow_engine()
        plain: Any = key if type(key) in _QUICK else self._keys.add(key)
        if type(plain) is Opaque:
            self._keys.sweep(self._records.keys)
        parts = self._packer.pack(value)
        while True:
            self._room.check()
            if len(parts) == 1 and len(parts[0]) <= self._records.most_bytes and self._has_coders:
                code = self._put_small(plain, parts[0], deadline, if_absent)
            else:
                code = self._put_large(plain, parts, deadline, if_absent)
            if type(plain) is not Opaque or self._keys.confirm(plain, key):
                break
            self._records.remove(plain)
            plain = self._keys.add(key)
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
                del stored  # a traceback would keep its pages
            if code in (0, -errno.EEXIST):
                return code
            raise self._rejection(code)
        raise AssertionError  # the loop has no end

    def _rejection(self, code: int) -> StoreRejected:
        if code == -errno.EDQUOT:
            self._group._entries.count_event("pool_limit_hit")  # noqa: SLF001
            return self._room.rejection(
                "pool_limit_hit",
                f"the value does not fit the {self.max_bytes} bytes of {self._group.name!r}",
            )
        if code == -errno.ENOSPC:
            self._group._entries.count_event("pool_limit_hit")  # noqa: SLF001
            limit = self._resources.pool.max_bytes
            return self._room.rejection(
                "pool_limit_hit", f"the store's pool is full, at its limit of {limit} bytes"
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
        """Give the key's value; where it has none, make it `default`. Of several threads, one does."""
        while True:
            value = self._read(self._find(key), key)
            if value is not MISSING:
                return value
            if self._put(key, default, if_absent=True):
                return default

    def pop(self, key: Key, default: Any = _NOTHING) -> Any:
        """Take a value out and give it. It is out once it was read, and of several threads one gets it."""
        plain = self._find(key)
        value = self._take(plain, key)
        if value is not MISSING:
            self._forget(plain)
            return value
        if default is _NOTHING:
            raise KeyError(key)
        return default

    def _take(self, plain: Any, key: Any = _NOTHING) -> Any:
        """Take a value out; MISSING if there is none."""
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
        """Take out the key that was put in last, with its value; KeyError where there is none."""
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
        """Return those of `keys` that are there, with their values."""
        wanted = list(keys)
        return dict(self._values_of([self._find(key) for key in wanted], wanted))

    def _values_of(self, plain: list[Any], keys: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield keys and values; those that are not there are left out."""
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
        """Put several values in, one after the other; faster than each by itself.

        Where one is rejected, those before it are in.
        """
        deadline = self._deadline(ttl)
        pairs = items.items() if isinstance(items, Mapping) else items
        pack = self._packer.pack
        self._follow_engine()
        self._records.require_open()
        batch, most, held = self._batch_now, self._records.most_bytes, 0
        keys: list[Any] = []
        values: list[Any] = []
        try:
            for key, value in pairs:
                parts: Sequence[Flat] = pack(value) if type(key) in _QUICK else ()
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
                most, held = self._records.most_bytes, 0
                if not small:
                    self._put(key, value, deadline=deadline)
        finally:  # also where `items` end in an error
            self._put_batch(keys, values, deadline)

    @property
    def _batch_now(self) -> int:
        learns = self._trainer is not None and self._trainer.takes_samples
        return _FEW if learns else self._batch

    def _put_batch(self, keys: list[Any], values: list[Flat], deadline: int) -> None:
        """Store up to `_batch` small values under plain keys."""
        if not keys:
            return
        self._follow_engine()
        rings = self._rings
        done = 0
        while done < len(keys):
            self._room.check()
            code = -1
            if self._has_coders:
                done, code = self._records.put_many(
                    keys,
                    values,
                    done,
                    deadline=deadline,
                    limit=self._room.hard_limit,
                    most=self._room.slack,
                    rings=rings,
                )
            if code:  # the next one makes room, or says that there is none
                if self._has_coders:
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
        """Put in the items of a mapping, of an object with `keys()`, or of pairs; then those named."""
        if len(others) > 1:
            raise TypeError(f"update takes one mapping or iterable, not {len(others)}")
        for other in others:
            if isinstance(other, CompressedMapping):
                plain = other._keys.known(other._records.keys())  # noqa: SLF001 - one of these
                self.set_many(other._values_of(plain, other._keys.back(plain)))  # noqa: SLF001
            elif isinstance(other, Mapping):
                self.set_many(other)
            elif hasattr(other, "keys"):
                self.set_many((key, other[key]) for key in other.keys())  # noqa: SIM118 - as a dict's
            else:
                self.set_many((key, value) for key, value in other)
        if values:
            self.set_many(values)

    def delete_many(self, keys: Iterable[Key]) -> int:
        """Take out those of `keys` that are there. Return how many were."""
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
        """Return a view of keys and values; those that go while it is iterated over are left out."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """Return a view of the values, read as those of `items`."""
        return _Values(self)

    def _all_items(self, step: int = 1) -> Iterator[tuple[Any, Any]]:
        plain = self._keys.known(self._records.keys()[::step])
        for where, key in zip(plain, self._keys.back(plain), strict=True):
            value = self._read(where, key)
            if value is not MISSING:  # it went in between
                yield key, value

    def clear(self) -> None:
        """Forget all values."""
        self._records.clear()
        self._keys.clear()
        self._settle()

    def copy(self) -> CompressedMapping:
        """Make a mapping with the same values and options, in a group of its own of this store."""
        return self._joined(self)

    @classmethod
    def fromkeys(cls, keys: Iterable[Key], value: Any = b"", **options: Any) -> Self:
        """Make a mapping with the same value for each of `keys`; `options` are those of the class."""
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

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc] # takes more than | does, as a dict's
        self.update(other)
        return self

    def _joined(self, *others: Mapping[Key, Any]) -> CompressedMapping:
        made = CompressedMapping(None if self._own else self._store, **self._options)
        try:
            for other in others:
                made.update(other)
        except BaseException:
            made.close()
            raise
        return made

    # Without blocking an event loop.

    async def aget(self, key: Key, default: Any = None) -> Any:
        """Return a value as `get`, without blocking the event loop.

        A value of up to 64 KiB in memory is restored by the loop itself, in microseconds; others by a thread.
        """
        await asyncio.sleep(0)  # so that a task that does nothing else lets others work
        plain = self._find(key)
        try:
            found = self._records.look_up(plain)
        except PageError as error:
            raise self._damage(key, error) from None
        if type(found) is bytes:
            value = self._restored(key, found)
        elif type(found) is Timed and type(found.found) is bytes:
            value = self._finish(plain, key, found)
        else:
            value = await self._resources.threads.call(partial(self._finish, plain, key, found))
        return default if value is MISSING else value

    async def aset(self, key: Key, value: Any, *, ttl: float | None = None) -> None:
        """Put a value in as `set`, without blocking the event loop; cancelled, it is in, or not begun."""
        await self._resources.threads.call(partial(self.set, key, value, ttl=ttl))

    async def apop(self, key: Key, default: Any = _NOTHING) -> Any:
        """Take a value out as `pop`, without blocking the event loop."""
        return await self._resources.threads.call(partial(self.pop, key, default))

    async def adelete(self, key: Key) -> None:
        """Take a value out as `del`, without blocking the event loop. Raise KeyError."""
        await self._resources.threads.call(partial(self.__delitem__, key))

    async def asetdefault(self, key: Key, default: Any = None) -> Any:
        """Return or put in a value as `setdefault`, without blocking the event loop."""
        return await self._resources.threads.call(partial(self.setdefault, key, default))

    async def aget_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """Return values as `get_many`, without blocking the event loop."""
        return await self._resources.threads.call(partial(self.get_many, list(keys)))

    async def aset_many(
        self, items: Mapping[Any, Any] | Iterable[tuple[Any, Any]], *, ttl: float | None = None
    ) -> None:
        """Put values in as `set_many`, without blocking the event loop."""
        await self._resources.threads.call(partial(self.set_many, items, ttl=ttl))

    async def adelete_many(self, keys: Iterable[Key]) -> int:
        """Take values out as `delete_many`, without blocking the event loop."""
        return await self._resources.threads.call(partial(self.delete_many, list(keys)))

    async def aupdate(self, *others: Any, **values: Any) -> None:
        """Put items in as `update`, without blocking the event loop."""
        await self._resources.threads.call(partial(self.update, *others, **values))

    # What it has, and what it takes.

    def expire(self) -> int:
        """Forget all values whose time is over now; how many were.

        They are not found any more in any case; each value that is put in looks at four others.
        """
        gone = self._records.expire()
        self._settle()
        return gone

    def stats(self) -> MappingStatistics:
        """Return what became of calls so far, and what the mapping has now."""
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
        """How long calls of "get" and "put" took; of a few calls: see Latency."""
        found = self._group.latencies
        return {operation: found[operation] for operation in ("get", "put")}

    def memory_usage(self) -> MemoryUsage:
        """Return the bytes of memory that the mapping takes, by part, beside those of a dict."""
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
        """Bytes of all values as they were serialised."""
        return self.stats().nbytes

    @property
    def cbytes(self) -> int:
        """Bytes they take, compressed, in the pool and in the backing file."""
        return self._group.stored_bytes

    @property
    def cratio(self) -> float:
        """How many times smaller the mapping is than a dict of the same values, by `memory_usage()`."""
        usage = self.memory_usage()
        return usage.in_dict / usage.total if usage.total and len(self._records) else 1.0

    @property
    def group(self) -> Group:
        """The group of the store that has the values: its counters, `max_bytes`, `writeback`."""
        return self._group

    @property
    def max_bytes(self) -> int | None:
        """Bytes of compressed values it may have in the pool, or None for the store's limit."""
        return self._room.max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int | None) -> None:
        limit = as_limit(value, "max_bytes")
        if self._room.on_full != "evict":
            self._group.max_bytes = limit
        self._room.max_bytes = limit
        self._room.keep(self._take)

    def close(self) -> None:
        """Forget all values and give their memory back to the store; further calls do nothing."""
        self._closed = True
        records = getattr(self, "_records", None)
        if records is not None:
            records.close()
            self._keys.clear()
        group = getattr(self, "_group", None)
        if group is not None:
            _let_go(group, self._held, self._resources.objects)
        for each in self._own:
            each.close()

    @property
    def closed(self) -> bool:
        """Whether it can be used no more: it is closed, or its store, or this is another process."""
        return self._closed or self._group.closed

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold; no other thread may change anything."""
        self._records.require_open()
        fault = self._records.fault()
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
                f"values have {pages} pages at {len(indices)} indices, of {space.taken} that "
                f"are taken, and the group has {stored}"
            )

    def _settle(self) -> None:
        """Give back what values that went had in the backing file."""
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
    return 0 if ttl is None else max(1, round(min(as_positive(ttl, "ttl") * 1e9, _MOST_NS)))


def _check_key_serializer(serializer: object) -> None:
    if serializer is not None and not all(
        callable(getattr(serializer, name, None)) for name in ("dumps", "loads")
    ):
        raise BadArgument(
            f"key_serializer is an object with dumps and loads, not {shown(serializer)}"
        )


def _let_go(group: Group, held: list[int], objects: Any) -> None:
    """Close a mapping's group, and let go of the numbers of its codecs."""
    group.close()
    while held:
        objects.let_go(held.pop())
