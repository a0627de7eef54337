"""Targets of a backing file, and mounts to hold them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from support.backing import free, write

from batchzip.store.backing.backing_file import BackingFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

PAGE = 4096


def opened(target: object) -> BackingFile:
    return BackingFile(target, page_size=PAGE)


def made(make: Callable[[Path], None], path: Path) -> Path:
    """Make something at a path, and return the path."""
    make(path)
    return path


def works(target: object) -> None:
    with opened(target) as file:
        batches = [[bytes([at]) * PAGE for at in range(256)] for _ in range(2)]
        first, second = (write(file, batch) for batch in batches)
        free(file, first)
        assert file.read(second) == batches[1]
        assert file.read(write(file, batches[0])) == batches[0]


def open_fd(stack: ExitStack, path: str | Path, flags: int, mode: int = 0o600) -> int:
    fd = os.open(path, flags, mode)
    stack.callback(os.close, fd)
    return fd
