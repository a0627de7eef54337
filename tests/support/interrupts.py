"""Interrupts at every point where CPython looks for signals: Ctrl-C, but not at random.

A signal's handler runs between two instructions of the main thread, but only after some: a call of
a C function, the start of a Python function, a jump backward. `InterruptAt(n)` traces the calling
thread and raises KeyboardInterrupt at the n-th such point within the code it watches.
"""

from __future__ import annotations

import dis
import gc
import sys
import threading
from concurrent.futures import _base as futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import batchzip
import batchzip_sequential
import batchzip_threads
import batchzip_workers

if TYPE_CHECKING:
    from types import FrameType, TracebackType


def _paths(*patterns: str) -> tuple[str, ...]:
    """Return where these modules and folders of the package lie; each of them must be there."""
    found: list[str] = []
    for pattern in patterns:
        paths = sorted(Path(batchzip.__file__).parent.glob(pattern))
        assert paths, f"there is no batchzip/{pattern}"
        found += map(str, paths)
    return tuple(found)


_WATCHED = (
    *(
        str(Path(str(one.__file__)).parent)
        for one in (batchzip_sequential, batchzip_threads, batchzip_workers)
    ),
    *_paths("lanes", "batch", "backend.py", "engine.py", "request.py", "system/limits.py"),
)
STORE = (
    *_paths("pool", "batch", "engine.py", "system/arena.py", "system/limits.py", "asynchronous.py"),
    *_paths("store/*.py", "store/backing", "store/reclaim"),
)
"""What a store does, but for share()."""

SHARING = _paths("store/remote")
"""What share() and attach() do."""

_ON_BEHALF = (threading.__file__, futures.__file__)
"""What counts where it is called by the code that is watched."""

_LOOKS_AFTER = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"}


class InterruptAt:
    """A context in which the `nth` point raises; `happened` tells whether there were that many.

    `watched` are the prefixes of the paths of code that counts. Garbage is not collected meanwhile:
    Python swallows interrupts of finalizers, and CPython 3.11 calls a trace function that one of
    them ended.
    """

    def __init__(self, nth: int, watched: tuple[str, ...] = _WATCHED) -> None:
        self._left = nth
        self._watched = watched
        self.happened = False
        self.where = ""
        self._last: dict[FrameType, int] = {}
        """Offset of the instruction that each frame is at, -1 while it is in a Python call."""

    def __enter__(self) -> Self:
        self._collects = gc.isenabled()
        gc.disable()
        sys.settrace(self._trace)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.settrace(None)
        if self._collects:
            gc.enable()
        self._last.clear()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG002
        if event == "call":
            caller = frame.f_back
            if caller in self._last:
                self._last[caller] = -1
            if not self._is_watched(frame):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._last[frame] = -1
            self._pass(frame)  # the beginning of a function
        elif event == "opcode":
            before, self._last[frame] = self._last[frame], frame.f_lasti
            if before >= 0 and _opcode(frame, before) in _LOOKS_AFTER:
                self._pass(frame)
        return self._trace

    def _is_watched(self, frame: FrameType) -> bool:
        path = frame.f_code.co_filename
        caller = frame.f_back
        if "__del__" in (frame.f_code.co_name, caller and caller.f_code.co_name):
            return False  # Python swallows an interrupt there
        if path in _ON_BEHALF:
            return caller is not None and caller.f_code.co_filename.startswith(self._watched)
        return path.startswith(self._watched)

    def _pass(self, frame: FrameType) -> None:
        self._left -= 1
        if self._left == 0:
            sys.settrace(None)
            self.happened = True
            self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
            raise KeyboardInterrupt


_names: dict[Any, dict[int, str]] = {}


def _opcode(frame: FrameType, offset: int) -> str:
    code = frame.f_code
    if code not in _names:
        _names[code] = {one.offset: one.opname for one in dis.get_instructions(code)}
    return _names[code][offset]
