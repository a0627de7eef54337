"""Results of benchmarks: what is kept is read again, and a faulty file says what is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from batchzip.bench.figure import Figure, Result, load, parse
from batchzip.bench.spread import Spread
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from pathlib import Path

LABELS: dict[str, str | int] = {"benchmark": "compress", "batch": 64}


def a_result() -> Result:
    machine = {"cpus": 2, "versions": {"python": "3.11.7"}}
    result = Result({"pages": 64}, {"compress": "bare"}, [], ["a note"], machine)
    result.add(LABELS, "bare", "µs", [4, 5, 6])
    result.add(LABELS, "threads", "µs", [2.5, 2.0, 3.0], 2.75, "chosen: here")
    return result


def a_document(**changes: Any) -> dict[str, Any]:
    document = json.loads(a_result().as_text())
    return {key: value for key, value in {**document, **changes}.items() if value is not ...}


def with_figure(**changes: Any) -> dict[str, Any]:
    figures = a_document()["figures"]
    changed = {**figures[1], **changes}
    figures[1] = {key: value for key, value in changed.items() if value is not ...}
    return a_document(figures=figures)


def test_a_saved_result_reads_back_equal(tmp_path: Path) -> None:
    result = a_result()
    path = tmp_path / "result.json"
    result.save(path)
    assert load(path) == result
    assert path.read_text() == load(path).as_text()
    assert sum('"values"' in line for line in path.read_text().splitlines()) == 2


def test_every_round_is_kept_and_the_spread_follows_from_them() -> None:
    result = Result({}, {})
    result.add(LABELS, "threads", "µs", [1.0, 2.0, 30.0, 1.23456789])
    result.add(LABELS, "workers", "µs", [7.0])
    one, single = result.figures
    assert one.values == (1.0, 2.0, 30.0, 1.23457)
    assert (one.rounds, one.high) == (4, 9.0)
    assert one.median == pytest.approx(1.617285)
    assert one.low == pytest.approx(1.1759275)
    assert single.spread == Spread(7.0, 7.0, 7.0)


def test_a_figure_is_set_against_its_baseline_round_by_round() -> None:
    result = a_result()
    result.add(LABELS, "workers", "µs", [1.0])
    result.add({"benchmark": "other"}, "workers", "µs", [1.0])
    found = {key[1]: one for key, one in result.relative().items()}
    assert set(found) == {"bare", "threads"}, "others have no baseline of as many rounds"
    assert found["threads"].median == 0.5
    assert found["bare"] == Spread(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "it is not a JSON object"),
        (a_document(format=1), "its format is 1, not 2: measure again"),
        (a_document(format=...), "its format is None"),
        (a_document(command=...), "command is missing"),
        (a_document(date="yesterday"), "date is 'yesterday', not a time such as 2026-01-31T12"),
        (a_document(date="2026-01-31T12:00:00"), "not a time such as"),
        (a_document(machine={"versions": {}}), "machine.cpus is missing"),
        (a_document(machine={"cpus": True, "versions": {}}), "machine.cpus is True"),
        (a_document(settings=[]), "settings is [], not an object"),
        (a_document(baselines={"compress": 1}), "baselines.compress is 1, not a text"),
        (a_document(notes=["one", 2]), "notes[1] is 2, not a text"),
        (a_document(figures={}), "figures is {}, not a list"),
        (a_document(figures=["one"]), "figures[0] is 'one', not an object"),
        (a_document(figures=a_document()["figures"] * 2), "quantity of figures[0]"),
        (with_figure(labels={"batch": 1.5}), "figures[1].labels.batch is 1.5, not a text"),
        (with_figure(contender=...), "figures[1].contender is missing"),
        (with_figure(values=[]), "figures[1].values is empty"),
        (with_figure(values=[1, "2"]), "figures[1].values[1] is '2', not a number"),
        (with_figure(values=[float("nan")]), "values[0] is nan, not a finite number"),
        (with_figure(ratio="high"), "figures[1].ratio is 'high', not a number"),
        (with_figure(remark=7), "figures[1].remark is 7, not a text"),
    ],
)
def test_a_faulty_file_says_what_is_wrong_and_where(
    document: object, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(document))
    with pytest.raises(BadArgument) as refused:
        load(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)


def test_keys_that_this_version_does_not_know_are_ignored() -> None:
    assert parse({**with_figure(unit="µs"), "later": 1}).figures == a_result().figures


def test_an_infinite_figure_is_never_written() -> None:
    result = Result({}, {}, [Figure(LABELS, "threads", "µs", (float("inf"),))])
    with pytest.raises(ValueError, match="not JSON compliant"):
        result.as_text()
