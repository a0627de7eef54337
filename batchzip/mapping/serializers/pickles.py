"""Anything that can be pickled, with the buffers of arrays and frames outside the stream.

Loading a pickle runs code. These pickles come from this process only. pandas itself joins the
chunks of Arrow's columns, including text, before it hands over their buffers. NumPy's columns are
not copied.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

from batchzip.errors import NotStorable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat


class PicklePacker:
    """Packs anything that can be pickled. Buffers of `least` bytes or more stay outside."""

    def __init__(self, least: int) -> None:
        self.least = least

    def pack(self, value: object) -> list[Flat]:
        """Pickle a value. Raise NotStorable.

        If buffers stay outside, the last part says which were read-only, so that they are restored
        as read-only.
        """
        buffers: list[Flat] = []
        writable = bytearray()

        def keep_inside(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()  # BufferError if not contiguous, which pickle refuses, too
            if view.nbytes < self.least:
                return True
            buffers.append(view)
            writable.append(not view.readonly)
            return False

        try:
            stream = pickle.dumps(value, protocol=5, buffer_callback=keep_inside)
        except Exception as error:  # a __reduce__ may raise anything
            raise NotStorable(
                f"the value, of {type(value).__name__}, cannot be pickled: {error}"
            ) from error
        return [stream, *buffers, bytes(writable)] if buffers else [stream]

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Unpickle a value that refers to the buffers."""
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
