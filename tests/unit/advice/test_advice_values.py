"""Advice on values measures their memory, tries what suits them, and recommends code that runs."""

from __future__ import annotations

import io
import pickle
import sys
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from support.advised_values import LINES, RECORDS, dicts_of, run_code
from support.command import assert_fits

import batchzip
from batchzip import ValuesAdvice, advise_values
from batchzip.advice import spool, weighing
from batchzip.advice.holder import Holder, process_memory, weigh
from batchzip.advice.suiting import Suiting
from batchzip.advice.values import weigh_all
from batchzip.sources.value_files import open_values

if TYPE_CHECKING:
    from pathlib import Path


DICTS = dicts_of("bytes")


@pytest.fixture(scope="module")
def advice() -> ValuesAdvice:
    done = []
    found = advise_values(
        {f"key-{number}": line for number, line in enumerate(LINES)},
        progress=lambda number, total: done.append((number, total)),
    )
    assert done == [(number, len(done)) for number in range(1, len(done) + 1)]
    return found


# What is measured


@pytest.mark.slow
def test_memory_is_that_of_the_process(advice: ValuesAdvice) -> None:
    assert (advice.measured_values, advice.total_values) == (8000, 8000)
    assert advice.measured_bytes == advice.total_bytes == sum(map(len, LINES))
    assert advice.serializer == "bytes"
    assert advice.measure == process_memory()[0]
    by_name = {held.name: held for held in advice.held}
    assert list(by_name)[:5] == ["dict", "dict of lz4.block", "lz4", "zstd 1", "zstd 1, dictionary"]
    keys = [f"key-{number}" for number in range(8000)]
    held = sum(map(sys.getsizeof, [*LINES, *keys])) + sys.getsizeof(dict.fromkeys(keys))
    assert by_name["dict"].bytes == pytest.approx(held, rel=0.15)
    assert by_name["zstd 1"].bytes < by_name["dict"].bytes * 0.7
    for each in advice.held:
        assert each.total_bytes == each.bytes
        assert each.of_dict == pytest.approx(each.bytes / by_name["dict"].bytes)
        assert each.put_us > 0
        assert each.get_us > 0
    assert by_name["dict"].put_us < by_name["zstd 1"].put_us


@pytest.mark.slow
def test_the_recommendation_runs_where_it_is_pasted(advice: ValuesAdvice) -> None:
    chosen = advice.recommended
    assert chosen.holder.kind == "mapping"
    assert chosen.total_bytes <= min(held.total_bytes for held in advice.held) * 1.05
    assert advice.sentence.startswith(
        f"Use a CompressedMapping with {chosen.name}: the values take "
    )
    assert str(advice).endswith(f"\n\n{advice.code}")
    run_code(advice.code, LINES[0])


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_report_fits_its_width_and_breaks_no_word(advice: ValuesAdvice, width: int) -> None:
    assert_fits(lambda columns: advice.report(columns, name="values.jsonl"), width)
    assert "→" in advice.report(width)


@pytest.mark.slow
@pytest.mark.parametrize("serializer", ["bytes", "pickle", "json", "msgpack"])
@pytest.mark.parametrize(
    "holder",
    [
        *DICTS,
        Holder("pickles"),
        Holder("mapping", algorithm="lz4"),
        Holder("mapping", "", "zstd", 3, dictionary=True),
    ],
    ids=lambda holder: holder.name,
)
def test_any_code_runs_and_is_narrow(holder: Holder, serializer: str) -> None:
    code = replace(holder, serializer=serializer).code
    assert max(map(len, code.splitlines())) <= 40
    run_code(code, LINES[0] if serializer == "bytes" else RECORDS[0])


def test_code_and_measured_mapping_are_the_same_one() -> None:
    holder = Holder("mapping", "msgpack", "zstd", 3, dictionary=True)
    made = holder.make()
    names: dict[str, Any] = {}
    exec(holder.code, names)
    pasted = names["cache"]
    assert isinstance(made, batchzip.CompressedMapping)
    try:
        assert made._options == pasted._options
        assert made._store.engine.codec == pasted._store.engine.codec
    finally:
        for mapping in (made, pasted):
            store = mapping._store
            mapping.close()
            store.close()
            store.engine.close()


def few_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of mappings, only those are measured that are tried for their serializers."""

    def worth_trying(_: object, serializer: str) -> list[Holder]:
        return [Holder("mapping", serializer, "zstd", 1)]

    monkeypatch.setattr(weighing, "_worth_trying", worth_trying)


@pytest.mark.slow
def test_serializers_that_suit_objects_are_tried_and_the_best_one_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_mappings(monkeypatch)
    done = []
    found = advise_values(RECORDS[:4000], progress=lambda *step: done.append(step))
    assert done == [(number, 6) for number in range(1, 7)]
    assert [each.name for each in found.held] == [
        "dict of objects",
        "dict of pickles",
        "dict of lz4.block",
        "zstd 1, msgpack",
        "zstd 1, json",
        "zstd 1, pickle",
    ]
    in_dict, pickles, compressed, *tried = found.held
    assert in_dict.bytes > pickles.bytes * 2, "60 floats, each an object"
    assert compressed.bytes < in_dict.bytes / 2
    best = next(each for each in tried if each.holder.serializer == found.serializer)
    assert best.bytes <= min(each.bytes for each in tried) * 1.05
    assert any(note.startswith("Values are objects") for note in found.notes)
    run_code(found.code, RECORDS[0])


@pytest.mark.slow
def test_arrays_are_kept_without_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    few_mappings(monkeypatch)
    monkeypatch.setattr(weighing, "_dicts", lambda serializer, **_: [Holder("dict", serializer)])
    steps = np.random.default_rng(17).integers(0, 3, (4000, 1000), np.int32)
    arrays = list(np.cumsum(steps, axis=1, dtype=np.int32))
    found = advise_values(arrays)
    assert found.serializer == "numpy"
    assert found.recommended.holder.serializer == "numpy"
    assert 'serializer="numpy"' in found.code
    assert "zstd 1, pickle" in [each.name for each in found.held]
    run_code(found.code, arrays[7])


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([{"a": [1, 2.5, None]}, "text", 7], ["msgpack", "json"]),
        ([{"a": float("nan")}], ["msgpack"]),
        ([{"a": b"bytes"}], ["msgpack"]),
        ([{"a": 1 << 70}], ["json"]),
        ([{"a": 1}, ("a", 1)], []),
        ([{"a": 1}, np.ones(3)], []),
        ([np.ones(3), np.float32(1)], ["numpy"]),
        ([np.array([{}])], []),
        ([RuntimeError()], []),
        ([pa.table({"a": [1]})], ["arrow"]),
    ],
)
def test_only_serializers_that_take_every_value_are_tried(
    given: list[Any], names: list[str]
) -> None:
    suiting = Suiting()
    for value in given:
        suiting.note(value)
    assert suiting.names == [*names, "pickle"]
    assert suiting.missing == []


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_note_says_how_to_install_a_missing_serializer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    notes = advise_values(RECORDS[:10]).notes
    assert any(
        "serializer='json' needs msgspec" in note and "pip install" in note for note in notes
    )


@pytest.mark.slow
def test_a_shared_object_is_weighed_once_per_64_values() -> None:
    shared = "x" * 10_000
    values = [[number, shared] for number in range(6400)]
    with tempfile.TemporaryFile() as file:
        spool.write(file, enumerate(values), 1 << 30)
        found = weigh(Holder("dict", "pickle"), file.fileno(), len(values))
    assert 100 * 10_000 < found.bytes < 400 * 10_000, "64 objects are written together"


@pytest.mark.slow
def test_lines_are_also_measured_parsed_but_not_recommended_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few_mappings(monkeypatch)
    path = tmp_path / "values.jsonl"
    path.write_bytes(b"\n".join(LINES[:4000]))
    found = weigh_all(open_values(str(path), 1 << 30, 0), 1 << 30)
    names = ["dict", "dict of objects", "dict of lz4.block", "zstd 1"]
    assert [each.name for each in found.held] == names
    in_dict, parsed, *_ = found.held
    assert parsed.bytes > in_dict.bytes * 1.5
    assert parsed.of_dict == pytest.approx(parsed.bytes / in_dict.bytes)
    assert found.recommended is not parsed
    assert any("--parsed" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sample", [1 << 20, 1 << 30])
def test_parsed_lines_are_the_objects_that_they_say(tmp_path: Path, sample: int) -> None:
    path = tmp_path / "values.jsonl"
    path.write_bytes(b"\n".join(LINES))
    source = open_values(str(path), sample, 0, is_parsed=True)
    found = weigh_all(source, sample)
    assert found.serializer == "pickle"
    assert found.total_values == pytest.approx(8000, rel=0.05)
    mean = np.mean([len(pickle.dumps(each, 5)) for each in RECORDS])
    assert found.total_bytes == pytest.approx(8000 * mean, rel=0.05)
    assert (found.measured_values == 8000) is (sample > 1 << 20)
    assert found.measured_bytes <= 1.01 * sample
    assert found.held[0].name == "dict of objects"


def test_dictionaries_are_tried_for_short_values() -> None:
    def tried(*lengths: int) -> set[bool]:
        pairs = ((str(number), bytes(length)) for number, length in enumerate(lengths))
        spooled = spool.write(io.BytesIO(), pairs, 1 << 30)
        holders = weighing._worth_trying(spooled, "bytes")
        return {holder.dictionary for holder in holders}

    assert tried(300, 65536) == {False, True}
    assert tried(300, 65537) == {False}
    assert tried(60_000, 70_000) == {False, True}


@pytest.mark.slow
def test_a_dictionary_that_cannot_be_trained_is_skipped_with_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zstd = Holder("mapping", "bytes", "zstd", 1, dictionary=True)
    monkeypatch.setattr(weighing, "_worth_trying", lambda *_: [zstd])
    found = advise_values(LINES[:20])
    assert [held.holder for held in found.held] == DICTS
    assert any("a dictionary that was not trained" in note for note in found.notes)
    assert any("few values" in note for note in found.notes)
    assert found.sentence.startswith("Keep the dict: ")
    assert "needs several MiB of values" in found.sentence
    assert found.code == "cache = {}"
