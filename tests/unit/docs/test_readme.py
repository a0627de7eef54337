"""Every snippet of the README runs, and every test that a document names is there."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

from support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

README = ROOT / "README.md"


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_first_example_runs_and_says_what_it_saves(capsys: pytest.CaptureFixture[str]) -> None:
    exec(snippets()[0], {})
    held, whole = re.findall(r"\d+", capsys.readouterr().out)
    assert int(held) < int(whole) / 2


def test_all_of_them_run_in_order_with_nothing_else_in_a_fresh_process(tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    checks = "assert isinstance(batch, batchzip.CompressBatch) and not batch.errors.any()"
    first, *others = snippets()
    script.write_text("\n".join([first, *(f"{each}\n{checks}" for each in others)]))
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_each_test_that_the_threat_model_names_is_there() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))
    assert len(named) > 25
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"
