"""batchzip's codecs for numcodecs, and so for Zarr: a chunk is divided into pages of one algorithm.

    zarr.create_array(…, zarr_format=2, compressors=Batchzip("zstd", level=1, shuffle=4))
    numcodecs.get_codec({"id": "batchzip", "algorithm": "lz4"})

An encoded chunk, little-endian:

    magic 4 B │ log2 of page size u8 │ 0 u8, u16 │ bytes of the chunk u64 │ checksum u64
    length of each page u32 …  │ pages, back to back; one of full length is not compressed

The checksum is the xxh3 of everything else. The last page is padded with zeros. The decoder checks
all declared sizes before it relies on them, and allocates memory only for pages that it has
restored, not for pages that are declared.

The calling thread does the work: Zarr and Dask have their own threads.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from xxhash import xxh3_64

from batchzip.arguments.buffers import flat
from batchzip.batch import CompressBatch, DecompressBatch
from batchzip.engine import Engine
from batchzip.errors import BadArgument, BadBatch, CorruptPage, MissingExtra
from batchzip.wording import kind_of

try:
    from numcodecs.abc import Codec
    from numcodecs.compat import ensure_contiguous_ndarray, ndarray_copy
except ModuleNotFoundError as missing:
    said = str(MissingExtra("batchzip.numcodecs", "numcodecs", "zarr"))
    raise ModuleNotFoundError(said, name="numcodecs") from missing

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Buffer, Bytes

__all__ = ["Batchzip"]

_MAGIC = b"bzc1"
_HEADER = struct.Struct("<4sBBHQ")
_CHECKSUM = struct.Struct("<Q")
_START = _HEADER.size + _CHECKSUM.size

_BATCH_BYTES = 4 << 20
"""Bytes of pages per batch. Their outputs take twice as many."""


class Batchzip(Codec):  # type: ignore[misc] # numcodecs is not typed
    """One of batchzip's algorithms as a numcodecs codec with the ID "batchzip".

    `algorithm`   a name from `batchzip.algorithms()`.
    `page_size`   bytes compressed at a time; a power of two in 512 B … 2 MiB. Larger pages compress
                  better.
    `shuffle`     as in Engine: 2, 4 or 8 for elements of that many bytes; "f2", "f4" or "f8" for
                  floating-point numbers; or None.
    `parameters`  the algorithm's own numbers: `level`, `acceleration`, …

    Picklable; thread-safe. Raises BadArgument for arguments that Engine refuses.

    Examples:
        >>> import numcodecs
        >>> import numpy as np
        >>> from batchzip.numcodecs import Batchzip
        >>> codec = Batchzip("lz4", shuffle=8)
        >>> chunk = codec.encode(np.arange(100_000))
        >>> np.frombuffer(codec.decode(chunk), np.int64)[-1]
        np.int64(99999)
        >>> numcodecs.get_codec(codec.get_config()) == codec
        True
    """

    codec_id: ClassVar[str] = "batchzip"

    def __init__(
        self,
        algorithm: str = "zstd",
        *,
        page_size: int = 1 << 16,
        shuffle: int | str | None = None,
        **parameters: Any,
    ) -> None:
        config = {"algorithm": algorithm, "page_size": page_size, "shuffle": shuffle, **parameters}
        self._config: dict[str, Any] = {name: _plain(name, value) for name, value in config.items()}
        self._engine = self._made()

    def get_config(self) -> dict[str, Any]:
        """Return the description for an array's metadata. `numcodecs.get_codec` reads it."""
        return {"id": self.codec_id, **self._config}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._config.items())
        return f"{type(self).__name__}({arguments})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self._config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batchzip) and self._config == other._config

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._config.items(), key=str)))

    def encode(self, buf: Any) -> bytes:
        """Compress a chunk, which is any contiguous buffer."""
        chunk = ensure_contiguous_ndarray(buf).reshape(-1).view(np.uint8)
        engine = self._usable()
        size = engine.page_size
        lengths: list[int] = []
        outputs: list[bytes | memoryview] = []
        step = max(1, _BATCH_BYTES // size) * size
        for start in range(0, len(chunk), step):
            pages = _as_pages(chunk[start : start + step], size)
            batch = CompressBatch(pages)
            engine.compress(batch)
            for row, page in enumerate(pages):
                small = 0 < batch.dlens[row] < size
                outputs.append(bytes(batch.output(row)) if small else page.tobytes())
                lengths.append(len(outputs[-1]))
        header = _HEADER.pack(_MAGIC, size.bit_length() - 1, 0, 0, len(chunk))
        rest = b"".join([np.array(lengths, "<u4").tobytes(), *outputs])
        return header + _CHECKSUM.pack(_checksum(header, memoryview(rest))) + rest

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Restore a chunk to `out`, a writable buffer of exactly its size, or to new memory.

        Raise BadBatch, a ValueError, if `encode` did not produce the bytes or they were damaged,
        and CorruptPage if a page with the right checksum cannot be restored.
        """
        source = flat(ensure_contiguous_ndarray(buf).reshape(-1).view(np.uint8))
        length, lengths, pages = self._parse(source)
        room = None if out is None else ensure_contiguous_ndarray(out)
        if room is not None and room.nbytes != length:
            raise BadBatch(f"out must have {length} bytes as the chunk has, not {room.nbytes}")
        chunk = self._restore(lengths, pages)
        del chunk[length:]
        if room is None:
            return chunk
        return ndarray_copy(chunk, out)

    def _parse(self, source: memoryview) -> tuple[int, list[int], memoryview]:
        """Check a chunk's header. Return its length, the lengths of its pages, and their bytes."""
        if len(source) < _START:
            raise BadBatch(f"{len(source)} bytes are too few for a chunk of batchzip")
        magic, bits, *zeros, length = _HEADER.unpack_from(source)
        if magic != _MAGIC or any(zeros):
            raise BadBatch("the bytes are not a chunk of batchzip: their header differs")
        size = self._config["page_size"]
        if bits != size.bit_length() - 1:
            raise BadBatch(f"the chunk has pages of 2^{bits} bytes, but this codec has {size}")
        (check,) = _CHECKSUM.unpack_from(source, _HEADER.size)
        rest = source[_START:]
        if check != _checksum(source[: _HEADER.size], rest):
            raise BadBatch("the chunk is damaged: its checksum does not match")
        count = -(-length // size)
        if count * 4 > len(rest):
            raise BadBatch(f"the chunk is too short for the {count} pages of {length} bytes")
        lengths = np.frombuffer(rest[: count * 4], "<u4")
        pages = rest[count * 4 :]
        if int(lengths.sum(dtype=np.uint64)) != len(pages) or (lengths > size).any():
            raise BadBatch("the lengths of the chunk's pages do not match its bytes")
        return length, lengths.tolist(), pages

    def _restore(self, lengths: list[int], stored: memoryview) -> bytearray:
        engine = self._usable()
        size = engine.page_size
        chunk = bytearray()
        step = max(1, _BATCH_BYTES // size)
        at = 0
        for start in range(0, len(lengths), step):
            pages = np.empty((min(step, len(lengths) - start), size), np.uint8)
            sources: list[Buffer] = []
            rows: list[int] = []
            for row, length in enumerate(lengths[start : start + step]):
                source = stored[at : at + length]
                at += length
                if length == size:
                    pages[row] = source
                else:
                    sources.append(source)
                    rows.append(row)
            if sources:
                batch = DecompressBatch(sources, page_size=size)
                engine.decompress(batch)
                if batch.has_errors:
                    raise CorruptPage(start + rows[int(np.flatnonzero(batch.errors)[0])])
                pages[rows] = batch.pages
            chunk += flat(pages)
        return chunk

    def _usable(self) -> Engine:
        if self._engine.closed:  # in a forked child
            self._engine = self._made()
        return self._engine

    def _made(self) -> Engine:
        return Engine(backend="sequential", **self._config)


def _plain(name: str, value: object) -> bool | int | str | None:
    """Return a value for JSON: NumPy scalars become Python's. Raise BadArgument for other types."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise BadArgument(
        f"{name} is kept in an array's metadata, so it must be a number or a string, "
        f"not {kind_of(value)}"
    )


def _restored(kind: type[Batchzip], config: dict[str, Any]) -> Batchzip:
    return kind(**config)


def _as_pages(part: Bytes, size: int) -> Bytes:
    """View bytes as pages. The last part of a chunk is copied if it must be padded."""
    if len(part) % size:
        part = np.concatenate([part, np.zeros(-len(part) % size, np.uint8)])
    return part.reshape(-1, size)


def _checksum(header: bytes | memoryview, rest: memoryview) -> int:
    state = xxh3_64(header)
    state.update(rest)
    return state.intdigest()
