"""lz4hc, deflate, snappy, brotli: known bytes, other tools, and input that was made to do harm."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import zlib

import brotli
import cramjam
import lz4.block
import pytest
from support.harmful import COUNTED, OTHERS_HARMFUL, WORD

import batchzip
from batchzip import DecompressBatch, Engine, PageError
from batchzip.cli.algorithms import Options, run
from batchzip.codecs.deflate import Deflate

# What was stored in a format is readable for good: other tools' output, as it was.
KNOWN = {
    "lz4hc": "4f706167650400fffffffffffffffffffffffffffffff3506570616765",
    "deflate": "edc3b10900000803b05b1dc4b5ff4ffd431248e636aaaaaaeaeb05",
    "brotli": "e2ff01807458d9199c382d00db038049",
    "snappy": "80200c70616765" + "fe0400" * 63 + "ee0400",
}


@pytest.mark.parametrize("algorithm", KNOWN)
def test_known_bytes_are_read(algorithm: str) -> None:
    with Engine(algorithm, backend="sequential") as engine:
        assert engine.decompress_page(bytes.fromhex(KNOWN[algorithm])) == WORD


def test_other_tools_read_what_is_written() -> None:
    with Engine("deflate", backend="sequential") as engine:
        assert zlib.decompress(engine.compress_page(COUNTED), -15) == COUNTED
    with Engine("brotli", backend="sequential") as engine:
        assert brotli.decompress(engine.compress_page(COUNTED)) == COUNTED
    with Engine("snappy", backend="sequential") as engine:
        assert bytes(cramjam.snappy.decompress_raw(engine.compress_page(COUNTED))) == COUNTED
    with Engine("lz4hc", backend="sequential") as engine:
        output = engine.compress_page(COUNTED)
        assert lz4.block.decompress(output, uncompressed_size=4096) == COUNTED
    with Engine("lz4", backend="sequential") as engine:
        assert engine.decompress_page(output) == COUNTED


@pytest.mark.parametrize(
    ("algorithm", "what"),
    [(name, what) for name, sources in OTHERS_HARMFUL.items() for what in sources],
)
def test_a_harmful_source_is_refused_alone_and_among_others(algorithm: str, what: str) -> None:
    harmful = OTHERS_HARMFUL[algorithm][what]
    good = bytes.fromhex(KNOWN[algorithm])
    with Engine(algorithm, backend="sequential") as engine:
        with pytest.raises(PageError, match="Bad message"):
            engine.decompress_page(harmful)
        batch = DecompressBatch([good, harmful, good])
        engine.decompress(batch)
        assert batch.errors.tolist() == [0, -errno.EBADMSG, 0]


def test_a_stronger_level_is_smaller() -> None:
    text = (json.__doc__ or "").encode()[:2000]
    page = text + bytes(4096 - len(text))
    for algorithm, low, high in (("deflate", 0, 3), ("brotli", 2, 11)):
        sizes = []
        for level in (low, high):
            with Engine(algorithm, backend="sequential", level=level) as engine:
                sizes.append(len(engine.compress_page(page)))
        assert sizes[0] > sizes[1]


# Without the library

HIDDEN = """
import sys
for name in ("isal", "cramjam", "brotli"):
    sys.modules[name] = None
"""
"""Importing such a module raises ModuleNotFoundError, as where it is not installed."""

ASK = """
import batchzip
from batchzip.codecs.deflate import Deflate
print(batchzip.algorithms())
for name in ("deflate", "snappy", "brotli", Deflate()):
    try:
        batchzip.Engine(name)
    except batchzip.MissingExtra as error:
        print(error)
try:
    batchzip.Engine("lzo")
except batchzip.UnknownAlgorithm as error:
    print(error)
"""


def without_extras(script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN + script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_missing_extra_is_told_the_command_and_hides_no_other() -> None:
    assert without_extras(ASK) == [
        "['lz4', 'lz4hc', 'zstd']",
        "deflate needs isal, which is not installed: pip install 'isal>=1.7'",
        "snappy needs cramjam, which is not installed: pip install 'cramjam>=2.8'",
        "brotli needs brotli, which is not installed: pip install 'brotli>=1.2'",
        "deflate needs isal, which is not installed: pip install 'isal>=1.7'",
        "unknown algorithm 'lzo'; known: brotli, deflate, lz4, lz4hc, snappy, zstd",
    ]


def test_the_extra_of_every_command_exists() -> None:
    from importlib.metadata import metadata  # noqa: PLC0415 - for this test only

    extras = metadata("batchzip").get_all("Provides-Extra") or []
    assert {"deflate", "snappy", "brotli"} <= set(extras)


@pytest.mark.slow
def test_the_command_lists_what_is_there_and_how_to_install_the_rest() -> None:
    command = "from batchzip.cli.main import main; main(['algorithms'{}])"
    lines = [" ".join(line.split()) for line in without_extras(command.format(""))]
    assert lines[0] == "algorithm runs in parameters about"
    assert "deflate pip install 'isal>=1.7'" in lines
    assert "lz4hc C level=9 LZ4 high compression at `level` 1 …" in lines
    found = {
        line["algorithm"]: line
        for line in json.loads("\n".join(without_extras(command.format(", '--json'"))))
    }
    assert list(found) == ["brotli", "deflate", "lz4", "lz4hc", "snappy", "zstd"]
    assert found["snappy"]["usable"] is False
    assert found["snappy"]["install"] == "pip install 'cramjam>=2.8'"
    assert found["zstd"]["usable"] is True
    assert found["zstd"]["parameters"] == {"level": 3, "dictionary": None}
    assert found["zstd"]["install"] is None


def test_a_plug_in_that_cannot_be_imported_hurts_only_who_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Deflate, "require", broken)
    assert "deflate" not in batchzip.algorithms()
    assert "zstd" in batchzip.algorithms()
    with pytest.raises(RuntimeError, match="out of order"):
        Engine("deflate")
    assert run(Options(json=True)) == 0
    found = {line["algorithm"]: line for line in json.loads(capsys.readouterr().out)}
    assert found["deflate"]["problem"] == "RuntimeError: out of order"
    assert found["deflate"]["install"] is None
