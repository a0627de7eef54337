"""batchzip's codecs for Zarr format 3, under the name "batchzip". Format 2 uses numcodecs.Batchzip.

    zarr.create_array(…, compressors=BatchzipCodec("zstd", level=1, shuffle=4))

The format of a chunk, and its checks, are those of `batchzip.numcodecs`. Zarr's threads do the
work.

Arrays and groups can also be kept in a CompressedMapping, which then compresses them instead:

    kept = zarr.storage.MemoryStore(batchzip.CompressedMapping(store, serializer="pickle"))
    zarr.create_array(kept, …, compressors=None)
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from batchzip.errors import BadArgument, MissingExtra
from batchzip.numcodecs import Batchzip
from batchzip.wording import shown

try:
    from zarr.abc.codec import BytesBytesCodec
except ModuleNotFoundError as missing:
    said = str(MissingExtra("batchzip.zarr", "zarr", "zarr"))
    raise ModuleNotFoundError(said, name="zarr") from missing

if TYPE_CHECKING:
    from typing import Self

    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer


__all__ = ["BatchzipCodec"]


class BatchzipCodec(BytesBytesCodec):
    """One of batchzip's algorithms as a Zarr codec. Parameters are those of `numcodecs.Batchzip`.

    Examples:
        >>> import numpy as np
        >>> import zarr
        >>> from batchzip.zarr import BatchzipCodec
        >>> codec = BatchzipCodec("zstd", level=1, shuffle=4)
        >>> array = zarr.create_array({}, shape=100_000, dtype="i4", compressors=[codec])
        >>> array[:] = np.arange(100_000)
        >>> int(array[99_999])
        99999
    """

    is_fixed_size = False

    def __init__(
        self,
        algorithm: str = "zstd",
        *,
        page_size: int = 1 << 16,
        shuffle: int | str | None = None,
        **parameters: Any,
    ) -> None:
        self.codec = Batchzip(algorithm, page_size=page_size, shuffle=shuffle, **parameters)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the codec that an array's metadata describes. Raise BadArgument for another."""
        given = data if isinstance(data, dict) else {}
        configuration = given.get("configuration", {})
        if given.get("name") != Batchzip.codec_id or not isinstance(configuration, dict):
            raise BadArgument(
                f"metadata of codec {Batchzip.codec_id!r} expected, not {shown(data)}"
            )
        return cls(**configuration)

    def to_dict(self) -> dict[str, Any]:
        """Return the description of this codec for an array's metadata."""
        configuration = self.codec.get_config()
        return {"name": configuration.pop("id"), "configuration": configuration}

    def __repr__(self) -> str:
        return repr(self.codec).replace(type(self.codec).__name__, type(self).__name__, 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BatchzipCodec) and self.codec == other.codec

    def __hash__(self) -> int:
        return hash(self.codec)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raise NotImplementedError: the size depends on the chunk's content."""
        raise NotImplementedError

    # Zarr's SupportsSyncCodec: without an event loop, no thread is needed.

    def _encode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        encoded = self.codec.encode(chunk_data.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        decoded = self.codec.decode(chunk_data.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(decoded)

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)
