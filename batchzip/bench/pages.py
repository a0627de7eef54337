"""The pages to compress: from a workload, a process, a compiler or a file, or synthetic ones.

captured     from a process with Python objects, parsed source, JSON text and NumPy arrays
random       random bytes, which no algorithm makes smaller
zeros        zeros, which every algorithm makes very small
alternating  captured and random pages in turn: easy and hard ones side by side
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchzip.bench.compiler import Compiler
from batchzip.errors import BadArgument
from batchzip.sources.file_pages import FilePages
from batchzip.sources.process_memory import ProcessMemory
from batchzip.sources.workload import Workload

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

    Pages = NDArray[np.uint8]
    """(n, PAGE)"""

PAGE = 4096
"""Bytes per page: the unit of the kernel's swap, which every peer supports."""

KINDS = ("captured", "random", "zeros", "alternating")

_WORKLOAD_MIB = 64
_MOST_READ_PAGES = 1 << 16
"""Maximum number of pages read from a process, 256 MiB. Reading more would only take longer."""

_CHUNK_PAGES = 1024


@dataclass(frozen=True, slots=True)
class Source:
    """The source of pages: a kind, or the process `pid`, or the `file`.

    With `compiled`, it is a compiler with these arguments, stopped when it is largest.
    """

    kind: str = "captured"
    pid: int | None = None
    file: str | None = None
    compiled: str | None = None

    @property
    def name(self) -> str:
        """The name in tables."""
        if self.pid is not None:
            return f"process {self.pid}"
        if self.compiled is not None:
            return f"cc {self.compiled}"
        return self.kind if self.file is None else self.file

    def take(self, count: int) -> Pages:
        """Return up to `count` pages in random order. The order is the same on every call.

        Raise BadArgument for an unknown kind, and what Compiler, FilePages and ProcessMemory raise.
        """
        if self.pid is not None:
            pages = _of_process(self.pid)
        elif self.compiled is not None:
            with Compiler(self.compiled) as compiler:
                pages = _of_process(compiler.pid)
        elif self.file is not None:
            pages = _of_file(self.file, count)
        else:
            pages = self._made(count)
        order = np.random.default_rng(1).permutation(len(pages))
        return np.ascontiguousarray(pages[order[:count]])

    def _made(self, count: int) -> Pages:
        if self.kind not in KINDS:
            raise BadArgument(
                f"{self.kind!r} is not a kind of pages: choose one of {', '.join(KINDS)}"
            )
        if self.kind == "random":
            return _noise(count)
        if self.kind == "zeros":
            return np.zeros((count, PAGE), np.uint8)
        with Workload(_WORKLOAD_MIB) as workload:
            captured = _of_process(workload.pid)
        if self.kind == "captured":
            return captured
        half = min(count // 2 + 1, len(captured))
        return np.concatenate([captured[:half], _noise(count)[:half]])


def _noise(count: int) -> Pages:
    return np.random.default_rng(2).integers(0, 256, (count, PAGE), np.uint8)


def work_pages(source: Source, count: int) -> Pages:
    """Return up to `count` pages of a source that are not same-filled."""
    # A quarter more, because same-filled pages are left out.
    return for_codecs(source.take(count + count // 4))[:count]


def for_codecs(pages: Pages) -> Pages:
    """Return the pages without same-filled ones, which never reach a codec, if others remain."""
    words = pages.view(np.uint64)
    work = (words != words[:, :1]).any(axis=1)
    return np.ascontiguousarray(pages[work]) if work.any() else pages


def _of_process(pid: int) -> Pages:
    with ProcessMemory(pid, page_size=PAGE, chunk_pages=_CHUNK_PAGES) as memory:
        chunks = []
        for chunk in memory.chunks():
            chunks.append(chunk)
            if len(chunks) * _CHUNK_PAGES >= _MOST_READ_PAGES:
                break
        return np.concatenate(chunks)


def _of_file(path: str, count: int) -> Pages:
    with FilePages(path, page_size=PAGE) as file:
        drawn = np.random.default_rng(3).choice(file.pages, min(file.pages, count), replace=False)
        return file.read(np.sort(drawn))


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the options --pid, --file, --compile and --workload to a parser."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--pid", type=int, help="anonymous memory of this process")
    group.add_argument("--file", help="pages drawn from this file")
    group.add_argument(
        "--compile",
        metavar="ARGS",
        help="anonymous memory of cc with these arguments, when it is largest",
    )
    group.add_argument("--workload", choices=KINDS, default=KINDS[0], help="(%(default)s)")


def source_of(options: argparse.Namespace) -> Source:
    """Return the source that the options of `add_source` choose."""
    values: dict[str, Any] = vars(options)
    return Source(values["workload"], values["pid"], values["file"], values["compile"])
