"""`batchzip algorithms` and `--version` name libraries, and say why one is not used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.command import (
    cli,
)

import batchzip
from batchzip.core import build
from batchzip.core.libraries import libraries


def test_the_version_names_the_libraries_and_how_the_core_was_built() -> None:
    result = cli("--version")
    assert (result.returncode, result.stderr) == (0, "")
    version, *others = result.stdout.splitlines()
    assert version == f"batchzip {batchzip.__version__}"
    found = ", ".join(f"{library.name} {library.version}" for library in libraries())
    assert others == [
        f"C libraries: {found}",
        f"core: {build.PROFILE}, Cython {build.CYTHON}, {build.COMPILER}",
    ]


@pytest.mark.slow
def test_algorithms_say_what_is_native_and_where_its_library_is() -> None:
    found = {line["algorithm"]: line for line in json.loads(cli("algorithms", "--json").stdout)}
    there = {library.name: library._asdict() for library in libraries()}
    for name, library in (("lz4", "lz4"), ("lz4hc", "lz4"), ("zstd", "zstd")):
        assert (found[name]["native"], found[name]["library"]) == (True, there[library])
    for name in ("brotli", "deflate", "snappy"):
        assert (found[name]["native"], found[name]["library"]) == (False, None)
    shown = cli("algorithms").stdout.splitlines()
    assert {"lz4 C", "zstd C", "brotli Python"} <= {" ".join(line.split()[:2]) for line in shown}
    for each in libraries():
        assert [each.name, each.version, each.path] in [line.split() for line in shown]


WITHOUT_LZ4 = """
from batchzip.core import libraries
libraries._PLACES["lz4"] = ("lz4", ("nowhere",))
from batchzip.cli.main import main
main({arguments})
"""


@pytest.mark.slow
def test_a_library_that_is_not_used_is_named_with_the_reason() -> None:
    def said(*arguments: str) -> str:
        code = WITHOUT_LZ4.format(arguments=list(arguments))
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    reason = "not used: lz4 has no nowhere for this Python"
    assert f"lz4   -       {reason}" in said("algorithms").splitlines()
    assert f"lz4 is {reason}" in said("--version").splitlines()
    found = {line["algorithm"]: line for line in json.loads(said("algorithms", "--json"))}
    assert found["lz4"]["native"] is False
    assert found["lz4"]["usable"] is True
    assert found["lz4"]["library"]["problem"] == "lz4 has no nowhere for this Python"
    assert found["zstd"]["native"] is True
