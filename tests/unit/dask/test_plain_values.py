"""CompressedValues: what values use of memory and disk, and what they give back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributed.protocol import deserialize, serialize

from batchzip import ClosedError
from batchzip.dask import compressed_values as module
from batchzip.dask.compressed_values import CompressedValues, NoRoom
from batchzip.dask.whole_values import SERIALIZERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
OPTIONS = {"algorithm": "lz4", "backend": "sequential", "page_size": 64 << 10}


def noise(mebibytes: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, int(mebibytes * MIB), np.uint8)


def halved(mebibytes: float, seed: int = 0) -> np.ndarray:
    """Return an array that compresses to half."""
    pages = noise(mebibytes, seed).reshape(-1, 4096)
    pages[:, 2048:] = 0
    return pages


@pytest.fixture
def values(tmp_path: Path) -> Iterator[CompressedValues]:
    made = CompressedValues(str(tmp_path), OPTIONS, 8 * MIB)
    yield made
    made.close()


def test_bytes_on_disk_are_those_of_all_files(values: CompressedValues) -> None:
    values["raw"] = noise(1)
    assert (values.disk_bytes, values.pool_bytes) == (MIB, 0)
    values.max_pool_bytes = MIB // 2
    values["spilled"] = halved(4)
    assert values.store is not None
    spilled = values.store.counters.backing_file_size
    assert spilled >= 1.4 * MIB
    assert MIB + 1.4 * MIB < values.disk_bytes <= MIB + spilled
    del values["raw"]
    assert values.disk_bytes > 2.4 * MIB, "it may come back unchanged"
    values.forget("raw")
    assert 1.4 * MIB < values.disk_bytes <= spilled
    np.testing.assert_array_equal(values["spilled"], halved(4))
    del values["spilled"]
    values.forget("spilled")
    assert values.disk_bytes == 0


def test_both_kinds_of_files_share_the_limit(values: CompressedValues) -> None:
    values["raw"] = noise(5)
    assert values.store is not None
    assert values.store.max_backing_bytes == 3 * MIB
    values["more"] = noise(1)
    assert values.store.max_backing_bytes == 2 * MIB
    with pytest.raises(NoRoom):
        values["too much"] = noise(3, seed=1)
    assert values.disk_bytes == 6 * MIB
    assert "too much" not in values
    del values["raw"]
    values["else"] = noise(3, seed=1)  # the leftover gives way
    assert values.disk_bytes == 4 * MIB
    assert values.store.max_backing_bytes == 4 * MIB
    values["more"] = noise(0.5, seed=2)
    assert values.store.max_backing_bytes == 4.5 * MIB
    np.testing.assert_array_equal(values["else"], noise(3, seed=1))


@pytest.mark.slow
def test_leftovers_leave_the_pool_before_anything_is_written(values: CompressedValues) -> None:
    values.max_pool_bytes = 4 * MIB
    for key in range(12):
        values[key] = halved(1, seed=key)
        del values[key]
        assert values.disk_bytes == 0, key
        assert values.pool_bytes <= 0.9 * 4 * MIB
    assert values.pool_bytes > 2 * MIB, "what has room stays"
    before = values.pool_bytes
    values[11] = halved(1, seed=11)
    assert values.pool_bytes == before, "it had not changed"
    values[10] = halved(1, seed=99)
    np.testing.assert_array_equal(values[10], halved(1, seed=99))
    np.testing.assert_array_equal(values[11], halved(1, seed=11))
    values.max_pool_bytes = MIB
    assert values.pool_bytes <= MIB
    np.testing.assert_array_equal(values[11], halved(1, seed=11))


def test_storage_that_two_make_at_once_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = CompressedValues(str(tmp_path), OPTIONS, None)
    made: list[Any] = []
    kind = module._Places

    def make(*arguments: Any) -> Any:
        made.append(None)
        if len(made) == 1:  # a finalizer that comes in between
            values["other"] = halved(1)
        made.append(kind(*arguments))
        return made[-1]

    monkeypatch.setattr(module, "_Places", make)
    values["one"] = halved(1)
    places = [one for one in made if one is not None]
    assert [one.store.closed for one in places] == [False, True]
    np.testing.assert_array_equal(values["other"], values["one"])
    values.close()
    values.close()
    assert places[0].store.closed
    assert (values.pool_bytes, values.disk_bytes, values.store, len(values)) == (0, 0, None, 0)
    with pytest.raises(ClosedError):
        values._open()


def test_a_folder_that_is_gone_is_said_so(tmp_path: Path) -> None:
    values = CompressedValues(str(tmp_path / "none"), OPTIONS, None)
    with pytest.raises(NoRoom) as caught:
        values["key"] = halved(1)
    assert isinstance(caught.value.__cause__, NotADirectoryError)
    assert not list(tmp_path.iterdir())


def test_values_change_their_place_one_by_one(values: CompressedValues) -> None:
    for key in range(3):
        values[key] = {
            "text": f"value {key}",
            "array": halved(1, seed=key),
            "noise": noise(0.5, key),
        }
    assert list(values) == [0, 1, 2]
    assert len(values) == 3
    values[1] = "short"
    assert values[1] == "short"
    for key in (0, 2):
        value: Any = values[key]
        np.testing.assert_array_equal(value["array"], halved(1, seed=key))
        np.testing.assert_array_equal(value["noise"], noise(0.5, key))
        assert value["text"] == f"value {key}"
    assert values.disk_bytes == MIB
    del values[0]
    assert 0 not in values
    with pytest.raises(KeyError):
        values[0]
    with pytest.raises(KeyError):
        del values[0]


class Marked(np.ndarray):
    """An array that is more than one."""


class Text(bytes):
    """Bytes that are more than that."""


def test_a_value_comes_back_as_exactly_what_it_was() -> None:
    soft = np.ma.array([1, 2, 3], mask=[False, True, False])
    hard = np.ma.array([1, 2, 3], mask=[False, True, False], hard_mask=True)
    noted = np.zeros(3, np.dtype("f8", metadata={"unit": "m"}))
    values: list[Any] = [np.arange(3).view(Marked), Text(b"abc"), soft, hard, noted, b"abc"]
    for value in values:
        header, frames = serialize(value, serializers=SERIALIZERS, on_error="raise")
        back = deserialize(header, [bytes(memoryview(frame)) for frame in frames])
        assert type(back) is type(value)
        assert getattr(back, "hardmask", None) == getattr(value, "hardmask", None)
        if isinstance(value, bytes):
            assert back == value
        else:
            np.testing.assert_array_equal(back, value)
            assert back.dtype.metadata == value.dtype.metadata
    header, _ = serialize(np.arange(3), serializers=SERIALIZERS)
    assert header["serializer"] == SERIALIZERS[0], "a plain array is not pickled"
