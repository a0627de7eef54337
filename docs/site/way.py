"""Print the functions of the project that one call goes through, in order.

    python docs/site/way.py store

Only functions of Python are seen: what the core does is not among them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import batchzip

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

ROOT = Path(batchzip.__file__).parent.parent
PAGES = [f"row {n}, ".encode().ljust(16) * 256 for n in range(64)]


def way(call: Callable[[], object]) -> list[tuple[int, str]]:
    """Return depth and name of each function that is called."""
    found: list[tuple[int, str]] = []
    depth = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal depth
        code = frame.f_code
        ours = code.co_filename.startswith(str(ROOT / "batch")) or "/backends/" in code.co_filename
        if event == "call" and ours:
            file = Path(code.co_filename).relative_to(ROOT)
            found.append((depth, f"{code.co_qualname}  {file}"))
            depth += 1
        elif event == "return" and ours:
            depth -= 1

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def main(what: str) -> None:
    """Print the way of a store, or of a load."""
    with (
        batchzip.Engine("lz4", backend="sequential") as engine,
        batchzip.SwapStore(engine) as store,
    ):
        calls = {"store": lambda: store.store(0, PAGES), "load": lambda: store.load(7)}
        store.store(0, PAGES)  # warm
        store.load(7)
        found = way(calls[what])
    for depth, name in found:
        function, place = name.split("  ")
        print(f"{'  ' * depth + function:44} {place}".rstrip())
    files = {name.split("  ")[1] for _, name in found}
    print(f"{len(found)} functions in {len(files)} files")


if __name__ == "__main__":
    main(sys.argv[1])
