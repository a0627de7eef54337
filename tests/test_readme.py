"""Every snippet of the README runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import batchzip

if TYPE_CHECKING:
    import pytest

README = Path(__file__).parent.parent / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_first_example_runs_and_says_what_it_saves(capsys: pytest.CaptureFixture[str]) -> None:
    exec(snippets()[0], {})
    held, whole = re.findall(r"\d+", capsys.readouterr().out)
    assert int(held) < int(whole) / 2


def test_the_example_of_a_batch_runs() -> None:
    with batchzip.Engine("lz4") as engine:
        pages = [bytes([n]) * 4096 for n in range(8)]
        names = {"batchzip": batchzip, "engine": engine, "pages": pages}
        exec(snippets()[1], names)
        batch = names["batch"]
        assert isinstance(batch, batchzip.CompressBatch)
        assert not batch.errors.any()


def test_there_is_no_snippet_that_is_not_run() -> None:
    assert len(snippets()) == 2
