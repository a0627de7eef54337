"""Pages that change while they are compressed give output of one version, without overrun."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from batchzip import CompressBatch, DecompressBatch, Engine
from batchzip.testing.plain import PAGE, SLACK_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchzip.arguments.buffers import Bytes

pytestmark = pytest.mark.usefixtures("always_hand_over")


COUNT = 32
ROUNDS = 20
GUARD = 0xA5


@contextmanager
def changing(pages: Bytes) -> Iterator[None]:
    """Keep writing to these pages: what compresses and what does not, in turn."""
    rng = np.random.default_rng(1)
    versions = [rng.integers(0, (4, 256)[i % 2], pages.shape, np.uint8) for i in range(16)]
    stop = threading.Event()

    def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            pages[:] = versions[turn % len(versions)]

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


@pytest.mark.slow
@pytest.mark.parametrize("verify", [False, True], ids=["plain", "verify"])
@pytest.mark.parametrize(
    ("backend", "place"),
    [
        ("sequential", "private"),
        ("threads", "private"),
        ("threads", "list"),
        ("workers", "private"),
        ("workers", "list"),
        ("workers", "arena"),
    ],
)
@pytest.mark.parametrize(
    ("algorithm", "parameters"),
    [("lz4", {}), ("zstd", {"level": 1})],
    ids=["lz4", "zstd"],
)
def test_every_output_decodes_to_a_page_and_nothing_beside_it_is_touched(
    algorithm: str, parameters: dict[str, Any], backend: str, place: str, verify: bool
) -> None:
    how: dict[str, Any] = {} if backend == "sequential" else {"workers": 1}
    with Engine(algorithm, backend=backend, verify=verify, **how, **parameters) as engine:
        assert engine.wait_ready(SLACK_S)
        workers = engine.worker_pids
        shape = (COUNT, PAGE)
        pages = engine.arena(*shape) if place == "arena" else np.zeros(shape, np.uint8)
        # As much as either codec ever needs, so that an overrun would be one.
        capacity = PAGE + 256
        guarded = engine.arena(COUNT + 2, capacity)
        guarded.fill(GUARD)
        batch = CompressBatch(list(pages) if place == "list" else pages, dsts=guarded[1:-1])
        plain = engine.codec.compressor(PAGE)
        with changing(pages):
            for turn in range(ROUNDS):
                if turn % 2:
                    engine.compress(batch)
                else:
                    engine.submit(batch).wait(SLACK_S)
                assert not batch.errors.any()
                assert (guarded[[0, -1]] == GUARD).all()
                back = DecompressBatch([bytes(output) for output in batch.outputs()])
                engine.decompress(back)
                assert not back.errors.any()
                # One version was read: compressing what comes back gives the same output.
                assert [plain(bytes(page)) for page in back.pages] == batch.outputs()
        assert engine.worker_pids == workers
