"""The defaults of each command, as its help and its manual say."""

from typing import Any

import pytest

from batchzip.cli.commands import make_parser

DEFAULTS: dict[str, dict[str, Any]] = {
    "swap": {
        "algorithm": "zstd",
        "level": None,
        "shuffle": None,
        "batch": 256,
        "folio": 256,
        "workers": None,
        "limit": None,
        "page_size": 4096,
        "workload_mib": 64,
        "seed": 0,
        "classes": False,
        "json": False,
        "pid": None,
        "file": None,
    },
    "bench": {
        "workload": "captured",
        "algorithms": "lz4,zstd:1",
        "batches": [8, 64, 256],
        "pages": 2048,
        "rounds": 5,
        "zram": False,
        "json": False,
        "plot": None,
        "compare": None,
    },
    "top": {"address": None, "dask": None, "interval": 1.0, "once": False},
    "advise": {
        "values": None,
        "pickle": False,
        "parsed": False,
        "sample": None,
        "algorithms": None,
        "max_load_us": None,
        "all": False,
        "json": False,
        "plot": None,
        "seed": 0,
    },
    "algorithms": {"json": False},
}


@pytest.mark.parametrize("command", DEFAULTS)
def test_what_is_not_said_is_the_default(command: str) -> None:
    found = vars(make_parser().parse_args([command]))
    assert found["command"] == command
    assert {name: found[name] for name in DEFAULTS[command]} == DEFAULTS[command]
