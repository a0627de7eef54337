"""The workload: what its child is, when it is ready, and what is said of one that fails."""

from __future__ import annotations

import io
import json
import os
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from batchzip.errors import BatchzipError
from batchzip.sources import workload
from batchzip.sources.workload import Workload, build

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


class Child:
    """Stands in for the child process: a pipe that says what it is told to."""

    pid = 4711
    returncode = 3

    def __init__(self, says: bytes | None, error: bytes = b"") -> None:
        reading, writing = os.pipe()
        self.stdout = os.fdopen(reading, "rb")
        self.stdin, self.stderr = io.BytesIO(), io.BytesIO(error)
        self._writing = writing
        self.killed = self.waited = 0
        if says is not None:
            os.write(writing, says)
            self.end()

    def end(self) -> None:
        """Close the writing end."""
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def kill(self) -> None:
        self.killed += 1
        self.end()

    def wait(self) -> None:
        self.waited += 1

    def communicate(self) -> tuple[bytes, bytes]:
        return b"", self.stderr.getvalue()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that makes a workload whose child says something; `asked` has how it was made."""
    made = SimpleNamespace(asked=[], children=[])

    def start(says: bytes | None, error: bytes = b"", mib: int = 5) -> Workload:
        child = Child(says, error)
        made.children.append(child)

        def popen(command: list[str], **options: Any) -> Child:
            made.asked.append((command, options))
            return child

        monkeypatch.setattr(subprocess, "Popen", popen)
        return Workload(mib)

    made.start = start
    yield made
    for child in made.children:
        child.kill()
        child.stdout.close()


def test_the_child_has_pipes_the_same_hashes_in_every_run_and_a_group_of_its_own(
    started: Any,
) -> None:
    with started.start(b"ready\n", mib=7) as ready:
        assert ready.pid == 4711
    ((command, options),) = started.asked
    assert command[-1] == "7"
    assert "workload" in " ".join(command)
    pipe = subprocess.PIPE
    assert [options[name] for name in ("stdin", "stdout", "stderr")] == [pipe] * 3
    assert options["process_group"] == 0
    assert options["env"] == {**os.environ, "PYTHONHASHSEED": "0"}


def test_its_end_is_waited_for_and_all_streams_are_closed(started: Any) -> None:
    with started.start(b"ready\n") as ready:
        pass
    (child,) = started.children
    assert (child.killed, child.waited) == (1, 1)
    assert all(stream.closed for stream in (child.stdin, child.stdout, child.stderr))
    ready.close()


@pytest.mark.parametrize(
    ("says", "error", "why"),
    [
        (b"", b"Traceback\n  lines\nValueError: of it  \n\n", "ValueError: of it"),
        (b"", b"", "exit code 3"),
        (b"something else\n", b"\xff is why", "� is why"),
    ],
)
def test_a_child_that_fails_is_named_with_its_last_line(
    started: Any, says: bytes, error: bytes, why: str
) -> None:
    failing = started.start(says, error)
    with pytest.raises(BatchzipError, match=f"^the workload process 4711 ended early: {why}$"):
        failing.__enter__()
    (child,) = started.children
    assert (child.killed, child.waited) == (1, 1)


def test_a_child_that_is_not_ready_in_time_is_ended(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "_START_TIMEOUT_S", 0.02)
    silent = started.start(None)
    with pytest.raises(BatchzipError, match="4711 was not ready within 0 s"):
        silent.__enter__()
    assert started.children[0].killed == 1


# The data


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory that grows by 16 KiB with every look at it, so that builds are alike and quick."""
    looks = [0]

    def resident() -> int:
        looks[0] += 1
        return 100 * MIB + looks[0] * (16 << 10)

    monkeypatch.setattr(workload, "_resident_bytes", resident)
    return looks


@pytest.mark.slow
def test_a_quarter_of_the_memory_is_of_each_kind(measured: list[int]) -> None:
    held = build(1)
    assert measured[0] == 1 + 4 * 16, "16 looks of 16 KiB are a quarter of a MiB"
    kinds = [type(item).__name__ for item in held]
    assert list(dict.fromkeys(kinds)) == ["dict", "Module", "str", "ndarray"]
    assert [kinds.count(kind) for kind in ("dict", "Module", "str", "ndarray")] == [
        *(16 * 256, 16, 16, 16),
    ]


@pytest.mark.slow
def test_the_values_are_the_same_in_every_run_and_as_different_as_those_of_a_service(
    measured: list[int],
) -> None:
    first, second = build(1), build(1)
    assert measured[0] == 2 * (1 + 4 * 16)
    records: Any = [item for item in first if isinstance(item, dict)]
    assert records == [item for item in second if isinstance(item, dict)]
    assert [record["id"] for record in records] == list(range(len(records)))
    assert {len(record["tags"]) for record in records} == {0, 1, 2, 3}
    assert 0.85 < sum(record["active"] for record in records) / len(records) < 0.95
    assert 980 < sum(record["balance"] for record in records) / len(records) < 1020
    assert len({record["name"] for record in records}) > 0.9 * len(records)
    texts: Any = [item for item in first if isinstance(item, str)]
    assert texts == [item for item in second if isinstance(item, str)]
    assert {"\n" in text for text in texts} == {False, True}
    arrays: Any = [item for item in first if type(item).__name__ == "ndarray"]
    assert [array.dtype.str for array in arrays[:7]] == [
        *("<f8", "<f8", "<f4", "<i8", "<i8", "<i4", "|u1"),
    ]
    assert {array.nbytes for array in arrays} == {1 << 17, 1 << 16, 3 << 12}
    assert (arrays[4][1:] >= arrays[4][:-1]).all()
    assert not arrays[5].any()


def test_records_have_amounts_with_cents_and_text_is_indented_by_two_or_not(
    measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "_parsed_source", lambda _: iter(["source"] * 1000))
    monkeypatch.setattr(workload, "_arrays", lambda _: iter(["array"] * 1000))
    held = build(1)
    assert measured[0] == 1 + 4 * 16
    amounts = [item["balance"] for item in held if isinstance(item, dict)]
    assert {len(str(amount).partition(".")[2]) for amount in amounts} == {1, 2}
    texts = [item for item in held if isinstance(item, str) and len(item) > 1000]
    assert {text[:6] for text in texts} == {'[{"id"', "[\n  {\n"}
    assert len(json.loads(texts[0])) == 100


def test_memory_is_measured_in_bytes() -> None:
    found = workload._resident_bytes()
    assert found == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
