"""Targets: programs of calls to a store and to a mapping's records, and a damaged backing file."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from support.entries import in_file, records_in
from support.faulty_file import FaultyFile
from support.fuzzing import Source
from support.store_pages import noise, text, word

from batchzip import BatchzipError, Engine, PageNotStored, StoreRejected, SwapStore
from batchzip.core.keys import NotPlain
from batchzip.core.records import MISSING, Found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.fuzzing import Target

    from batchzip.store.group import Group

SIZE = 512
INDICES = 64
LARGE = noise(1, 200_000), text(1, 200_000)
PAGES = [(text, noise, word, lambda _, size: bytes(size))[n % 4](n, SIZE) for n in range(64)]
FAR = 0, 511, 1 << 20, 1 << 40
"""Where indices begin: the blocks of a table have 512."""


class _OnAStore:
    def __init__(self) -> None:
        self.file = FaultyFile()
        self.engine = Engine("lz4", backend="sequential", page_size=SIZE)
        self.store = SwapStore(self.engine, backing=self.file)

    def close(self) -> None:
        self.store.close()
        self.engine.close()


class Calls(_OnAStore):
    """A program of calls to a store and a group finds what a dict would hold."""

    def __init__(self) -> None:
        super().__init__()
        self._groups: list[Group] = [self.store, self.store.group("far")]
        self._calls = 0

    def __call__(self, data: bytes) -> None:
        source = Source(data)
        models: list[dict[int, bytes]] = [{}, {}]
        while source:
            code = source.byte()
            group, model = self._groups[code & 1], models[code & 1]
            index = FAR[code >> 1 & 3] + source.byte() % INDICES
            self._STEPS[(code >> 3) % len(self._STEPS)](self, group, model, index, source)
        for group, model in zip(self._groups, models, strict=True):
            assert len(group) == len(model)
            if model:
                found = group.load_many(list(model))
                assert found.tobytes() == b"".join(model.values())
        self._calls += 1
        if self._calls % 1024 == 0:
            self.store.check_invariants()
        self.store.max_pool_bytes = None
        for group, model in zip(self._groups, models, strict=True):
            for first in FAR if model else ():
                group.invalidate(first, 2 * INDICES)
            assert not len(group)
        if self._calls % 1024 == 0:
            assert not self.store.compressed_bytes
            self.store.check_invariants()

    def _store(self, group: Group, model: dict[int, bytes], index: int, source: Source) -> None:
        kind = source.byte()
        pages = [PAGES[(kind + at) % len(PAGES)] for at in range(1 + source.byte() % 12)]
        for at in range(index, index + len(pages)):
            model.pop(at, None)
        try:
            group.store(index, pages)
        except StoreRejected:
            return
        model.update(enumerate(pages, index))

    def _load(self, group: Group, model: dict[int, bytes], index: int, source: Source) -> None:
        exclusive = source.byte() % 4 == 0
        try:
            page = group.load(index, exclusive=exclusive)
        except PageNotStored:
            assert index not in model
            return
        assert page == model[index]
        if exclusive:
            del model[index]

    def _load_many(self, group: Group, model: dict[int, bytes], index: int, source: Source) -> None:
        indices = [index + source.byte() % 8 for _ in range(1 + source.byte() % 6)]
        try:
            pages = group.load_many(indices)
        except PageNotStored:
            assert not set(indices) <= model.keys()
            return
        assert pages.tobytes() == b"".join(model[at] for at in indices)

    def _drop(self, group: Group, model: dict[int, bytes], index: int, source: Source) -> None:
        gone = range(index, index + 1 + source.byte() % 20)
        assert group.invalidate(index, len(gone)) == sum(
            model.pop(at, None) is not None for at in gone
        )

    def _write_back(self, _: Group, __: dict[int, bytes], ___: int, source: Source) -> None:
        self.store.writeback(1 + source.byte() % 40)

    def _compact(self, *_: Any) -> None:
        self.store.compact()

    def _limit(self, _: Group, __: dict[int, bytes], ___: int, source: Source) -> None:
        self.store.max_pool_bytes = (1 + source.byte() % 16) << 12

    def _contains(self, group: Group, model: dict[int, bytes], index: int, _: Source) -> None:
        assert (index in group) == (index in model)

    _STEPS = (_store, _load, _load_many, _drop, _store, _write_back, _contains, _compact, _limit)

    def seeds(self) -> Iterator[bytes]:
        yield bytes([0, 1, 5, 7, 8, 2, 1])
        yield bytes([0, 1, 5, 7, 40, 0, 9, 8, 2, 1, 24, 3, 4, 56, 0])
        yield bytes([64, 0, 0, *([1, 9, 2, 200] * 10), 16, 3, 1, 2])


class Values(_OnAStore):
    """A program of calls to a mapping's records finds what a dict would hold."""

    def __init__(self) -> None:
        super().__init__()
        self._values = records_in(self.store)

    def __call__(self, data: bytes) -> None:
        source, model = Source(data), dict[Any, bytes]()
        while source:
            step = self._STEPS[source.byte() % len(self._STEPS)]
            with suppress(NotPlain):
                step(self, model, source)
        assert len(self._values) == len(model)
        keys = list(model)
        assert [(type(key), key) for key in self._values.keys()] == [(type(k), k) for k in keys]  # noqa: SIM118 - no dict
        assert [self._whole(found) for found in self._values.get_many(keys)] == list(model.values())
        assert self._values.fault() is None
        self._values.clear()
        assert not self._values.figures()["raw_bytes"]

    def _key(self, source: Source, depth: int = 0) -> Any:
        match source.byte() % 8:
            case 0:
                key: Any = source.take(source.byte() % 40)
            case 1:
                key = source.take(source.byte() % 40).decode("utf-8", "surrogateescape")
            case 2:
                key = int.from_bytes(source.take(source.byte() % 10), "little", signed=True)
            case 3:
                key = bool(source.byte() & 1)
            case 4:
                key = None
            case 5 if depth < 4:
                key = tuple(self._key(source, depth + 1) for _ in range(source.byte() % 4))
            case 6:
                key = 0.5  # not plain
            case _:
                key = source.byte()
        return key

    def _value(self, source: Source) -> bytes:
        length = source.number(2) % (self._values.most_bytes + 1)
        kind = source.byte()
        return (noise if kind & 1 else text)(kind, length)

    def _whole(self, found: object) -> object:
        """Return the bytes of a value, also of one in chunks."""
        if not isinstance(found, Found):
            return found
        parts = self._values.finish(found)
        return parts if isinstance(parts, bytes) else b"".join(parts or ())

    def _put_in_chunks(self, model: dict[Any, bytes], source: Source) -> None:
        key = self._key(source)
        parts = [b""] * (source.byte() % 3)
        parts = [LARGE[source.byte() % 2][: source.number(2)] for _ in parts]
        parts.append(LARGE[source.byte() % 2][: self._values.most_bytes + 1 + source.number(2)])
        assert self._values.put_chunked(key, self._values.compress(parts)) == 0
        model[key] = b"".join(parts)

    def _put(self, model: dict[Any, bytes], source: Source) -> None:
        key, value = self._key(source), self._value(source)
        assert self._values.put(key, value) == 0
        model[key] = value

    def _put_if_absent(self, model: dict[Any, bytes], source: Source) -> None:
        key, value = self._key(source), self._value(source)
        code = self._values.put(key, value, if_absent=True)
        assert (code != 0) == (key in model)
        model.setdefault(key, value)

    def _put_many(self, model: dict[Any, bytes], source: Source) -> None:
        pairs = [(self._key(source), self._value(source)) for _ in range(source.byte() % 6)]
        keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        try:
            assert self._values.put_many(keys, values, 0) == (len(pairs), 0)
        except NotPlain:
            # Those before the one that is not plain may be stored.
            for key in keys:
                with suppress(NotPlain):
                    self._values.remove(key)
                    model.pop(key, None)
            return
        model.update(pairs)

    def _get(self, model: dict[Any, bytes], source: Source) -> None:
        key = self._key(source)
        assert self._whole(self._values.get(key)) == model.get(key, MISSING)

    def _remove(self, model: dict[Any, bytes], source: Source) -> None:
        key = self._key(source)
        assert self._values.remove(key) == (model.pop(key, None) is not None)

    def _contains(self, model: dict[Any, bytes], source: Source) -> None:
        key = self._key(source)
        assert self._values.contains(key) == (key in model)

    def _shrink(self, model: dict[Any, bytes], source: Source) -> None:
        before = len(model)
        gone = self._values.shrink(source.number(2))
        left = set(self._values.keys())
        for key in [key for key in model if key not in left]:
            del model[key]
        assert before - len(model) == gone

    _STEPS = (
        *(_put, _get, _remove, _put, _put_many, _contains, _put_if_absent, _shrink),
        _put_in_chunks,
    )

    def seeds(self) -> Iterator[bytes]:
        yield bytes([0, 2, 1, 7, 100, 0, 3, 1, 2, 1, 7])
        yield bytes([0, 0, 3, *b"key", 0, 2, 3, 2, 1, 3, *b"key"])
        yield bytes([4, 3, 7, 1, 9, 0, 1, 7, 2, 9, 0, 2, 7, 3, 9, 0, 3, 7, 10, 0])
        yield bytes([0, 5, 2, 1, 2, *b"ab", 3, 1, 50, 0, 7, 0, 3, 0, 9, 0, 1])
        yield bytes([8, 7, 1, 2, 0, 9, 9, 1, 50, 50, 0, 0, 255, 1, 7, 1, 8, 7, 1, 0, 1, 255, 255])


class DamagedFile(_OnAStore):
    """Whatever becomes of a backing file's bytes, a page is right or an error."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 16
        self.store.store(0, PAGES[: self._count])
        assert self.store.writeback(self._count) == 8  # the others are same-filled
        self._content = bytes(self.file.content)
        self._places = {
            index: in_file(self.store, index) for index in range(self._count) if index % 4 < 2
        }

    def __call__(self, data: bytes) -> None:
        source = Source(data)
        self.file.content[:] = self._content
        changed = {0}
        while source:
            code = source.byte()
            index = list(self._places)[code % len(self._places)]
            places = self._places[index]
            at = places[source.byte() % len(places)]
            if code & 0x80:
                del self.file.content[at:]
            else:
                given = source.take(1 + (code >> 4 & 7))
                self.file.content[at : at + len(given)] = given
            changed.add(index)
        for index in changed:
            try:
                assert self.store.load(index) == PAGES[index]
            except BatchzipError:
                assert self.file.content != self._content, f"page {index} was not changed"

    def seeds(self) -> Iterator[bytes]:
        yield b""
        yield struct.pack("<3B", 1, 7, 255)
        yield struct.pack("<6B", 0x13, 0, 1, 2, 0x84, 9)


TARGETS: dict[str, type[Target]] = {"store": Calls, "values": Values, "file": DamagedFile}
