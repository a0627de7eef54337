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


def test_the_other_examples_run_one_after_the_other() -> None:
    with batchzip.Engine("lz4") as engine:
        pages = [bytes([n]) * 4096 for n in range(8)]
        names = {"batchzip": batchzip, "engine": engine, "pages": pages}
        for snippet in snippets()[1:]:
            exec(snippet, names)
            batch = names["batch"]
            assert isinstance(batch, batchzip.CompressBatch)
            assert not batch.errors.any()
