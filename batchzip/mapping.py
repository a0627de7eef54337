"""CompressedMapping: a dictionary whose values are pages of a store.

    m[key] = value    pack ─▶ parts ─▶ new indices ─▶ folios in the group ─▶ the dict: visible, whole
    m[key]            the dict ─▶ _Value ─▶ load_many of its indices ─▶ parts ─▶ unpack

    a value on its pages   │ part 0, whole pages │ part 1, whole pages │ … │ the tails of all, joined │

Whole pages of a part are compressed from where they are and restored to where they stay: an array of a
million bytes is not copied on its way in, and its tail of less than a page is the only copy. All tails
share the last pages.

A value is never written over: a new one takes new indices, and one assignment to the dict makes it the key's.
Whatever fails or is cut short before, the key keeps what it had. The indices of the old one are free when
nobody refers to it any more (core/indices.pyx), so a reader gets all of one value.

Rejected: replacing in place (a store that fails leaves neither value); handing out views of the pool;
an index for each key by its hash (collisions need what is here anyway); a lock around looking and changing
(a key's `__eq__`, a serializer, or a finalizer that comes between two lines, may call the mapping, or wait for
a thread that does).

Locks: none. Every change is one call of the dict, and what a call took out is whole. A value is read before it
is taken out; where another one was taken instead, as somebody was faster, that is given.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import ItemsView, Mapping, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from batchzip.buffers import flat
from batchzip.checks import check_kind
from batchzip.core.indices import IndexSpace
from batchzip.errors import BadArgument, ClosedError, CorruptPage, NotStorable, PageError
from batchzip.lifetime import Closing
from batchzip.serializers import packer_of
from batchzip.store.swap_store import SwapStore
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from batchzip.buffers import Flat
    from batchzip.core.indices import Reservation
    from batchzip.serializers import Serializer
    from batchzip.store.group import Group

Key: TypeAlias = str | bytes | int | tuple[Any, ...] | None

_KEYS = (str, bytes, int, tuple, type(None), np.integer)

_NOTHING = object()


class _Value:
    """Where a value lies: lengths of its parts in bytes, and its indices; None if it needs no page."""

    __slots__ = ("lengths", "reservation")

    def __init__(self, lengths: list[int], reservation: Reservation | None) -> None:
        self.lengths = lengths
        self.reservation = reservation


class CompressedMapping(MutableMapping[Key, Any], Closing):
    """A mapping whose values are kept compressed in a store, and its cold ones in the store's file.

    `store`       keeps the pages; stays the caller's, and is closed after the mapping.
    `name`        of the group in `store` that is the mapping's own; one is made up if none is given.
    `max_bytes`   bytes of compressed pages it may have in the pool, or None for the store's limit.
    `serializer`  "bytes": values are buffers of any length (bytes, memoryview, a contiguous array …) and come
                  back as bytes. "pickle": anything that can be pickled; the buffers of arrays and
                  frames are not copied on the way. Or an object with `dumps(value) -> buffer` and
                  `loads(bytes) -> value`.

    Keys are str, bytes, int (bool and NumPy's, too), None, or tuples of anything that has a hash; equal ones are
    one key, as in a dict. Others, and values that cannot be serialised, raise NotStorable, a TypeError. What
    is given back is a copy that is the caller's; an array can be written to if the one that was put in could.

    Where the store rejects a value (StoreRejected), or anything else interrupts, the key keeps the value
    it had, or stays absent: old and new lie in the store together for a moment. A damaged value raises
    CorruptPage, with the key in a note; others stay readable. Iteration is over the keys as they
    were when it began. `copy()` and `|` make a mapping of its own in the same store.

    Thread-safe, also in finalizers and signal handlers, and where keys and serializers call it; bound to the
    process that made it. Closing or losing it gives the pages back to the store and ends its group.
    """

    def __init__(
        self,
        store: SwapStore,
        *,
        name: str | None = None,
        max_bytes: int | None = None,
        serializer: str | Serializer = "bytes",
    ) -> None:
        check_kind(store, "store", SwapStore)
        self._packer = packer_of(serializer, store.page_size)
        self._page_size = store.page_size
        self._store = store
        self._serializer = serializer
        if name is None:
            names = (f"mapping-{number}" for number in store._numbers)  # noqa: SLF001
            groups = (store._new_group(each, max_bytes) for each in names)  # noqa: SLF001
            self._group = next(group for group in groups if group is not None)
        else:
            group = store._new_group(name, max_bytes)  # noqa: SLF001
            if group is None:
                raise BadArgument(f"the store has a group {name!r} already: take another name")
            self._group = group
        weakref.finalize(self, self._group.close).atexit = False
        self._values: dict[Key, _Value] = {}
        self._space = IndexSpace(self._group._ledger)  # noqa: SLF001 - it erases what is gone
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._group.name!r} of {len(self._values)} values>"

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._values))

    def __reversed__(self) -> Iterator[Key]:
        return iter(list(reversed(self._values)))

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __getitem__(self, key: Key) -> Any:
        self._enter()
        return self._read(key, self._values[key])

    def __setitem__(self, key: Key, value: Any) -> None:
        self._put(key, value, self._assign)

    def __delitem__(self, key: Key) -> None:
        self._enter()
        del self._values[key]
        self._settle()

    def get(self, key: Key, default: Any = None) -> Any:
        """Give the key's value, or `default` where it has none; a KeyError of its serializer is raised."""
        again = False
        while True:
            try:
                return self[key]
            except KeyError:
                if key not in self:
                    return default
                if again:
                    raise
                again = True  # another thread may have put it in just then

    def items(self) -> ItemsView[Key, Any]:
        """Give a view of keys and values; iteration leaves out what is gone when it comes there."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """Give a view of the values; iteration is as that of `items`."""
        return _Values(self)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Put in what another mapping, or an iterable of pairs, has."""
        super().update(other.items() if isinstance(other, Mapping) else other, **more)

    def setdefault(self, key: Key, default: Any = None) -> Any:
        """Give the key's value; where it has none, make it `default`. Of several threads, one does."""
        self._enter()
        while (value := self._values.get(key)) is None:
            if self._put(key, default, self._assign_if_absent):
                return default
        return self._read(key, value)

    def pop(self, key: Key, default: Any = _NOTHING) -> Any:
        """Take a value out and give it. It is out once it was read, and of several threads one gets it."""
        self._enter()
        value = self._values.get(key)
        if value is not None:
            result = self._read(key, value)
            taken = self._values.pop(key, None)
            if taken is not None:
                result = self._result_of(key, taken, value, result)
                del taken, value
                self._settle()
                return result
        self._enter()  # a key that went with the mapping is not absent
        if default is _NOTHING:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[Key, Any]:
        """Take out the key that was put in last, with its value; KeyError where there is none."""
        self._enter()
        while True:
            try:
                key, value = next(reversed(self._values.items()))
            except StopIteration:
                raise KeyError("the mapping is empty") from None
            except RuntimeError:  # another thread changed it just then
                continue
            break
        result = self._read(key, value)
        try:
            last, taken = self._values.popitem()
        except KeyError:
            self._enter()
            raise  # another thread was faster
        result = self._result_of(last, taken, value, result)
        del taken, value
        self._settle()
        return last, result

    def _result_of(self, key: Key, taken: _Value, value: _Value, result: Any) -> Any:
        """Return what was taken out: `result`, if it is the value which that was read from."""
        if taken is not value:
            try:
                result = self._read(key, taken)
            except BaseException:
                self._values.setdefault(key, taken)
                raise
        return result

    def clear(self) -> None:
        """Forget all values."""
        self._enter()
        self._values.clear()
        self._settle()

    def copy(self) -> CompressedMapping:
        """Make a mapping with the same values and serializer, in a group of the same limit of this store."""
        self._enter()
        other = CompressedMapping(
            self._store, max_bytes=self._group.max_bytes, serializer=self._serializer
        )
        try:
            for key, value in list(self._values.items()):
                other._values[key] = other._write(self._load(key, value))
        except BaseException:
            other.close()
            raise
        return other

    def __eq__(self, other: object) -> bool:
        return other is self or super().__eq__(other)

    __hash__ = None  # type: ignore[assignment] # as a dict's

    def __or__(self, other: Mapping[Key, Any]) -> CompressedMapping:
        made: CompressedMapping = self._joined(self, other)
        return made

    def __ror__(self, other: Mapping[Key, Any]) -> CompressedMapping:
        made: CompressedMapping = self._joined(other, self)
        return made

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc] # takes more than | does, as a dict's
        self.update(other)
        return self

    def _joined(self, first: object, second: object) -> Any:
        if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
            return NotImplemented
        made = CompressedMapping(
            self._store, max_bytes=self._group.max_bytes, serializer=self._serializer
        )
        try:
            made.update(first)
            made.update(second)
        except BaseException:
            made.close()
            raise
        return made

    @property
    def group(self) -> Group:
        """The group of the store that has the pages: its counters, `max_bytes`, `writeback`."""
        return self._group

    @property
    def nbytes(self) -> int:
        """Bytes of all values as they were serialised; added up when it is asked for."""
        return sum(sum(value.lengths) for value in list(self._values.values()))

    @property
    def cbytes(self) -> int:
        """Bytes they take, compressed, in the pool and in the backing file."""
        self._enter()
        return self._group.stored_bytes

    @property
    def cratio(self) -> float:
        """How many times smaller that is; 1.0 where nothing is stored, infinite where it takes no byte."""
        whole, small = self.nbytes, self.cbytes
        if not whole:
            return 1.0
        return whole / small if small else float("inf")

    def close(self) -> None:
        """Forget all values and give their pages back to the store; further calls do nothing."""
        self._closed = True
        self._values.clear()
        self._group.close()

    @property
    def closed(self) -> bool:
        """Whether it can be used no more: it is closed, or its store, or this is another process."""
        return self._closed or self._group.closed

    def check_invariants(self) -> None:
        """Raise AssertionError where an invariant does not hold; no other thread may change anything."""
        self._enter()
        self._space.check_invariants()
        held = [value.reservation for value in self._values.values() if value.reservation]
        indices = {index for each in held for index in range(each.first, each.first + each.count)}
        pages = sum(each.count for each in held)
        if not pages == len(indices) == self._space.taken == len(self._group):
            raise AssertionError(
                f"values have {pages} pages at {len(indices)} indices, of {self._space.taken} that "
                f"are taken, and the group has {len(self._group)}"
            )
        if indices and max(indices) >= self._space.end:
            raise AssertionError(f"index {max(indices)} lies beyond the end, {self._space.end}")

    def _enter(self) -> None:
        if self._closed or self._group.closed:
            self._refuse()

    def _settle(self) -> None:
        """Give back what pages that went without a call of the group had in the backing file."""
        self._group._settle()  # noqa: SLF001 - as above

    def _refuse(self) -> None:
        if not self._closed:
            self._group._refuse()  # noqa: SLF001 - the group says whether its store is closed or was forked
        raise ClosedError(f"this {type(self).__name__} is closed")

    def _assign(self, key: Key, value: _Value) -> bool:
        self._values[key] = value
        return True

    def _assign_if_absent(self, key: Key, value: _Value) -> bool:
        return self._values.setdefault(key, value) is value

    def _put(self, key: Key, value: object, assign: Callable[[Key, _Value], bool]) -> bool:
        """Store a value and have it assigned; whether it was. What it replaces is free then."""
        self._enter()
        if not isinstance(key, _KEYS):
            raise NotStorable(
                f"a key is str, bytes, int, None or a tuple, not {type(key).__name__}"
            )
        hash(key)  # a tuple may hold what has none: say so before anything is stored
        stored = None
        try:
            stored = self._write(self._packer.pack(value))
            assigned = assign(key, stored)
            if self._closed:  # by another thread, or the serializer
                self._values.clear()
                self._refuse()
            return assigned
        finally:
            del stored
            if not self._group.closed:
                self._settle()

    def _write(self, parts: Sequence[Flat]) -> _Value:
        size = self._page_size
        lengths = [len(part) for part in parts]
        tails = b"".join(part[len(part) - len(part) % size :] for part in parts)
        tails += bytes(-len(tails) % size)
        count = sum(length // size for length in lengths) + len(tails) // size
        if not count:
            return _Value(lengths, None)
        reservation = self._space.reserve(count)
        try:
            at = reservation.first
            for part in (*parts, tails):
                pages = len(part) // size
                if pages:
                    whole = np.frombuffer(part, np.uint8, pages * size)
                    self._group.store(at, whole.reshape(pages, size))
                    at += pages
            return _Value(lengths, reservation)
        finally:
            # An exception keeps this frame, and the indices would be taken as long as it is kept.
            del reservation

    def _read(self, key: Key, value: _Value) -> Any:
        return self._packer.unpack(self._load(key, value))

    def _load(self, key: Key, value: _Value) -> list[memoryview]:
        try:
            return self._parts(value)
        except (CorruptPage, PageError) as error:
            error.add_note(f"it is a page of the value of key {shown(key)}")
            raise

    def _parts(self, value: _Value) -> list[memoryview]:
        if value.reservation is None:
            return [memoryview(bytearray(0)) for _ in value.lengths]
        size, at = self._page_size, value.reservation.first
        last = at + value.reservation.count
        if last - at == 1:  # the usual short value
            page = memoryview(bytearray(self._group.load(at)))
            ends = list(itertools.accumulate(value.lengths))
            return [
                page[end - length : end] for end, length in zip(ends, value.lengths, strict=True)
            ]
        rooms = [np.empty(length, np.uint8) for length in value.lengths]
        for room in rooms:
            pages = len(room) // size
            if pages:
                self._group.load_many(range(at, at + pages), room[: pages * size])
                at += pages
        if at < last:
            tails = self._group.load_many(range(at, last)).reshape(-1)
            taken = 0
            for room in rooms:
                tail = len(room) % size
                if tail:
                    room[-tail:] = tails[taken : taken + tail]
                    taken += tail
        return [flat(room) for room in rooms]


class _Items(ItemsView[Key, Any]):
    _mapping: CompressedMapping

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        for key in self._mapping:
            value = self._mapping.get(key, _NOTHING)
            if value is not _NOTHING:
                yield key, value

    def __contains__(self, item: object) -> bool:
        key, value = cast("tuple[Key, Any]", item)
        found = self._mapping.get(key, _NOTHING)
        return found is value or found == value


class _Values(ValuesView[Any]):
    _mapping: CompressedMapping

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._mapping.items())

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)
