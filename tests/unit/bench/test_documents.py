"""Documents and pictures are made from the results that are kept, and --check tells if they are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "examples/benchmarks"
RESULTS = "examples/benchmarks/RESULTS.md"

pytestmark = pytest.mark.slow


def render(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "render.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The results that a few sections are made of."""
    folder = tmp_path / "results"
    (folder / "16-cores").mkdir(parents=True)
    for name in ("usemem.json", "batchzip-swap.txt", "16-cores/paged.json"):
        shutil.copy(BENCHMARKS / "results" / name, folder / name)
    return folder


def test_the_documents_are_what_the_results_say() -> None:
    found = render("--check")
    assert (found.returncode, found.stdout) == (0, ""), "run examples/benchmarks/render.py"


def test_a_changed_result_changes_its_figures_and_its_picture(
    results: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    options = "--results", results, "--to", to
    made = render(*options)
    assert made.returncode == 0, made
    assert "no result swap.json: the documents say so" in made.stderr
    assert render(*options, "--check").stdout == ""
    pictures = {path.stem for path in (to / RESULTS).parent.glob("pictures/*.png")}
    assert pictures == {"usemem", "paged-16-cores"}

    path = results / "usemem.json"
    document = json.loads(path.read_text())
    document["figures"] = [
        {**one, "values": [777.0]} if one["quantity"].startswith("own stores") else one
        for one in document["figures"]
    ]
    path.write_text(json.dumps(document))
    checked = render(*options, "--check")
    assert checked.returncode == 1
    stale = [line.partition(":")[0] for line in checked.stdout.splitlines()]
    assert stale == [RESULTS, "pictures/usemem.png"]
    assert "777.0" not in (to / RESULTS).read_text()
    assert render(*options).returncode == 0
    assert "| 777.0 | 777.0 | 777.0 | +0 % |" in (to / RESULTS).read_text()
    assert render(*options, "--check").returncode == 0


def test_a_faulty_result_is_named(results: Path, tmp_path: Path) -> None:
    (results / "usemem.json").write_text("{}")
    made = render("--results", results, "--to", tmp_path / "to")
    assert made.returncode != 0
    assert "usemem.json is not a benchmark result" in made.stderr


PARSE = """
import argparse, re, sys
from pathlib import Path
import all, blocks

for name, run in all.RUNS.items():
    if name != "bench":
        script = blocks.script_of(name)
        measured = Path(all.command_of(name, short=True)[1]).stem
        assert sys.modules[measured].SCRIPT is script, f"{name} is rendered by another script"
        parser = argparse.ArgumentParser()
        script.add_options(parser)
        for options in (run.full, run.short):
            parser.parse_args(options.split())
text = Path("RESULTS.md").read_text()
sections = re.findall(r"cog section\\((.*?)\\) \\]", text)
parts = [part.partition(", only")[0] for part in sections]
shown = {name for part in parts for name in re.findall(r'"([\\w/-]+)"', part)}
print(*sorted({name.removeprefix("16-cores/") for name in shown} - set(all.RUNS)))
"""


def test_everything_that_is_shown_can_be_measured_again() -> None:
    command = [sys.executable, "-c", PARSE]
    done = subprocess.run(
        command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [], "RESULTS.md shows results that all.py does not measure"
