"""A program with all parts of batchzip, which test_environment.py runs in many environments.

Each step writes a line to the descriptor that is named in the environment: "ok" or its error, and
the warnings. At the end engines are left open.
"""

from __future__ import annotations

import os
import warnings

import batchzip
from batchzip import CompressBatch, DecompressBatch, Engine, SwapStore

PAGES = [b"a" * 4096, bytes(range(256)) * 16] * 8


def work(engine: Engine) -> None:
    assert engine.wait_ready(), "it is not ready"
    batch = CompressBatch(PAGES)
    engine.compress(batch)
    back = DecompressBatch(batch.outputs())
    engine.decompress(back)
    assert not batch.has_errors
    assert [bytes(page) for page in back.pages] == PAGES


def auto() -> None:
    with Engine("lz4") as engine:
        work(engine)


def threads() -> None:
    with Engine("lz4", backend="threads", workers=1) as engine:
        work(engine)


def workers() -> None:
    with Engine("lz4", backend="workers", workers=1, isolate=True) as engine:
        work(engine)
        engine.arena(20_000)[:] = 1


def store() -> None:
    with Engine("zstd", backend="sequential") as engine, SwapStore(engine) as pages:
        pages.store(0, PAGES)
        assert pages.load(8) == PAGES[0]
        cache = batchzip.CompressedMapping(pages, serializer="pickle")
        cache["name"] = {"a": 1}
        assert cache["name"] == {"a": 1}


def backing(*, shared: bool = False) -> None:
    import tempfile  # noqa: PLC0415 - a step's own

    noise = os.urandom(64 * 4096)
    page = noise[6 * 4096 : 7 * 4096]
    with (
        Engine("lz4", backend="sequential") as engine,
        SwapStore(engine, max_pool_bytes=1 << 18, backing=tempfile.gettempdir()) as pages,
    ):
        for index in range(0, 256, 64):
            pages.store(index, noise)
        assert pages.load(70) == page
        if shared:
            with batchzip.attach(pages.share()) as view:
                assert view.load(70) == page


def share_backed() -> None:
    backing(shared=True)


def share() -> None:
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as pages:
        pages.store(0, PAGES)
        with batchzip.attach(pages.share()) as view:
            assert view.load(0) == PAGES[0]


STEPS = (auto, threads, workers, store, backing, share, share_backed)


def live() -> None:
    report = int(os.environ["WHOLE_LIFE_REPORT"])
    for step in STEPS:
        with warnings.catch_warnings(record=True) as caught:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - it is reported
                outcome = f"{type(error).__name__}: {error}"
            else:
                outcome = "ok"
        outcome += "".join(f" [{warning.message}]" for warning in caught)
        line = " ".join(f"{step.__name__}: {outcome}".split())
        os.write(report, f"{line}\n".encode(errors="backslashreplace"))


live()
left = Engine("lz4", backend="threads", workers=1)
kept = SwapStore(left)
kept.store(0, PAGES)
