"""Programs whose engine has workers, run as processes of their own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BEGIN = """
import os, signal, sys, time
import batchzip
from batchzip import CompressBatch, DecompressBatch, Engine
pages = [b"a" * 4096, bytes(range(256)) * 16] * 50

def check(engine):
    batch = CompressBatch(pages)
    engine.compress(batch)
    back = DecompressBatch(batch.outputs())
    engine.decompress(back)
    assert not batch.has_errors and not back.has_errors
    assert [bytes(page) for page in back.pages] == pages
"""


def run(arguments: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    options.setdefault("capture_output", True)
    return subprocess.run(
        [sys.executable, *arguments], text=True, timeout=60, check=False, **options
    )


SHOW_FLAGS = """
import os, sys
sys.path[:0] = [{folder!r}]
from batchzip_workers.launch import Task, launch
reader, writer = os.pipe()
process = launch(Task("shows_flags", (writer,), [writer]))
os.close(writer)
with open(reader) as file:
    print(file.read())
process.reap()
print(repr((sys.flags, sys.warnoptions, sys._xoptions, sys.path)))
"""
