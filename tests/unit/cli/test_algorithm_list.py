"""`batchzip algorithms` with plug-ins: usable, without defaults, broken, and not installed."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from batchzip.cli import algorithms
from batchzip.cli.main import main
from batchzip.codecs import registered
from batchzip.core.libraries import Library
from batchzip.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Demanding:
    """A codec that has no default.

    It cannot be made without its argument.
    """

    window: int
    speed: str = "high"


Lz4 = registered()["lz4"]
CODECS: dict[str, Any] = {
    "lz4": Lz4,
    "demanding": Demanding,
    "absent": MissingExtra("brotli", "brotli", "brotli"),
    "broken": ImportError("no module"),
}
LIBRARIES = (
    Library("lz4", "1.10.0", "/lib/liblz4.so", None),
    Library("zstd", None, None, "not found"),
    Library("xyz", "1.2", "/lib/xyz.so", "it is too old"),
)


@pytest.fixture
def output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(algorithms, "registered", lambda: CODECS)
    monkeypatch.setattr(algorithms, "libraries", lambda: LIBRARIES)
    monkeypatch.setattr(algorithms, "is_available", lambda native: native.library == "lz4")

    def run(*arguments: str) -> str:
        assert main(["algorithms", *arguments]) == 0
        return capsys.readouterr().out

    return run


SHOWN = """\
algorithm  runs in  parameters             about
lz4        C        acceleration=1,        LZ4 with `acceleration` 1 (best ratio) … 65537, or
                    high_compression=None  `high_compression` at level 1 … 12.
demanding  Python   window=None,           A codec that has no default.
                    speed='high'
absent                                     pip install 'brotli>=1.2'
broken                                     ImportError: no module

C libraries, which run without the interpreter:
lz4   1.10.0  /lib/liblz4.so
zstd  -       not used: not found
xyz   1.2     not used: it is too old (/lib/xyz.so)
"""


def test_each_algorithm_and_each_library_has_its_line(output: Callable[..., str]) -> None:
    assert output() == SHOWN


def test_a_document_tells_the_same(output: Callable[..., str]) -> None:
    lines = {line.pop("algorithm"): line for line in json.loads(output("--json"))}
    nothing = dict.fromkeys(("about", "parameters", "install", "problem", "library"))
    unusable = {**nothing, "usable": False, "native": False}
    assert lines.pop("lz4") == {
        "usable": True,
        "about": (Lz4.__doc__ or "").partition("\n")[0],
        "parameters": {"acceleration": 1, "high_compression": None},
        "install": None,
        "problem": None,
        "native": True,
        "library": LIBRARIES[0]._asdict(),
    }
    assert lines == {
        "demanding": {
            **nothing,
            "usable": True,
            "about": "A codec that has no default.",
            "parameters": {"window": None, "speed": "high"},
            "native": False,
        },
        "absent": {
            **unusable,
            "install": "pip install 'brotli>=1.2'",
            "problem": f"MissingExtra: {CODECS['absent']}",
        },
        "broken": {**unusable, "problem": "ImportError: no module"},
    }
