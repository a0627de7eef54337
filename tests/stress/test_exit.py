"""An interpreter that ends with requests in flight ends at once, quietly, wherever it came from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from support.batch_load import is_alive
from support.scripts import BEGIN, check_ended_well, run
from support.waiting import await_true

if TYPE_CHECKING:
    from pathlib import Path

IN_FLIGHT = """
def go():
    engine = Engine("zstd", level=9, backend="workers", workers=2)
    assert engine.wait_ready()
    round_trip(engine)
    print(*engine.worker_pids, flush=True)
    {before}
    inside = engine.arena(500)
    inside[:] = pages
    def work():
        while True:
            engine.compress(CompressBatch(pages))
    threading.Thread(target=work, daemon=True).start()
    requests = [engine.submit(CompressBatch(inside, dsts=engine.arena(500, 8192)), block=False)]
    requests += [engine.submit(CompressBatch(pages[:50])) for _ in range(10)]
    time.sleep({after_s})
    return engine, requests
"""

BEFORE = {
    "in full swing": "",
    "with a stopped worker": "os.kill(engine.worker_pids[0], signal.SIGSTOP)",
    "with a killed worker": "os.kill(engine.worker_pids[0], signal.SIGKILL)",
}

BEFORE_EACH = pytest.mark.parametrize(
    "before",
    ["in full swing", *(pytest.param(b, marks=pytest.mark.stress) for b in list(BEFORE)[1:])],
)


def script(before: str, after_s: float, end: str = "kept = go()") -> str:
    return BEGIN + IN_FLIGHT.format(before=BEFORE[before], after_s=after_s) + end


def check_workers_are_gone(printed: str) -> None:
    pids = [int(word) for word in printed.split()]
    assert len(pids) >= 2
    await_true(lambda: not any(map(is_alive, pids)), "the workers' end")


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments_s",
    [
        pytest.param([0.02], id="once"),
        pytest.param([0.001 * 3.0**turn for turn in range(5)], marks=pytest.mark.stress),
    ],
)
@BEFORE_EACH
def test_a_program_ends_with_requests_in_flight(before: str, moments_s: list[float]) -> None:
    for after_s in moments_s:
        done = run(["-c", script(before, after_s)])
        check_ended_well(done)
        check_workers_are_gone(done.stdout)


@pytest.mark.slow
def test_a_script_without_a_main_guard_ends(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(script("in full swing", 0.02))
    done = run([path])
    check_ended_well(done)
    check_workers_are_gone(done.stdout)


@pytest.mark.slow
def test_a_script_from_stdin_ends() -> None:
    done = run(["-"], script("in full swing", 0.02))
    check_ended_well(done)
    check_workers_are_gone(done.stdout)


DAEMONIC = """
if __name__ == "__main__":
    import multiprocessing
    process = multiprocessing.get_context("fork").Process(target=go, daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0, process.exitcode
"""

POOL = """
def in_pool(_):
    go()
if __name__ == "__main__":
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(in_pool, range(2))
        pool.close()  # terminated, they would be killed as any owner may be
        pool.join()
"""


@pytest.mark.slow
@BEFORE_EACH
@pytest.mark.parametrize("end", [DAEMONIC, POOL], ids=["daemonic child", "worker of a pool"])
def test_a_forked_child_with_an_engine_of_its_own_ends(before: str, end: str) -> None:
    done = run(["-c", script(before, 0.02, end)])
    check_ended_well(done)
    check_workers_are_gone(done.stdout)


NESTED = """
from support.codecs.nesting import NestingCodec
with Engine(NestingCodec(), backend="workers", workers=1) as engine:
    assert engine.wait_ready()
    for _ in range(3):
        batch = CompressBatch(pages[:20])
        engine.compress(batch)
        back = DecompressBatch(batch.outputs())
        engine.decompress(back)
        assert not batch.errors.any() and (back.pages == pages[:20]).all()
    assert engine.statistics.workers[0].pages
    children = lambda pid: [int(p) for t in os.listdir(f"/proc/{{pid}}/task")
                            for p in open(f"/proc/{{pid}}/task/{{t}}/children").read().split()]
    inner = [pid for worker in engine.worker_pids for pid in children(worker)]
    print(*engine.worker_pids, *inner, flush=True)
    kept = [engine.submit(CompressBatch(pages[:20])) for _ in range(10)]
{after}
"""


@pytest.mark.slow
@pytest.mark.skipif(
    (3, 13) <= sys.version_info < (3, 13, 3),
    reason="gh-130522: these versions' threading complains about itself at such an exit",
)
@pytest.mark.parametrize(
    "after",
    [
        pytest.param("", id="closed"),
        pytest.param("    os._exit(0)", marks=pytest.mark.stress, id="at once"),
    ],
)
def test_an_engine_works_inside_another_ones_worker(after: str) -> None:
    done = run(["-c", BEGIN + NESTED.format(after=after)])
    check_ended_well(done)
    check_workers_are_gone(done.stdout)
