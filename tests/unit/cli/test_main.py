"""How a command ends: an error is one line on stderr and an exit code, and a bug is a traceback."""

from __future__ import annotations

import errno
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from batchzip.cli import algorithms
from batchzip.cli.main import main
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from collections.abc import Callable

NO_FILE = errno.ENOENT, "No such file or directory"


@pytest.fixture
def ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[BaseException], tuple[int, str]]:
    """A function that runs a command which raises something. It returns its code and its line."""

    def run_with(raised: BaseException) -> tuple[int, str]:
        def run(_: Any) -> int:
            raise raised

        monkeypatch.setattr(algorithms, "run", run)
        code = main(["algorithms"])
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    return run_with


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (BadArgument("two  lines\n  in one"), "two lines in one"),
        (BadArgument(""), "BadArgument"),
        (OSError(*NO_FILE), "No such file or directory"),
        (OSError(*NO_FILE, "a.bin"), "a.bin: No such file or directory"),
        (OSError(*NO_FILE, b"a.bin"), "a.bin: No such file or directory"),
        (OSError(*NO_FILE, ""), "'': No such file or directory"),
        (OSError("it became shorter"), "it became shorter"),
        (MemoryError(), "MemoryError"),
        (MemoryError("no room"), "no room"),
    ],
)
def test_an_error_is_one_line_and_2(
    ends: Callable[[BaseException], tuple[int, str]], raised: Exception, line: str
) -> None:
    assert ends(raised) == (2, f"batchzip: {line}\n")


def test_ctrl_c_is_one_line_and_130(ends: Callable[[BaseException], tuple[int, str]]) -> None:
    assert ends(KeyboardInterrupt()) == (130, "batchzip: interrupted\n")


def test_a_bug_is_no_error_of_the_user(ends: Callable[[BaseException], tuple[int, str]]) -> None:
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())


@pytest.mark.parametrize("code", [0, 1])
def test_warnings_are_lines_and_the_code_is_the_command_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def run(options: algorithms.Options) -> int:
        assert options == algorithms.Options(json=True)
        warnings.warn("batchzip: it is slow", stacklevel=1)
        warnings.warn("it is of others", stacklevel=1)
        return code

    monkeypatch.setattr(algorithms, "run", run)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["algorithms", "--json"]) == code
    assert warnings.showwarning is before
    assert capsys.readouterr().err == (
        "batchzip: warning: it is slow\nbatchzip: warning: it is of others\n"
    )
