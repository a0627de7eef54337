"""`batchzip top`: watch a store that shares itself, or a Dask cluster's sharded stores.

    attach(address) ──▶ Snapshot ──▶ store_look ───┬──▶ printed once
    scheduler ────────▶ Survey ────▶ cluster_look ─┘──▶ top_app: the full screen, every interval

The full screen needs a terminal and textual. Otherwise one look is printed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from batchzip.cli.look import print_look
from batchzip.cli.snapshot import take_snapshot
from batchzip.cli.store_look import store_look
from batchzip.errors import BadArgument, MissingExtra
from batchzip.extras import load_extra
from batchzip.store.remote.reach import why_unreachable
from batchzip.store.remote.share import attach
from batchzip.terminal.console import make_console
from batchzip.terminal.streams import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.cli.look import Look

T = TypeVar("T")

_MOST_ROWS = 20
"""Maximum rows of a sorted table that is printed on a terminal."""

_SHARED = re.compile(r".*/batchzip-[^/]*/socket \(deleted\)")
"""The link target of a shared store's descriptor."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; the address may be a process id."""

    address: str | None
    dask: str | None
    interval: float
    once: bool


def run(options: Options) -> int:
    """Show the store until the user quits, or print one look. Return 0.

    Raise BatchzipError or OSError if no store can be shown, or if its owner has ended.
    """
    with ExitStack() as stack:
        if options.dask is None:
            view = stack.enter_context(attach(_address(options.address)))
            look = looks(lambda: take_snapshot(view), store_look)
        else:
            load_extra("distributed", extra="dask", needed_by="batchzip top --dask")
            from batchzip.cli.cluster import Cluster, cluster_look  # noqa: PLC0415 - an extra

            cluster = stack.enter_context(Cluster(options.dask))
            look = looks(cluster.survey, cluster_look)
        why_plain = _why_plain()
        if options.once or why_plain:
            most = _MOST_ROWS if sys.stdout.isatty() else None
            print_look(look(), make_console(), most=most)
            if not options.once:
                say(f"batchzip: this is one look; {why_plain}")
        else:
            from batchzip.cli.top_app import watch  # noqa: PLC0415 - needs textual

            if not watch(look, options.interval):
                stack.pop_all()  # its thread still waits for an answer and ends with the process
    return 0


def looks(take: Callable[[], T], draw: Callable[[T, T | None], Look]) -> Callable[[], Look]:
    """Return a function that returns a new look at each call, with the changes since the last."""
    before: T | None = None

    def look() -> Look:
        nonlocal before
        now = take()
        before, earlier = now, before
        return draw(now, earlier)

    return look


def _why_plain() -> str:
    """Return what the full screen needs, or "" if nothing is missing."""
    if importlib.util.find_spec("textual") is None:
        return f"for the full view: {MissingExtra('top', 'textual', 'top').command}"
    # textual reads keys from stdin and draws on stderr.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        return "for the full view, run it on a terminal without redirection"
    if os.environ.get("TERM", "dumb") in {"dumb", "unknown"}:
        return "for the full view, set TERM to the kind of your terminal, such as xterm-256color"
    return ""


def _address(given: str | None) -> str:
    """Return the given address, that of a process's store, or that of the only shared store."""
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
            f"this user shares no store{where}: call store.share() in the process that has it"
        )
    raise BadArgument(f"several stores are shared{where}, name one: {' '.join(found)}")


def _refuse_hidden(pid: int) -> None:
    """Raise PermissionError with the reason if this user may not inspect a process."""
    folder = f"/proc/{pid}/fd"
    try:
        os.listdir(folder)  # noqa: PTH208 - /proc
    except PermissionError as error:
        number = error.errno or 0
        raise PermissionError(number, why_unreachable(number, pid, folder), folder) from None
    except OSError:  # there is no such process
        pass


def shared_stores(pid: int | None = None) -> list[str]:
    """Return the addresses of the shared stores of a process, or of all that may be inspected."""
    pids = (
        [str(pid)]
        if pid is not None
        else [name for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - /proc
    )
    found = []
    for name in sorted(pids, key=int):
        folder = f"/proc/{name}/fd"
        with contextlib.suppress(OSError):  # the process ended, or belongs to another user
            numbers = sorted(os.listdir(folder), key=int)  # noqa: PTH208 - /proc
            for number in numbers:
                with contextlib.suppress(OSError):
                    if _SHARED.fullmatch(os.readlink(f"{folder}/{number}")):  # noqa: PTH115 - /proc
                        found.append(f"{folder}/{number}")
    return found
