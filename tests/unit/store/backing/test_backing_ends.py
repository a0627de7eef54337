"""However the owner of a store ends, its file is gone, and one that was there can be taken over."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from batchzip import Engine, SwapStore
from batchzip.store.backing.file_io import MAGIC

if TYPE_CHECKING:
    from pathlib import Path

OWNER = """
import os, signal, sys
import batchzip
folder = sys.argv[1]
engine = batchzip.Engine("lz4", backend="sequential")
pages = [os.urandom(64) * 64 for _ in range(64)]
stores = []
for target in (f"{folder}/new", f"{folder}/there", folder, f"{folder}/new"):
    store = batchzip.SwapStore(engine, backing=target)
    store.store(0, pages)
    assert store.writeback(32) == 32 and store.load_many(range(64)).tobytes() == b"".join(pages)
    stores.append(store)
assert os.listdir(folder) == ["there"], os.listdir(folder)
print("stored", flush=True)
"""
ENDS = {
    "close": "for store in stores: store.close()",
    "the last reference": "del store, stores; os._exit(0)",
    "end": "",
    "exception": "raise ValueError('as told')",
    "sys.exit": "sys.exit(3)",
    "sys.exit in a thread": "import threading; threading.Thread(target=sys.exit).start()",
    "os._exit": "os._exit(3)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "abort": "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()",
    "exec": f"os.execv({sys.executable!r}, ['python', '-c', 'pass'])",
    "a forked child's end, then SIGKILL": """
if os.fork() == 0:
    sys.exit()
os.wait()
assert store.load(3) == pages[3] and store.writeback(64)
os.kill(os.getpid(), signal.SIGKILL)
""",
    "a forked child closes it, then SIGKILL": """
if os.fork() == 0:
    for store in stores: store.close()
    os._exit(0)
os.wait()
assert stores[1].load(3) == pages[3] and os.path.getsize(f"{folder}/there") > 4096
os.kill(os.getpid(), signal.SIGKILL)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_however_its_owner_ends_no_file_is_left(engine: Engine, end: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    done = subprocess.run(
        [sys.executable, "-c", OWNER + ENDS[end], tmp_path],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "stored\n", done.stderr
    assert list(tmp_path.iterdir()) == [there]
    left = there.read_bytes()
    assert not left or (left.startswith(MAGIC) and end not in ("close", "the last reference"))
    with SwapStore(engine, backing=there) as store:
        store.store(0, b"x" * 4096)
    assert there.read_bytes() == b""
