"""`batchzip bench`: figures beside peers, kept, drawn, and compared; run as its user runs it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import assert_one_clear_line, cli

from batchzip import BadArgument
from batchzip.bench import peers, zram
from batchzip.bench.compress import compress
from batchzip.bench.inputs import MADE, PAGE, made_pages
from batchzip.bench.result import Result, Row, compare
from batchzip.bench.rounds import timing
from batchzip.bench.working_set import working_set

SHORT = ["bench", "--made", "alternating", "--pages", "64", "--rounds", "1", "--batch", "8"]


def document(*more: str) -> dict[str, Any]:
    done = cli(*SHORT, "--algorithm", "lz4", "--json", *more)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_tables_show_every_peer_with_its_ratio(tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    done = cli(*SHORT, "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    for name in ("bare", "sequential", "workers", "threads", "loky", "blosc2", "zstandard", "dict"):
        assert name in done.stdout
    assert done.stderr == ""
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


@pytest.mark.slow
def test_a_result_that_was_kept_is_compared(tmp_path: Path) -> None:
    kept = document()
    rows = {(row["benchmark"], row["operation"], row["contender"]) for row in kept["rows"]}
    assert {("compress", "decompress", "workers"), ("swap", "single load", "store")} <= rows
    assert kept["machine"]["versions"]["numpy"] == np.__version__
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(kept))
    same = cli("bench", "--compare", str(old), str(old))
    assert (same.returncode, "0 slower" in same.stdout) == (0, True)
    for row in kept["rows"]:
        if row["contender"] == "workers":
            for name in ("us", "low", "high"):
                row[name] *= 3
    new.write_text(json.dumps(kept))
    slower = cli("bench", "--compare", str(old), str(new))
    assert slower.returncode == 1
    assert "+200%" in slower.stdout
    assert "2 slower" in slower.stdout
    quicker = cli("bench", "--compare", str(new), str(old))
    assert (quicker.returncode, "2" in quicker.stdout) == (0, True)
    again = cli(*SHORT, "--algorithm", "lz4", "--compare", str(old))
    assert again.returncode in {0, 1}
    assert "figures compared" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--compare", "/nowhere.json"], "No such file"),
        (["--compare", "README.md"], "no result"),
        (["--algorithm", "zip"], "'zip'"),
        (["--file", "/dev/null"], "read twice"),
        (["--pid", "4194304"], "4194304"),
        (["--made", "zeros", "--plot", "bench.doc"], "no picture"),
        (["--batch", "0"], "above 0"),
        (["--made", "random", "--pages", "4", "--batch", "8"], "too few pages"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments: list[str], says: str) -> None:
    root = Path(__file__).parent.parent
    arguments = [str(root / name) if name == "README.md" else name for name in arguments]
    done = cli("bench", *arguments)
    assert_one_clear_line(done, says)


def test_every_contender_gives_the_pages_back() -> None:
    """A peer that did less work would be ahead by it."""
    pages = made_pages("alternating", 32)
    for algorithm in peers.ALGORITHMS:
        for name, kind in peers.contenders(algorithm):
            with kind(algorithm, pages, 8) as contender:
                ratio = contender.prepare()
                assert 1.0 < ratio < 4.0, name
                contender.compress()
                contender.decompress()
                if isinstance(contender, peers.WithEngine):
                    assert b"".join(map(bytes, contender.batches[-1].pages)) == pages[24:].tobytes()
                elif isinstance(contender, peers.Blosc):
                    whole = b"".join(
                        contender.schunk.decompress_chunk(number)
                        for number in range(contender.schunk.nchunks)
                    )
                    assert whole == pages.tobytes()
                elif isinstance(contender, peers.ZstandardMulti):
                    decompress = contender.decompressor.multi_decompress_to_buffer
                    parts = [decompress(segment) for segment in contender.segments]
                    found = [part[row].tobytes() for part in parts for row in range(len(part))]
                    assert b"".join(found) == pages.tobytes()


@pytest.mark.parametrize("kind", MADE)
def test_hard_pages_can_be_measured(kind: str) -> None:
    pages = made_pages(kind, 32)
    assert pages.shape == (32, PAGE)
    rows = compress(pages, ["lz4"], [8], 1) + working_set(pages, ["lz4"], 1)
    assert all(row.us > 0 for row in rows)


def test_the_spread_is_told() -> None:
    found = timing([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert timing([2.0]).high == 2.0


def made(us: float, *, bare: float, spread: float = 0.1) -> Result:
    rows = [
        Row("compress", "compress", "lz4", 8, name, value, value - spread, value + spread)
        for name, value in (("bare", bare), ("workers", us))
    ]
    return Result("made", 1, 1, rows, {})


def test_a_machine_that_is_slower_as_a_whole_is_no_change() -> None:
    (change,) = compare(made(4.0, bare=5.0), made(8.0, bare=10.0))
    assert not change.certain
    assert change.share == pytest.approx(0.0)
    (change,) = compare(made(4.0, bare=5.0), made(6.0, bare=5.0))
    assert change.certain
    assert change.share == pytest.approx(0.5)


def test_what_lies_within_the_spread_is_no_change() -> None:
    (change,) = compare(made(4.0, bare=5.0, spread=2.0), made(5.0, bare=5.0, spread=2.0))
    assert not change.certain


def test_results_without_anything_in_common_cannot_be_compared() -> None:
    with pytest.raises(BadArgument, match="in common"):
        compare(made(4.0, bare=5.0), Result("other", 1, 1, [], {}))


@pytest.mark.skipif(bool(zram.why_not()), reason=zram.why_not() or "zram is here")
def test_a_zram_device_is_ours_and_is_gone_afterwards() -> None:
    before = set(Path("/sys/block").iterdir())
    pages = made_pages("alternating", 64)
    with zram.Zram(pages.nbytes) as device:
        data = zram.aligned(pages)
        device.write(data, 8 * PAGE, writers=2)
        room = zram.aligned(np.zeros_like(pages))
        device.read(room, 8 * PAGE, readers=2)
        assert room.tobytes() == pages.tobytes()
        assert 0 < device.compressed_bytes < pages.nbytes
        assert device.held_bytes >= device.compressed_bytes
    assert set(Path("/sys/block").iterdir()) == before


def test_where_zram_cannot_be_measured_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zram, "_CONTROL", Path("/nowhere"))
    assert "no zram" in zram.why_not()
    with pytest.raises(BadArgument, match="no zram"):
        zram.Zram(PAGE)
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert zram.why_not()
