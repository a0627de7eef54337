"""Buffers of every kind are pages or sources, or are refused; none is read as bytes that is not."""

from __future__ import annotations

import ctypes
import gc
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.store_pages import noise, text

from batchzip import (
    BadBatch,
    CompressBatch,
    CompressedMapping,
    DecompressBatch,
    Engine,
    NotStorable,
    SwapStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable


# Buffers


class _Structure(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int64), ("thing", ctypes.py_object))


REFERENCES: dict[str, Callable[[], Any]] = {
    "array": lambda: np.empty(512, object),
    "field": lambda: np.empty(512, [("thing", object)]),
    "second field": lambda: np.empty(256, [("number", "i8"), ("thing", object)]),
    "field of a field": lambda: np.empty(256, [("f", [("number", "i8"), ("thing", object)])]),
    "array in a field": lambda: np.empty(256, [("things", object, 2)]),
    "structure": _Structure * 256,
    "pointers": ctypes.py_object * 512,
}

USES: dict[str, Callable[[SwapStore, Any], object]] = {
    "store": lambda s, buffer: s.store(0, [buffer]),
    "load": lambda s, buffer: s.load(1, out=buffer),
    "load_many": lambda s, buffer: s.load_many([1], out=buffer),
    "compress": lambda _, buffer: CompressBatch([buffer]),
    "compress a page": lambda s, buffer: s.engine.compress_page(buffer),
    "decompress to": lambda _, buffer: DecompressBatch([b"source"], pages=[buffer]),
    "map": lambda s, buffer: CompressedMapping(s).update(key=buffer),
}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", REFERENCES)
def test_references_to_objects_are_neither_read_nor_written_as_bytes(
    store: SwapStore, kind: str, use: str
) -> None:
    """numpy#6811, numpy#32289: bytes written over references end the process."""
    store.store(1, noise(1))
    buffer = REFERENCES[kind]()
    with pytest.raises((BadBatch, NotStorable), match="references to Python objects"):
        USES[use](store, buffer)
    assert len(store) == 1
    gc.collect()


def test_a_field_may_have_any_name(store: SwapStore) -> None:
    fields = np.arange(1024, dtype="i4").view([("O", "i4")])
    store.store(0, [fields])
    assert store.load(0) == fields.tobytes()


@pytest.mark.parametrize("algorithm", ["lz4", "lz4hc", "zstd", "deflate", "snappy", "brotli"])
def test_pages_and_sources_are_any_kind_of_buffer(algorithm: str) -> None:
    """cramjam#34: a bytearray came back cut. msgpack-python#182: elements were counted as bytes."""
    page = text(1)
    with Engine(algorithm, backend="sequential") as engine:
        source = engine.compress_page(page)
        kinds: list[Callable[[bytes], Any]] = [
            bytearray,
            memoryview,
            lambda data: memoryview(bytearray(data)).toreadonly(),
            lambda data: np.frombuffer(data, np.uint8),
            lambda data: (ctypes.c_char * len(data)).from_buffer_copy(data),
            pickle.PickleBuffer,
        ]
        for kind in kinds:
            assert engine.decompress_page(kind(source)) == page
            assert engine.decompress_page(engine.compress_page(kind(page))) == page
        for wide in ("u2", ">f8", "c16", "i1"):
            array = np.frombuffer(page, wide)
            assert engine.decompress_page(engine.compress_page(array.reshape(2, -1))) == page


def test_a_length_beyond_32_bits_is_not_taken_for_a_shorter_one() -> None:
    """steeve/python-lz4#5, libarchive#1393: a wrapped length decoded the buffer's start."""
    with Engine("lz4", backend="sequential") as engine:
        source = np.frombuffer(engine.compress_page(text(1)), np.uint8)
        sources = np.zeros((1, (1 << 32) + len(source)), np.uint8)  # untouched, but for one page
        sources[0, : len(source)] = source
        for length in ([sources.shape[1]], np.array(sources.shape[1:], np.uint64)):
            batch = DecompressBatch((sources, length))
            engine.decompress(batch)
            assert batch.has_errors
        batch = DecompressBatch((sources, np.array([len(source)], np.int8)))
        engine.decompress(batch)
        assert bytes(batch.pages[0]) == text(1)


@pytest.mark.parametrize("capacity", [(1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_outputs_lie_beyond_4_gib(capacity: int) -> None:
    """python-lz4#44, python-lzo#28: sizes of 2³¹ and 2³² bytes."""
    pages = [text(1), text(2), text(3)]
    with Engine("lz4", backend="sequential") as engine:
        batch = CompressBatch(pages, dsts=np.empty((3, capacity), np.uint8))  # hardly touched
        engine.compress(batch)
        back = DecompressBatch((batch.dsts, batch.dlens))
        engine.decompress(back)
        assert [bytes(page) for page in back.pages] == pages
