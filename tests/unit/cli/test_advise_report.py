"""The reports of `batchzip advise`, as text and as JSON, on advice whose figures are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import batchzip
from batchzip.advice import BLOCK_BYTES, Advice, Option
from batchzip.advice.holder import Holder
from batchzip.advice.values import ValuesAdvice
from batchzip.advice.weighing import Held
from batchzip.cli.advise import as_document, report, values_document
from batchzip.sources.sampling import Sample

MIB = 1 << 20


def option(page_size: int, **changes: Any) -> Option:
    figures: dict[str, Any] = {
        "algorithm": "lz4",
        "parameters": {},
        "page_size": page_size,
        "shuffle": None,
        "dictionary": False,
        "same_filled_share": 0.125,
        "incompressible_share": 0.0,
        "ratio": 2.345,
        "saved_share": 0.5,
        "saved_bytes": 50 * MIB,
        "store_us": 2.04,
        "load_us": 1.06,
    }
    return Option(**{**figures, **changes})


BEST = option(
    16384, algorithm="zstd", parameters={"level": 3}, dictionary=True, on_front=True, load_us=6
)
OPTIONS = (
    option(4096, ratio=None),
    option(4096, shuffle=4, on_front=True, saved_share=0.6, saved_bytes=60 * MIB),
    option(4096, shuffle=8),
    option(4096, algorithm="zstd", dictionary=True),
    option(16384, saved_share=0.0, saved_bytes=0),
    BEST,
)
ADVICE = Advice(100 * MIB, 8 * MIB, OPTIONS, BEST, "Use zstd level 3.", ("a note",))
SAMPLE = Sample("file", "a.bin", {"path": "a.bin"}, 100 * MIB, np.zeros((3, BLOCK_BYTES), np.uint8))


FEW = """\
This is about memory pages: what zswap, a SwapStore or, for arrays, a
PagedMemory would save. It is not what replacing a dict would save. For the
values of a cache, use batchzip advise --values.

a.bin: 100.0 MiB, 192.0 KiB of it sampled, 8.0 MiB stored and loaded

pages of 4 KiB: 12.5% same-filled; times are µs per page
   with           ratio  RAM saved    of all  store  load
   lz4                -      50.0%  50.0 MiB    2.0   1.1
*  lz4 shuffle 4   2.35      60.0%  60.0 MiB    2.0   1.1

pages of 16 KiB: 12.5% same-filled; times are µs per page
   with                     ratio  RAM saved    of all  store  load
   lz4                       2.35       0.0%         -    2.0   1.1
→  zstd level 3 dictionary   2.35      50.0%  50.0 MiB    2.0   6.0

* no other setting is at least as good in RAM saved, store and load, and better
in one
a note

Use zstd level 3.
batchzip.Engine('zstd', level=3, page_size=16384,
    dictionary=batchzip.train_dictionary(pages, level=3))"""

EVERY = """\
pages of 4 KiB: 12.5% same-filled; times are µs per page
   with             ratio  RAM saved    of all  store  load
   lz4                  -      50.0%  50.0 MiB    2.0   1.1
*  lz4 shuffle 4     2.35      60.0%  60.0 MiB    2.0   1.1
   lz4 shuffle 8     2.35      50.0%  50.0 MiB    2.0   1.1
   zstd dictionary   2.35      50.0%  50.0 MiB    2.0   1.1"""


def test_the_report_shows_plain_algorithms_the_front_and_the_recommendation() -> None:
    assert report(SAMPLE, ADVICE, 80, every=False) == FEW


def test_all_settings_are_shown_if_that_is_asked_for() -> None:
    assert EVERY in report(SAMPLE, ADVICE, 80, every=True)


def test_where_nothing_is_recommended_no_code_is_shown() -> None:
    none = replace(ADVICE, recommended=None, sentence="Leave it.")
    shown = report(SAMPLE, none, 80, every=False)
    assert shown.endswith("\n\nLeave it.")
    assert "→" not in shown
    assert "*  zstd level 3 dictionary" in shown
    assert as_document(SAMPLE, none)["recommended"] is None


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (60, "with ratio RAM saved of all store load"),
        (50, "with ratio RAM saved store load"),
        (42, "with RAM saved store load"),
        (36, "with RAM saved load"),
    ],
)
def test_columns_are_left_out_where_there_is_no_room(width: int, headings: str) -> None:
    lines = [
        " ".join(line.split()) for line in report(SAMPLE, ADVICE, width, every=True).split("\n")
    ]
    assert lines.count(headings) == 2


def test_a_document_has_every_figure_of_every_setting() -> None:
    document = as_document(SAMPLE, ADVICE)
    assert document["source"] == {
        "kind": "file",
        "name": "a.bin",
        "path": "a.bin",
        "total_bytes": 100 * MIB,
        "read_bytes": 3 * BLOCK_BYTES,
        "sample_bytes": 8 * MIB,
    }
    assert document["batchzip_version"] == batchzip.__version__
    assert "memory pages" in document["about"]
    assert (document["recommendation"], document["notes"]) == ("Use zstd level 3.", ["a note"])
    assert len(document["options"]) == len(OPTIONS)
    best = document["options"][document["recommended"]]
    assert best == {
        "name": "zstd level 3 dictionary",
        "algorithm": "zstd",
        "parameters": {"level": 3},
        "page_size": 16384,
        "shuffle": None,
        "dictionary": True,
        "same_filled_share": 0.125,
        "incompressible_share": 0.0,
        "ratio": 2.345,
        "saved_share": 0.5,
        "saved_bytes": 50 * MIB,
        "store_us": 2.04,
        "load_us": 6,
        "on_front": True,
        "call": BEST.call,
    }


def test_a_document_on_values_has_every_figure_of_every_container() -> None:
    in_dict = Held(Holder("dict", "json"), 100, 1000, 0.5, 0.25, 1.0)
    mapped = Held(Holder("mapping", "json", "lz4"), 30, 300, 4.0, 3.0, 0.3)
    advice = ValuesAdvice(
        70, 7000, 7, 700, "PSS", "json", (in_dict, mapped), mapped, "Use it.", ("a note",)
    )
    document = values_document("a.jsonl", advice)
    assert document.pop("source") == {
        "kind": "values",
        "name": "a.jsonl",
        "total_values": 70,
        "total_bytes": 7000,
        "sample_values": 7,
        "sample_bytes": 700,
    }
    first, second = document.pop("options")
    assert (first["name"], first["bytes"], first["total_bytes"]) == ("dict of objects", 100, 1000)
    assert (second["put_us"], second["get_us"], second["of_dict"]) == (4.0, 3.0, 0.3)
    assert (second["code"], second["holder"]["algorithm"]) == (mapped.code, "lz4")
    assert document == {
        "batchzip_version": batchzip.__version__,
        "memory": "PSS",
        "serializer": "json",
        "recommendation": "Use it.",
        "recommended": 1,
        "code": mapped.code,
        "notes": ["a note"],
    }
