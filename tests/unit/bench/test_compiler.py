"""A compiler's memory is read while it works, and nothing is left of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.waiting import await_true

from batchzip.bench.compiler import Compiler
from batchzip.bench.pages import PAGE, Source
from batchzip.errors import BadArgument
from batchzip.system.processes import process_stat


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "many.c"
    lines = (f"int f{n}(int a) {{ return a * {n} + (a >> {n % 31}); }}" for n in range(1000))
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_the_pages_are_those_of_the_compiler(source: Path) -> None:
    pages = Source(compiled=f"-O0 {source}").take(1 << 16)
    assert pages.shape[1] == PAGE
    assert b"many.c" in pages.tobytes()


@pytest.mark.slow
def test_it_is_stopped_while_it_is_read_and_gone_afterwards(source: Path) -> None:
    with Compiler(f"-O0 {source}") as compiler:
        pid = compiler.pid
        await_true(lambda: process_stat(pid)[1][0] == "T")
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [("/nowhere/at-all.c", "at-all.c"), ('"', "No closing quotation")],
)
def test_bad_arguments_are_named(arguments: str, words: str) -> None:
    with pytest.raises(BadArgument, match=words), Compiler(arguments):
        pass


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(BadArgument, match="no-such-compiler: install one, or set CC"):
        Compiler("-O1 a.c")
