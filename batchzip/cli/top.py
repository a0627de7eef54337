"""`batchzip top`: a live view of a store that shares itself, or of a Dask cluster's sharded stores.

    attach(address) ──▶ Snapshot, every interval ──▶ screen of two of them ──▶ rich.Live
    scheduler ────────▶ Survey                      keys (q) ◀── stdin without line editing

Whatever ends it (q, Ctrl-C, SIGTERM, SIGHUP, an owner that is gone), the way out is an exception
through the `with` statements: Live gives back the screen and the cursor, then stdin gets back
its line editing.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from rich.live import Live

from batchzip.cli.output import make_console
from batchzip.cli.snapshot import take_snapshot
from batchzip.cli.top_screen import screen
from batchzip.errors import BadArgument
from batchzip.extras import load_extra
from batchzip.store.remote.reach import why_unreachable
from batchzip.store.remote.share import attach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

T = TypeVar("T")
Look_contra = TypeVar("Look_contra", contravariant=True)


class Draw(Protocol[Look_contra]):
    """A function that draws a look beside the one before, in `height` lines; in all it needs if that is None."""

    def __call__(
        self, now: Look_contra, before: Look_contra | None, *, height: int | None
    ) -> RenderableType:
        """Draw them."""


_SHARED = re.compile(r".*/batchzip-[^/]*/socket \(deleted\)")
"""What the descriptor of a shared store is a link to."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said; the address may be a process id."""

    address: str | None
    dask: str | None
    interval: float
    once: bool


def run(options: Options) -> int:
    """Show the store until q is pressed; once only, if asked to or without a terminal. Returns 0.

    Raises BatchzipError or OSError where there is no store to be seen, or no longer.
    """
    with ExitStack() as stack:
        if options.dask is None:
            view = stack.enter_context(attach(_address(options.address)))
            _show(options, partial(take_snapshot, view), screen)
        else:
            load_extra("distributed", extra="dask", needed_by="batchzip top --dask")
            from batchzip.cli.cluster import Cluster, cluster_screen  # noqa: PLC0415 - it needs that

            cluster = stack.enter_context(Cluster(options.dask))
            _show(options, cluster.survey, cluster_screen)
    return 0


def _show(options: Options, look: Callable[[], T], draw: Draw[T]) -> None:
    console = make_console()
    if options.once or not sys.stdout.isatty():
        console.print(draw(look(), None, height=None))
        return
    with _ended_by_signals(), _keys() as pressed:
        before = look()
        with Live(console=console, screen=True, auto_refresh=False) as live:
            live.update(draw(before, None, height=console.height), refresh=True)
            while not _wants_to_quit(pressed, options.interval):
                now = look()
                live.update(draw(now, before, height=console.height), refresh=True)
                before = now


def _wants_to_quit(pressed: Callable[[float], str], seconds: float) -> bool:
    """Wait so long, unless q is pressed."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if "q" in pressed(left).lower():
            return True
    return False


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits so many seconds for keys, and gives what was pressed."""
    if not sys.stdin.isatty():
        yield _no_keys
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([fd], [], [], seconds)
        return os.read(fd, 64).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def _no_keys(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End by SystemExit where a signal would end the process on the spot; code 128 + its number."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    numbers = signal.SIGTERM, signal.SIGHUP
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _address(given: str | None) -> str:
    """Find the address: as given, of a process, or of the one store there is to be seen."""
    if given is not None and not given.isdecimal():
        return given
    found = shared_stores(None if given is None else int(given))
    if len(found) == 1:
        return found[0]
    where = "" if given is None else f" in process {given}"
    if not found:
        if given is not None:
            _refuse_hidden(int(given))
        raise BadArgument(
            f"no store of this user is shared{where}: call store.share() where it is made"
        )
    raise BadArgument(f"several stores are shared{where}, name one: {' '.join(found)}")


def _refuse_hidden(pid: int) -> None:
    """Raise PermissionError, which says why, where a process may not be looked into."""
    folder = f"/proc/{pid}/fd"
    try:
        os.listdir(folder)  # noqa: PTH208 - /proc
    except PermissionError as error:
        number = error.errno or 0
        raise PermissionError(number, why_unreachable(number, pid, folder), folder) from None
    except OSError:  # there is no such process
        pass


def shared_stores(pid: int | None = None) -> list[str]:
    """List the addresses of shared stores, of one process or of all that may be looked into."""
    pids = (
        [str(pid)]
        if pid is not None
        else [name for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - /proc
    )
    found = []
    for name in sorted(pids, key=int):
        folder = f"/proc/{name}/fd"
        with contextlib.suppress(OSError):  # it ended, or is another user's
            numbers = sorted(os.listdir(folder), key=int)  # noqa: PTH208 - /proc
            for number in numbers:
                with contextlib.suppress(OSError):
                    if _SHARED.fullmatch(os.readlink(f"{folder}/{number}")):  # noqa: PTH115 - /proc
                        found.append(f"{folder}/{number}")
    return found
