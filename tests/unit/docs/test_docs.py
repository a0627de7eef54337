"""What the documentation shows is true: every example runs, and prints what stands there."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
from support.paths import ROOT, python_path

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

BIN = Path(sys.executable).parent
"""Where the commands are."""

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "COLUMNS": "80",
    "NO_COLOR": "1",
}

PARTS = ["advice", "dask", "metrics", "numcodecs", "paged", "testing", "zarr"]
"""Submodules whose names are public."""

APART = ("batchzip.dask.", "batchzip.zarr.", "batchzip_dask.")
"""Names whose libraries start threads that stay: their examples run in a process of their own."""

SLOW = {"batchzip.advise_values", "batchzip.ValuesAdvice"}
"""Examples that start a process for each way to keep values."""

BLOCK = re.compile(r"^( *)```([\w-]+)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def public_names() -> list[str]:
    """Return the full name of every public class and function, each of them once."""
    found: dict[object, str] = {}
    for module in ["batchzip", *(f"batchzip.{part}" for part in PARTS), "batchzip_dask"]:
        loaded = import_module(module)
        for name in loaded.__all__:
            value = getattr(loaded, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.setdefault(value, f"{module}.{name}")
    return list(found.values())


def run_examples(name: str) -> None:
    """Run the examples in the docstring of a public name."""
    module, _, attribute = name.rpartition(".")
    text = inspect.getdoc(getattr(import_module(module), attribute)) or ""
    test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, name, None, 0)
    assert test.examples, f"{name} has no example"
    found: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=found.append)
    assert not found, "".join(found)


def run_script(script: Path) -> str:
    """Run a script in a process of its own, warnings being errors. Return what it prints."""
    done = subprocess.run(
        [sys.executable, "-u", "-W", "error", script],  # -u: in order with what its children print
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=script.parent,
        env={**ENVIRONMENT, "PYTHONPATH": python_path(str(Path(__file__).parent))},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def blurred(text: str) -> str:
    """Return a text with all numbers made equal: they differ from machine to machine."""
    return re.sub(r"\s+", " ", re.sub(r"\d[\d,.]*", "0", text)).strip()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in public_names()
        if not name.startswith(APART)
    ],
)
def test_the_example_of_a_public_name_runs(name: str) -> None:
    value = name.rpartition(".")[2]
    if value.startswith(("Paged", "paged_", "memory_of", "RegionFull")):
        paged = import_module("batchzip.paged").available()
        if not paged:
            pytest.skip(str(paged))
    run_examples(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in public_names() if name.startswith(APART)])
def test_the_example_of_a_name_runs_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(f"from {Path(__file__).stem} import run_examples\nrun_examples({name!r})\n")
    run_script(script)


def code_blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return the blocks of a page: language, what stands behind it, text."""
    return [
        (language, options, textwrap.dedent(text))
        for _, language, options, text in BLOCK.findall(page.read_text())
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block[0] == "python" for block in code_blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_python_of_a_page_runs_and_prints_what_stands_there(page: Path, tmp_path: Path) -> None:
    script, shown = [], []
    blocks = code_blocks(page)
    for number, (language, _, text) in enumerate(blocks):
        if language != "python":
            continue
        after, its_options, output = [*blocks, ("", "", "")][number + 1]
        if after == "text" and 'title="Output"' in its_options:
            script.append(f"print('<<<{number}')\n{text}\nprint('>>>{number}')")
            shown.append((number, output))
        else:
            script.append(text)
    (tmp_path / "page.py").write_text("\n".join(script))
    printed = run_script(tmp_path / "page.py")
    for number, output in shown:
        part = printed.partition(f"<<<{number}\n")[2].partition(f">>>{number}\n")[0]
        assert blurred(part) == blurred(output), part


COMMANDS = [
    (page, text)
    for page in PAGES
    for language, _, text in code_blocks(page)
    if language == "console"
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "text"),
    COMMANDS,
    ids=[f"{page.relative_to(ROOT)}: {text.splitlines()[0][2:]}" for page, text in COMMANDS],
)
def test_a_command_prints_what_a_page_shows(page: Path, text: str, tmp_path: Path) -> None:
    first, _, output = text.partition("\n")
    assert first.startswith("$ "), f"{page}: a block of a console begins with a command"
    done = subprocess.run(
        ["bash", "-c", first[2:]],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT if "docs/" in first else tmp_path,
        env=ENVIRONMENT,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    if output:  # otherwise the site is built with what the command prints
        assert blurred(printed) == blurred(output), printed


@pytest.mark.slow
def test_the_first_example_of_the_readme_saves_more_than_half(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(code_blocks(ROOT / "README.md")[0][2])
    held, whole = (
        int(n.replace(",", "")) for n in re.findall(r"[\d,]+", run_script(tmp_path / "first.py"))
    )
    assert held < whole / 2


LINK = re.compile(
    r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)|(?:src|href|srcset)=\"(?!https?:|#)([^\"#]+)"
)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_in_pages_of_the_repository_have_targets(page: Path) -> None:
    for found in LINK.findall(page.read_text()):
        target = next(filter(None, found))
        assert (ROOT / target).exists(), f"{page.name} links to {target}"


def test_each_test_that_the_threat_model_names_is_there() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))
    assert len(named) > 25
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(), f"{file} has no {test}"
