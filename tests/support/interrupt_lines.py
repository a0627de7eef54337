"""Ctrl-C before any line of the code that is watched, one line after the other."""

import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any


def interrupted_at(
    step: int, work: Callable[[], object], watched: Callable[[Path], bool]
) -> str | None:
    """Raise KeyboardInterrupt before the given line of the watched files runs; say which it was.

    None: there are not as many lines. An interrupt that `work` does not let through has failed.
    """
    left = step
    came_through = False
    place = None

    def on_line(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left, place
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        # On leaving a `with` its line comes again, where no signal can arrive.
        if event == "line" and not line.startswith("with "):
            left -= 1
            if left == 0:
                place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}: {line}"
                raise KeyboardInterrupt
        return on_line

    def on_call(frame: FrameType, _event: str, _arg: object) -> Any:
        return on_line if watched(Path(frame.f_code.co_filename)) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        work()
    except KeyboardInterrupt:
        came_through = True
    finally:
        sys.settrace(before)
    assert came_through is (place is not None), f"an interrupt was swallowed: {place}"
    return place
