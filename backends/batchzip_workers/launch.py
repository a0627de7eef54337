"""Launch: starts a worker's process with loky, and leaves nothing behind where that fails.

loky gives a robust start (no fork of threads, no `__main__` guard) and a sentinel. What it does not do:
start anything in a daemonic process, leave the end of its children to whoever started them, and
clean up after a start that failed half-way, which where processes are short happens again and again.

loky writes what the process is to do into a pipe whose other end it holds open itself meanwhile. A pipe
holds 64 KiB: if more is to be said, and the process dies before it reads, the writer waits for ever. So
what may be large goes through sealed memory (PassedValue), and the pipe gets descriptors.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import multiprocessing.process
import os
import pickle
import traceback
from contextlib import contextmanager
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class PassedFd:
    """A descriptor that the process being started inherits; unpickled there as its number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        popen = get_spawning_popen()
        if popen is None:
            raise TypeError("a descriptor is passed on only to a process being started")
        return int, (popen.duplicate_for_child(self.fd),)


class PassedValue:
    """A value of any size for a process being started; unpickled there as that value.

    It is pickled here and now, as loky would. Closed when the process was started: that has inherited
    the memory, which is gone when the value was read, or with the process.
    """

    def __init__(self, value: object) -> None:
        from loky.backend import reduction  # noqa: PLC0415 - as in launch()

        self._fd = os.memfd_create("batchzip-passed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(self._fd, "wb", closefd=False) as memory:
                memory.write(reduction.dumps(value))
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _NEVER_CHANGES)
        except BaseException:
            os.close(self._fd)
            raise

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[PassedFd]]:
        return _read_passed, (PassedFd(self._fd),)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


_NEVER_CHANGES = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _read_passed(fd: int) -> object:
    with open(fd, "rb") as memory:
        memory.seek(0)  # where the owner left it is behind the end
        return pickle.load(memory)


def launch(main: Callable[..., None], arguments: tuple[object, ...]) -> Any:
    """Start a process that runs `main`. Raises whatever says why that is not possible."""
    from loky.backend import get_context  # noqa: PLC0415 - 60 ms, off the caller's path

    process = get_context("loky").Process(target=main, args=arguments, name="batchzip-worker")
    try:
        with _allowed_to_start():
            process.start()
    except Exception as error:
        _clean_up(error)
        raise
    # At exit multiprocessing would send SIGTERM to its children from any forked copy of this
    # process too. Stopping workers is done here, by their owner only.
    multiprocessing.process._children.discard(process)  # type: ignore[attr-defined] # noqa: SLF001
    return process


def _clean_up(error: Exception) -> None:
    """Close the pipe that loky opened and nobody else knows of, if there is no process at its end."""
    from loky.backend.popen_loky_posix import Popen  # noqa: PLC0415 - as above

    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is not Popen._launch.__code__:  # noqa: SLF001
            continue
        began = frame.f_locals
        if "pid" in began:
            return
        if "parent_w" in began:
            os.close(began["parent_w"])
        elif "child_w" in began:  # one pipe and not the other
            os.close(began["child_w"])


@contextmanager
def _allowed_to_start() -> Iterator[None]:
    """Let a daemonic process, as multiprocessing's pools have them, start workers.

    It may not have children, says multiprocessing, as it would leave them behind when it is
    terminated. Ours end with it all the same (PR_SET_PDEATHSIG).
    """
    config: dict[str, object] = multiprocessing.current_process()._config  # type: ignore[attr-defined] # noqa: SLF001
    daemonic = config.pop("daemon", None)
    try:
        yield
    finally:
        if daemonic is not None:
            config["daemon"] = daemonic
