"""Arrow's tables and record batches, by its IPC format: nothing in the bytes is run.

The stream is written to a list: Arrow hands over each buffer as it lies, and metadata and padding
as bytes. The parts are the stream, cut before and after each buffer of 64 KiB or more, which is not
copied. When a table is read, they are joined, as Arrow wants a batch in one piece, and its columns
are views of that. All lengths, offsets and texts are checked then, since Arrow itself trusts them.
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
    """Values are tables and record batches; they come back equal, with schema and metadata.

    A table's chunks may lie otherwise. Types that were registered with Arrow are restored by their
    own classes.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._arrow = load_extra("pyarrow", extra="arrow", needed_by="serializer='arrow'")

    def pack(self, value: Any) -> list[Flat]:
        """Write it as a stream. Raises NotStorable."""
        arrow = self._arrow
        if type(value) not in (arrow.Table, arrow.RecordBatch):
            raise NotStorable(f"{_TAKES}, not {kind_of(value)}: say serializer='pickle' for others")
        sink = _Sink(self._least)
        try:
            with (
                arrow.PythonFile(sink, "w") as file,
                arrow.ipc.new_stream(file, value.schema) as stream,
            ):
                stream.write(value)
        except (arrow.ArrowException, OSError, ValueError, TypeError) as error:
            raise NotStorable(f"Arrow cannot write the value: {error}") from error
        sink.write(_TABLE if type(value) is arrow.Table else _BATCH)
        return sink.parts()

    def unpack(self, parts: Sequence[memoryview]) -> object:
        """Read the stream that the parts are. Raises UnreadableValue."""
        return self.unpack_one(parts[0] if len(parts) == 1 else b"".join(parts))

    def unpack_one(self, data: bytes | memoryview) -> object:
        """Read a stream. Raises UnreadableValue."""
        arrow = self._arrow
        kind = bytes(data[-1:])
        if kind not in (_TABLE, _BATCH):
            raise UnreadableValue("the bytes do not end as those of a table or record batch")
        try:
            with arrow.ipc.open_stream(arrow.py_buffer(data)) as stream:
                value = stream.read_all() if kind == _TABLE else stream.read_next_batch()
            value.validate(full=True)
        except (arrow.ArrowException, OSError, ValueError, TypeError, StopIteration) as error:
            raise UnreadableValue(f"the bytes are no stream of Arrow: {error}") from None
        return value


class _Sink:
    """A file, as far as Arrow writes to it, that keeps large buffers as they are."""

    closed = False

    def __init__(self, least: int) -> None:
        self._least = least
        self._parts: list[Any] = []
        self._small: list[Any] = []

    def write(self, data: Any) -> int:
        """Take bytes, which are a copy, or one of Arrow's buffers, which is not."""
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
        """Return all that was written."""
        self._join()
        return self._parts

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
