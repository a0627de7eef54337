"""What CONTRIBUTING.md, the sessions of nox and the mutations' table name is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = next(each for each in Path(__file__).parents if (each / "CONTRIBUTING.md").exists())
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
NOXFILE = (ROOT / "noxfile.py").read_text()
SESSIONS = re.findall(r"@nox\.session\ndef (\w+)\(", NOXFILE)
MUTATIONS = tomllib.loads((ROOT / ".ci/mutation.toml").read_text())


def test_each_session_is_documented_and_each_one_named_is_there() -> None:
    named = re.findall(r"`?nox -s ((?:\w+ ?)+)", CONTRIBUTING)
    assert {name for names in named for name in names.split()} == set(SESSIONS)


def test_each_session_says_what_it_does() -> None:
    said = re.findall(r'@nox\.session\ndef (\w+)\(.+\n    """[A-Z]', NOXFILE)
    assert said == SESSIONS


@pytest.mark.parametrize("text", ["CONTRIBUTING.md", "SECURITY.md"])
def test_each_file_and_folder_that_a_page_names_is_there(text: str) -> None:
    written = (ROOT / text).read_text()
    linked = re.findall(r"\]\((?!http)([^)#]+)", written)
    named = re.findall(r"[`\s]((?:\.ci|batchzip|backends|tests|examples|docs)/[\w./-]*)", written)
    assert linked
    for path in [*linked, *named]:
        assert (ROOT / path).exists(), f"{text} names {path}"


def test_mutations_are_tried_on_modules_that_exist_by_tests_that_exist() -> None:
    for name, table in MUTATIONS.items():
        assert f"`{name}`" in CONTRIBUTING
        for pattern in table["modules"]:
            folder = ROOT / "backends" if pattern.startswith("batchzip_") else ROOT
            assert list(folder.glob(pattern)), f"{pattern} of {name} is no module"
        for pattern in table["tests"]:
            assert list((ROOT / "tests").glob(pattern)), f"{pattern} of {name} is no test"


def test_the_changelog_says_what_is_released_and_what_is_not() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    (unreleased, none), (released, date), *_ = headings
    assert (unreleased, none) == ("Unreleased", "")
    assert date
    version = re.findall(
        r'^__version__ = "(.+)"', (ROOT / "batchzip/__init__.py").read_text(), re.MULTILINE
    )
    assert [released] == version
