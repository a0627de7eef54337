"""Ten million touches by threads, and long random use of a pager, never read a wrong byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.paged_model import Worker, run_model
from support.paged_region import needs_paging, opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = needs_paging

THREADS = 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "touches",
    [pytest.param(100_000), pytest.param(10_000_000, marks=pytest.mark.stress, id="stress")],
)
def test_random_touches_never_read_a_wrong_byte(
    touches: int, report: Callable[[str], None]
) -> None:
    with opened(pages=4096, budget=400) as region:

        def work(worker: Worker) -> None:
            worker.most_touches = 20_000
            worker.touch(touches // THREADS)

        workers = run_model(region, work, threads=THREADS, seed=touches)
        figures = region.figures
        assert figures["lost_pages"] == figures["over_budget"] == 0
        touched = sum(worker.touches for worker in workers)
        assert touched >= touches // THREADS * THREADS
        report(
            f"paged: {touched} random touches by {THREADS} threads, "
            f"{figures['faults_missing']} pages "
            f"restored at a fault, {figures['second_chances']} second chances, 0 wrong"
        )


@pytest.mark.slow
@pytest.mark.parametrize("budget", [2, 3])
def test_more_threads_than_frames(budget: int) -> None:
    """Faults wait for each other's frames, and exceed no budget."""
    with opened(pages=256, budget=budget, fault_threads=8) as region:
        run_model(region, lambda worker: worker.touch(10_000), threads=6, seed=budget)
        assert region.figures["over_budget"] == 0


CODECS: list[tuple[str, dict[str, Any]]] = [
    ("lz4", {}),
    ("lz4", {"shuffle": "f8"}),
    ("zstd", {"level": 1}),
]
PARTS = ("two pages", 16, 4, 1)
CASES = [
    (size, *CODECS[(at + shift) % len(CODECS)], part)
    for at, part in enumerate(PARTS)
    for shift, size in enumerate((4096, 8192, 16384, 32768, 65536))
]


@pytest.mark.stress
@pytest.mark.parametrize(("page_size", "algorithm", "parameters", "part"), CASES, ids=str)
def test_all_that_a_pager_offers(
    page_size: int,
    algorithm: str,
    parameters: dict[str, Any],
    part: str | int,
    tmp_path: Path,
    report: Callable[[str], None],
) -> None:
    pages = 240 if page_size < 32768 else 96
    budget = 2 if isinstance(part, str) else pages // part
    with_file: dict[str, Any] = (
        {"backing": tmp_path, "max_pool_bytes": pages * page_size // 6} if part == 4 else {}
    )
    with opened(
        algorithm,
        parameters=parameters,
        page_size=page_size,
        pages=pages,
        budget=budget,
        fault_threads=1 + page_size % 3,
        **with_file,
    ) as region:
        run_model(region, lambda worker: worker.run(300), threads=THREADS, seed=page_size + budget)
        figures = region.figures
        assert figures["lost_pages"] == 0
        report(
            f"paged: {page_size} B, {algorithm}, {part}: {figures['restored_pages']} restored, "
            f"{figures['evicted_pages']} compressed, "
            f"{figures['dropped_clean_pages']} dropped clean, 0 wrong"
        )
