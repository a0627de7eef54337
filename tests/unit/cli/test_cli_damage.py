"""`batchzip swap` names a page that comes back different or not at all, and exits with 1."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.command import (
    some_pages,
)

import batchzip
from batchzip.cli import swap
from batchzip.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class _Wrong(batchzip.SwapStore):
    """A store that changes one byte of every page from the 100th on."""

    def load(self, index: Any, *args: Any, **kwargs: Any) -> Any:
        page = bytearray(super().load(index, *args, **kwargs))
        if index >= 100:
            page[17] ^= 1
        return bytes(page)

    def load_many(self, indices: Any, *args: Any, **kwargs: Any) -> Any:
        pages = super().load_many(indices, *args, **kwargs)
        pages[np.asarray(indices) >= 100, 17] ^= 1
        return pages


class _Corrupt(batchzip.SwapStore):
    """A store that finds page 42 damaged, alone and in a batch."""

    def load(self, index: Any, *args: Any, **kwargs: Any) -> Any:
        if index == 42:
            raise batchzip.CorruptPage(42)
        return super().load(index, *args, **kwargs)

    def load_many(self, indices: Any, *args: Any, **kwargs: Any) -> Any:
        if 42 in indices:
            raise batchzip.CorruptPage(42)
        return super().load_many(indices, *args, **kwargs)


def swap_in_process(
    monkeypatch: pytest.MonkeyPatch, store: type, *arguments: object
) -> Callable[[], int]:
    monkeypatch.setattr(swap, "SwapStore", store)
    return lambda: main(["swap", *map(str, arguments)])


@pytest.mark.slow
def test_a_mismatch_exits_1_and_names_the_first_page(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert swap_in_process(monkeypatch, _Wrong, "--file", file, "--json")() == 1
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert result["all_equal"] is False
    assert result["first_difference"]["page"] == 100
    assert {of["differing_pages"] for of in result["backends"].values()} == {500}
    want = int(some_pages()[100, 17])
    assert err.startswith("batchzip: first difference: page 100 (file offset 409600), backend ")
    assert err.endswith(f": byte 17 is {want ^ 1:#04x} instead of {want:#04x}\n")


@pytest.mark.slow
def test_a_damaged_page_is_named_and_hides_no_other(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert swap_in_process(monkeypatch, _Corrupt, "--file", file)() == 1
    out, err = capfd.readouterr()
    assert "600 pages compared byte for byte: 3 DIFFER" in out
    assert "page 42 (file offset 172032)" in err
    assert "damaged" in err


@pytest.mark.slow
def test_a_page_of_zeros_that_cannot_be_loaded_is_no_page_of_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "zeros.bin"
    path.write_bytes(bytes(100 * 4096))
    assert swap_in_process(monkeypatch, _Corrupt, "--file", path)() == 1
    assert "100 pages compared byte for byte: 3 DIFFER" in capfd.readouterr().out


@pytest.mark.slow
def test_a_file_that_changes_meanwhile_is_no_mismatch(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Meddling(batchzip.SwapStore):
        def store(self, index: Any, pages: Any) -> None:
            super().store(index, pages)
            if index > 500:
                file.write_bytes(bytes(600 * 4096))

    assert swap_in_process(monkeypatch, Meddling, "--file", file)() == 2
    assert "was changed while it was read" in capfd.readouterr().err
