"""PagedMemory lives as long as its arrays; its end, forks and pickling are told in words."""

from __future__ import annotations

import copy
import errno
import gc
import pickle
import signal
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.forked import in_forked_child
from support.paged_memory import BUDGET, PAGE, SIZE, needs_faults, run
from support.waiting import await_true, tasks

from batchzip import (
    BadArgument,
    ClosedError,
    ForkedProcess,
    LimitReached,
    NotStorable,
    PagedMemory,
    paged_empty,
)
from batchzip.paged import memory_of

if TYPE_CHECKING:
    import threading


# Life and end.


@needs_faults
def test_use_after_close_is_refused_and_closing_again_does_nothing() -> None:
    memory = PagedMemory(SIZE, BUDGET)
    array = memory.array(10)
    memory.close()
    memory.close()
    assert memory.closed
    assert repr(memory) == "<PagedMemory, closed>"
    for use in (
        lambda: memory.array(3),
        lambda: memory.evict(array),
        lambda: memory.prefetch(array),
        lambda: memory.resident(array),
        lambda: memory.advise(array, "random"),
        lambda: memory.statistics,
        lambda: memory.budget,
        lambda: setattr(memory, "budget", BUDGET),
        memory.check,
        memory.__enter__,
        lambda: memory.allocator().__enter__(),
    ):
        with pytest.raises(ClosedError):
            use()


@needs_faults
def test_closing_the_store_closes_the_memory() -> None:
    memory = PagedMemory(SIZE, BUDGET)
    memory.store.close()
    with pytest.raises(ClosedError):
        memory.array(3)
    memory.close()


@pytest.mark.slow
@needs_faults
def test_a_memory_lives_as_long_as_its_arrays() -> None:
    memory = PagedMemory(SIZE, BUDGET)
    gone = weakref.ref(memory)
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))
    view = array[::3]
    store = weakref.ref(memory.store)
    del memory, array
    assert gone() is not None
    assert np.array_equal(view, np.arange(0, SIZE // 8, 3))
    assert memory_of(view) is gone()
    del view
    assert gone() is None
    gc.collect()
    assert store() is None


@pytest.mark.slow
@needs_faults
def test_paged_empty_is_one_array_with_a_memory_of_its_own() -> None:
    array = paged_empty((300, 512), "i8", budget=BUDGET)
    array[:] = np.arange(300 * 512).reshape(300, 512)
    memory = memory_of(array[5:, ::2])
    assert (memory.size, memory.budget, memory.free_bytes) == (300 * PAGE, BUDGET, 0)
    assert memory.statistics.evicted_pages > 200
    assert np.array_equal(array.ravel(), np.arange(300 * 512))
    gone = weakref.ref(memory)
    del memory, array
    assert gone() is None
    assert paged_empty(10, budget=1 << 40).sum() == 0
    assert paged_empty((3, 0), budget=BUDGET).shape == (3, 0)
    assert memory_of(paged_empty(9, budget=BUDGET, page_size=16384)).page_size == 16384
    with pytest.raises(BadArgument, match="budget"):
        paged_empty(10, budget=5)
    with pytest.raises(NotStorable):
        paged_empty(10, "O", budget=BUDGET)
    with pytest.raises(BadArgument, match="is in no PagedMemory"):
        memory_of(np.zeros(3))


@needs_faults
def test_pickling_is_refused_with_a_reason_and_arrays_are_copied(memory: PagedMemory) -> None:
    for make in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied: pickle its arrays"):
            make(memory)
    array = memory.array(10)
    array[:] = 3
    assert np.array_equal(pickle.loads(pickle.dumps(array)), array)


@needs_faults
def test_a_forked_child_is_refused_and_the_parent_goes_on(memory: PagedMemory) -> None:
    array = memory.array(SIZE // 8, "i8")
    array[:] = np.arange(len(array))

    def use() -> None:
        for call in (lambda: memory.array(3), lambda: memory.evict(array), memory.check):
            with pytest.raises(ForkedProcess):
                call()
        memory.close()

    in_forked_child(use)
    assert np.array_equal(array, np.arange(len(array)))


@pytest.mark.slow
@needs_faults
def test_a_forked_child_that_drops_everything_harms_nobody() -> None:
    array = paged_empty(SIZE // 8, "i8", budget=BUDGET)
    array[:] = np.arange(len(array))
    held = [array]
    del array

    def drop() -> None:
        held.clear()
        gc.collect()

    in_forked_child(drop)
    assert np.array_equal(held[0], np.arange(SIZE // 8))


ENDS = {
    "array alive": "",
    "memory dropped": "del memory",
    "in a cycle": "cycle = [array, memory]; cycle.append(cycle); del array, memory",
    "touched by a finalizer": """
class Late:
    def __init__(self): self.array = array
    def __del__(self): assert self.array[-1] + self.array[0] == (1 << 19) - 1
late = Late()
late.me = late
""",
    "touched at exit": "import atexit; atexit.register(lambda: print(array.sum() > 0))",
    "threads that touch": """
import threading
def touch():
    while True: array.sum()
for _ in range(3): threading.Thread(target=touch, daemon=True).start()
""",
    "closed": "memory.close()",
    "closed at exit": "import atexit; atexit.register(memory.close)",
    "resident": "keep = memory.resident(array[:10]); keep.__enter__()",
    "new arrays from it": "keep = memory.allocator(); keep.__enter__(); more = np.ones(1 << 17)",
}


@pytest.mark.slow
@needs_faults
@pytest.mark.parametrize("end", ENDS)
def test_an_interpreter_ends_with_live_arrays(end: str) -> None:
    script = f"""
import numpy as np, batchzip
memory = batchzip.PagedMemory(8 << 20, 1 << 20)
array = memory.array(1 << 19, "i8")
array[:] = np.arange(1 << 19)
{ENDS[end]}
"""
    done = run(script)
    assert (done.returncode, done.stderr) == (0, ""), done


@pytest.mark.slow
@needs_faults
def test_touching_after_close_ends_in_sigbus() -> None:
    script = """
import numpy as np, batchzip
with batchzip.PagedMemory(8 << 20, 1 << 20) as memory:
    array = memory.array(1 << 19, "i8")
    array[:] = 1
print("closed", flush=True)
array.sum()
"""
    done = run(script)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "closed\n"), done


@pytest.mark.slow
@needs_faults
def test_without_a_thread_for_the_watcher_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise LimitReached(errno.EAGAIN, f"{thread.name} cannot be started")

    monkeypatch.setattr("batchzip.paged.memory.begin", refuse)
    before = tasks()
    with pytest.raises(LimitReached, match="batchzip-pager"):
        PagedMemory(SIZE, BUDGET)
    gc.collect()
    await_true(lambda: tasks() <= before)
