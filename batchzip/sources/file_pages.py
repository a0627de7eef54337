"""FilePages: a file of any size, streamed as pages, and read again for comparison."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import numpy as np

from batchzip.errors import BadArgument
from batchzip.system.lifetime import Closing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray


class FilePages(Closing):
    """The pages of a file or block device at `path`, read `chunk_pages` at a time.

    At most one chunk is in memory. The last page is padded with `padded_bytes` zeros. Raises
    OSError if the file is missing or may not be read, and BadArgument if it is empty, a directory,
    or cannot be read twice (a pipe, a terminal). An object belongs to one thread.
    """

    kind = "file"

    def __init__(
        self, path: str | os.PathLike[str], *, page_size: int = 4096, chunk_pages: int = 1024
    ) -> None:
        self.name = os.fspath(path)
        self.page_size = page_size
        self._chunk_pages = chunk_pages
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.size = self._checked_size()
            self._version = self._stamp()
        except BaseException:
            self.close()
            raise
        self.pages = -(-self.size // page_size)
        self.padded_bytes = self.pages * page_size - self.size

    def _checked_size(self) -> int:
        mode = os.fstat(self._fd).st_mode
        if stat.S_ISDIR(mode):
            raise BadArgument(f"{self.name} is a directory: name a file in it")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise BadArgument(
                f"{self.name} cannot be read twice: name a file, not a pipe or device"
            )
        try:
            size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:  # such as files in /proc
            error.filename = self.name
            raise
        if not size:
            raise BadArgument(f"{self.name} is empty: there is no page to store")
        return size

    def _stamp(self) -> tuple[int, int]:
        status = os.fstat(self._fd)
        return status.st_size, status.st_mtime_ns

    def details(self) -> dict[str, Any]:
        """Return what was read, with the keys of the JSON report."""
        return {"path": self.name, "file_bytes": self.size}

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield arrays (n, page_size), where n is `chunk_pages` except in the last one.

        The array belongs to this object, which overwrites it with the next chunk. Raise OSError if
        the file cannot be read or became shorter.
        """
        buffer = np.empty((min(self._chunk_pages, self.pages), self.page_size), np.uint8)
        for first in range(0, self.pages, self._chunk_pages):
            chunk = buffer[: self.pages - first]
            self._fill(chunk, first * self.page_size)
            yield chunk

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read the pages at `indices`. Return a new array (len(indices), page_size)."""
        out = np.empty((len(indices), self.page_size), np.uint8)
        for row, index in zip(out, indices.tolist(), strict=True):
            self._fill(row, index * self.page_size)
        return out

    def _fill(self, out: NDArray[np.uint8], offset: int) -> None:
        view = out.reshape(-1).data
        wanted = min(len(view), self.size - offset)
        got = 0
        while got < wanted:
            read = os.preadv(self._fd, [view[got:wanted]], offset + got)
            if not read:
                raise OSError(
                    f"{self.name} became shorter while it was read: do not change it meanwhile"
                )
            got += read
        out.reshape(-1)[wanted:] = 0

    def where(self, index: int) -> str:
        """Return the position of page `index` in the file, as text."""
        return f"file offset {index * self.page_size}"

    def check_unchanged(self) -> None:
        """Raise OSError if the file was written to since it was opened.

        In that case a difference is not the store's fault.
        """
        if self._stamp() != self._version:
            raise OSError(f"{self.name} was changed while it was read: do not change it meanwhile")

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
