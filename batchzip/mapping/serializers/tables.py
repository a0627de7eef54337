"""Arrow's tables and record batches, in its IPC format: loading never runs code from the bytes.

The stream is written to a list. Arrow hands over each buffer without a copy, and metadata and
padding as bytes. The parts are the stream, cut before and after each buffer of 64 KiB or more, so
that these are not copied. Reading a table joins the parts, because Arrow needs a batch in one
piece, and the columns are views of the joined buffer. All lengths, offsets and texts are then
validated, because Arrow itself trusts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchzip.errors import NotStorable, UnreadableValue
from batchzip.extras import load_extra
from batchzip.wording import kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchzip.arguments.buffers import Flat

_TAKES = "serializer='arrow' takes pyarrow's Table and RecordBatch"

_TABLE = b"T"
_BATCH = b"B"


class TablePacker:
    """Packs tables and record batches. They are restored equal, with schema and metadata.

    The chunks of a table may differ. Extension types registered with Arrow are restored by their
    own classes.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._arrow = load_extra("pyarrow", extra="arrow", needed_by="serializer='arrow'")

    def pack(self, value: Any) -> list[Flat]:
        """Write a value as a stream. Raise NotStorable."""
        arrow = self._arrow
        if type(value) not in (arrow.Table, arrow.RecordBatch):
            raise NotStorable(
                f"{_TAKES}, not {kind_of(value)}: use serializer='pickle' for other values"
            )
        sink = _Sink(self._least)
        try:
            with (
                arrow.PythonFile(sink, "w") as file,
                arrow.ipc.new_stream(file, value.schema) as stream,
            ):
                stream.write(value)
        except Exception as error:  # as for types nested too deeply
            raise NotStorable(f"Arrow cannot write the value: {error}") from error
        sink.write(_TABLE if type(value) is arrow.Table else _BATCH)
        return sink.parts()

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Read the stream that the parts form. Raise UnreadableValue."""
        return self.unpack_one(parts[0] if len(parts) == 1 else b"".join(parts))

    def unpack_one(self, data: bytes | memoryview) -> object:
        """Read a stream. Raise UnreadableValue."""
        arrow = self._arrow
        kind = bytes(data[-1:])
        if kind not in (_TABLE, _BATCH):
            raise UnreadableValue("the bytes do not end like a table or a record batch")
        try:
            with arrow.ipc.open_stream(arrow.py_buffer(data)) as stream:
                value = stream.read_all() if kind == _TABLE else stream.read_next_batch()
            value.validate(full=True)
        except (arrow.ArrowException, OSError, ValueError, TypeError, StopIteration) as error:
            raise UnreadableValue(f"the bytes are not an Arrow stream: {error}") from None
        return value


class _Sink:
    """A write-only file for Arrow that keeps large buffers without a copy."""

    closed = False

    def __init__(self, least: int) -> None:
        self._least = least
        self._parts: list[Any] = []
        self._small: list[Any] = []

    def write(self, data: Any) -> int:
        """Append bytes or one of Arrow's buffers. Return the length."""
        if len(data) < self._least:
            self._small.append(data)
        else:
            self._join()
            self._parts.append(memoryview(data).cast("B"))
        return len(data)

    def _join(self) -> None:
        if self._small:
            self._parts.append(b"".join(self._small))
            self._small = []

    def parts(self) -> list[Flat]:
        """Return the stream, cut at its large buffers."""
        self._join()
        return self._parts

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
