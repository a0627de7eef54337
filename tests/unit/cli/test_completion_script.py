"""The completion script knows which arguments are files, and what the others may be."""

from __future__ import annotations

import re

import pytest

from batchzip.cli.main import main
from batchzip.codecs import algorithms

FILES = {
    "advise": {"file", "values", "plot"},
    "swap": {"file"},
    "bench": {"file", "plot", "compare"},
}


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", "bash"]) == 0
    return capsys.readouterr().out


def test_every_argument_that_is_a_path_completes_files(script: str) -> None:
    found = re.findall(
        r"^_shtab_batchzip_(\w+)___(\w+)_COMPGEN=_shtab_compgen_files$", script, re.MULTILINE
    )
    assert set(found) == {(command, name) for command, names in FILES.items() for name in names}


def test_algorithms_and_number_types_are_completed(script: str) -> None:
    found = dict(re.findall(r"^_shtab_batchzip_(\w+)_choices=\((.*)\)$", script, re.MULTILINE))
    usable = " ".join(algorithms())
    assert {name: found[name] for name in found if "algorithm" in name} == {
        "advise___algorithm": usable,
        "swap___algorithm": usable,
        "bench___algorithms": usable,
    }
    assert found["swap___shuffle"] == "2 4 8 f2 f4 f8"
    assert found["completion_pos_0"] == "bash zsh tcsh"


def test_the_script_ends_with_one_newline(script: str) -> None:
    assert script.endswith("\n")
    assert not script.endswith("\n\n")
