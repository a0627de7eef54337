"""A descriptor that is used again tells of its new pages alone."""

from __future__ import annotations

import numpy as np

from batchzip import CompressBatch, Engine

PAGES = np.frombuffer(b"".join(b"%4d" % number * 1024 for number in range(4)), np.uint8)


def test_after_a_refill_outputs_are_those_of_the_new_pages(engine: Engine) -> None:
    pages = PAGES.reshape(4, 4096)
    batch = CompressBatch(pages)
    engine.compress(batch)
    assert [engine.decompress_page(bytes(output)) for output in batch.outputs()] == [
        page.tobytes() for page in pages
    ]
    batch.refill(pages[::-1][:2].copy())
    assert len(batch) == len(batch.outputs()) == 2
    engine.compress(batch)
    assert [engine.decompress_page(bytes(output)) for output in batch.outputs()] == [
        pages[3].tobytes(),
        pages[2].tobytes(),
    ]
