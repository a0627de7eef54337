"""The console: colours for everybody, and plain text where colours are not wanted."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from rich.style import Style

import batchzip
from batchzip.terminal.console import make_console, print_json
from batchzip.terminal.styles import COLOURS, STYLES

PACKAGE = Path(batchzip.__file__).parent


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, by WCAG 2."""
    found = Style.parse(colour).color
    assert found is not None
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in found.get_truecolor())
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
def test_colours_read_on_light_and_on_dark_backgrounds(colour: str) -> None:
    found = luminance(colour)
    assert (found + 0.05) / 0.05 >= 4, "on black"
    assert 1.05 / (found + 0.05) >= 4, "on white"


def test_styles_have_no_other_colours() -> None:
    known = {Style.parse(colour).color for colour in COLOURS.values()}
    assert {Style.parse(style).color for style in STYLES.values()} <= known | {None}


@pytest.mark.slow
def test_only_the_console_module_makes_a_rich_console() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if name == "Console":
                    found.append(path.relative_to(PACKAGE).as_posix())
    assert {*found} == {"terminal/console.py"}


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console()
    console.write_line("[red] :smile: 12 " + "long " * 100, style="bad")
    console.print("[b]")
    assert capsys.readouterr().out == "[red] :smile: 12 " + "long " * 100 + "\n[b]\n"


def test_json_is_indented(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": 1})
    print_json([1], indent=1)
    assert capsys.readouterr().out == '{\n  "a": 1\n}\n[\n 1\n]\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["swap", "--limit", "x"], ["top", "--interval", "0"]]
)
def test_a_mistyped_command_imports_neither_rich_nor_numpy(arguments: list[str]) -> None:
    script = (
        "import sys; from batchzip.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not {"rich", "numpy", "textual", "humanize", "matplotlib"} & {*result.stdout.split()}
