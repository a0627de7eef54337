"""Store a running process's heap in compressed RAM and load it again: the pipeline in 40 lines.

Run it with `python examples/swap_pipeline.py`. It takes a second.
"""

import random
import subprocess
import sys

import numpy as np

import batchzip

PAGE = 4096
FOLIO = 64  # pages stored together, all or nothing

WORK = """
import json
x = [{'id': i, 'name': f'user {i}', 'tags': [i % 7, i % 11]} for i in range(40_000)]
text = json.dumps(x)
print('ready', flush=True)
input()
"""


def heap_pages(pid: int) -> np.ndarray:
    """Read the anonymous writable memory of a process, as an (n, PAGE) array."""
    memory = bytearray()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in maps:
            addresses, mode, _, _, inode, *name = line.split()
            if mode.startswith("rw") and inode == "0" and name in ([], ["[heap]"]):
                start, end = (int(address, 16) for address in addresses.split("-"))
                mem.seek(start)
                memory += mem.read(end - start)
    return np.frombuffer(memory, np.uint8).reshape(-1, PAGE)


with subprocess.Popen(
    [sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
) as child:
    assert child.stdout is not None
    child.stdout.readline()  # it has built its objects
    pages = heap_pages(child.pid)
    child.communicate(b"\n")

with batchzip.Engine("zstd", level=1) as engine, batchzip.SwapStore(engine) as store:
    for index in range(0, len(pages), FOLIO):
        store.store(index, pages[index : index + FOLIO])

    order = random.sample(range(len(pages)), len(pages))
    assert all(store.load(index) == pages[index].tobytes() for index in order[:1000])
    assert np.array_equal(store.load_many(order), pages[order])

    counters = store.counters
    print(f"{counters.stored_pages:,} pages, {counters.same_filled_pages:,} of them same-filled")
    print(f"{pages.nbytes / counters.pool_total_size:.1f} times smaller; every byte came back")
