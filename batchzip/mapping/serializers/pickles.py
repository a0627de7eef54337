"""Whatever can be pickled, with the buffers of arrays and frames outside of the stream.

Pickles run code when they are loaded: these come from this process only. Columns of pandas that are
Arrow's, text among them, are joined by pandas itself before it hands their buffers over; those of
NumPy are not copied.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from batchzip.errors import NotStorable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat


class PicklePacker:
    """Values are what can be pickled; buffers of `least` bytes or more stay out of the stream."""

    def __init__(self, least: int) -> None:
        self.least = least

    def pack(self, value: object) -> list[Flat]:
        """Pickle it. Raises NotStorable.

        If buffers stay outside, the last part says which were read-only: they will be again.
        """
        buffers: list[Flat] = []
        writable = bytearray()

        def keep_inside(buffer: pickle.PickleBuffer) -> bool:
            try:
                view = buffer.raw()
            except BufferError:  # not contiguous
                return True
            if view.nbytes < self.least:
                return True
            buffers.append(view)
            writable.append(not view.readonly)
            return False

        try:
            stream = pickle.dumps(value, protocol=5, buffer_callback=keep_inside)
        except Exception as error:  # whatever a __reduce__ raises
            raise NotStorable(
                f"the value, of {type(value).__name__}, cannot be pickled: {error}"
            ) from error
        return [stream, *buffers, bytes(writable)] if buffers else [stream]

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Unpickle it around the buffers."""
        if len(parts) == 1:
            return pickle.loads(parts[0])
        stream, *buffers, writable = parts
        return pickle.loads(
            stream,
            buffers=[
                buffer if may_write else buffer.toreadonly()
                for buffer, may_write in zip(buffers, writable, strict=True)
            ],
        )

    def unpack_one(self, data: bytes) -> object:
        """Unpickle a value without buffers."""
        return pickle.loads(data)
