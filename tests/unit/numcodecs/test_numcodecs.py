"""batchzip's codecs do what numcodecs and Zarr expect, and check what a chunk says of itself."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import tomllib
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numcodecs
import numcodecs.registry
import numpy as np
import pytest
import zarr
import zarr.abc.codec
import zarr.registry
from hypothesis import given
from hypothesis import strategies as st
from support.forked import in_forked_child
from support.paths import ROOT
from support.store_pages import noise, text
from xxhash import xxh3_64
from zarr.core import sync
from zarr.core.buffer import default_buffer_prototype

from batchzip import (
    BadArgument,
    BadBatch,
    BatchzipError,
    CompressedMapping,
    CorruptPage,
    Engine,
    SwapStore,
    UnknownAlgorithm,
)
from batchzip.codecs.zstd import Zstd
from batchzip.numcodecs import Batchzip
from batchzip.zarr import BatchzipCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


CODECS = [
    Batchzip(),
    Batchzip("lz4"),
    Batchzip("lz4", page_size=4096, shuffle=4),
    Batchzip("zstd", level=-5, page_size=512, shuffle=8),
    Batchzip("zstd", level=1, shuffle="f2"),
]


@pytest.fixture(autouse=True)
def registered() -> None:
    """As numcodecs does where batchzip is installed."""
    numcodecs.register_codec(Batchzip)


@pytest.mark.slow
def test_numcodecs_finds_the_codec_by_its_name_alone(tmp_path: Path) -> None:
    # The project's entry points, as an installation writes them down.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["numcodecs.codecs"]
    installed = tmp_path / "batchzip_here-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: batchzip_here\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(
        "[numcodecs.codecs]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    )
    source = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import numcodecs
codec = numcodecs.get_codec(dict(id="batchzip", algorithm="lz4"))
print(codec.decode(codec.encode(b"a page")))
"""
    out = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True)
    assert out.stdout == b"bytearray(b'a page')\n"


@pytest.mark.slow
def test_without_numcodecs_it_says_what_to_install() -> None:
    source = "import sys; sys.modules['numcodecs'] = None; import batchzip.numcodecs"
    out = subprocess.run([sys.executable, "-c", source], capture_output=True, check=False)
    assert out.returncode == 1
    assert b"pip install 'numcodecs>=0.13'" in out.stderr.splitlines()[-1]


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize(
    "length",
    [
        0,
        1,
        511,
        512,
        4096,
        65_535,
        65_536,
        1_000_001,
        pytest.param(5 << 20, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("make", [text, noise, lambda _seed, length: bytes(length)])
def test_chunks_come_back(codec: Batchzip, length: int, make: Any) -> None:
    chunk = make(1, length)
    encoded = codec.encode(chunk)
    assert codec.decode(encoded) == chunk
    out = bytearray(length)
    codec.decode(encoded, out=out)
    assert out == chunk
    assert len(encoded) <= 24 + (length // codec.get_config()["page_size"] + 1) * (
        4 + codec.get_config()["page_size"]
    )


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_a_codec_is_made_of_its_config_and_pickled(codec: Batchzip) -> None:
    encoded = codec.encode(text(1, 100_000))
    for other in (
        numcodecs.get_codec(json.loads(json.dumps(codec.get_config()))),
        pickle.loads(pickle.dumps(codec)),
    ):
        assert other == codec
        assert hash(other) == hash(codec)
        assert other.decode(encoded) == text(1, 100_000)
    assert eval(repr(codec)) == codec


def test_arrays_of_any_type_are_chunks() -> None:
    for array in (
        np.arange(10_000.0),
        np.arange("2020", "2021", dtype="M8[D]"),
        np.zeros((30, 40), "u2"),
    ):
        decoded = Batchzip(shuffle=8).decode(Batchzip(shuffle=8).encode(array))
        assert bytes(decoded) == array.tobytes()
        out = np.empty_like(array)
        Batchzip(shuffle=8).decode(Batchzip(shuffle=8).encode(array), out)
        assert out.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"algorithm": "lzma"}, UnknownAlgorithm),
        ({"level": 99}, BadArgument),
        ({"page_size": 1000}, BadArgument),
        ({"shuffle": 3}, BadArgument),
        ({"speed": 1}, BadArgument),
        ({"dictionary": b"bytes"}, BadArgument),
    ],
)
def test_a_config_that_cannot_be_is_refused_when_it_is_made(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        numcodecs.get_codec({"id": "batchzip", **options})


@pytest.fixture
def _zarr_threads_end() -> Iterator[None]:
    yield
    sync.cleanup_resources()


@pytest.mark.usefixtures("_zarr_threads_end")
def test_zarr_arrays_come_back(tmp_path: Path) -> None:
    numbers = np.cumsum(np.random.default_rng(1).integers(-9, 9, (300, 400)), axis=1).astype("i4")
    made = zarr.create_array(
        tmp_path / "a.zarr",
        shape=numbers.shape,
        dtype=numbers.dtype,
        chunks=(100, 150),
        zarr_format=2,
        compressors=Batchzip("zstd", level=1, shuffle=4),
    )
    made[:] = numbers
    metadata = json.loads((tmp_path / "a.zarr" / ".zarray").read_text())
    assert metadata["compressor"]["id"] == "batchzip"
    assert metadata["compressor"]["shuffle"] == 4
    back: Any = zarr.open_array(tmp_path / "a.zarr", mode="r")
    assert np.array_equal(back[:], numbers)
    assert np.array_equal(back[7:200:3, 5], numbers[7:200:3, 5])
    stored = sum(path.stat().st_size for path in (tmp_path / "a.zarr").iterdir())
    assert stored < numbers.nbytes / 2


def test_one_codec_serves_many_threads() -> None:
    codec = Batchzip("lz4", page_size=4096)

    def there_and_back(seed: int) -> bool:
        return bool(codec.decode(codec.encode(text(seed, 50_000))) == text(seed, 50_000))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, range(100)))


def test_it_works_in_a_forked_child() -> None:
    codec = Batchzip()

    def use() -> None:
        assert codec.decode(codec.encode(text(1))) == text(1)

    in_forked_child(use)


@pytest.mark.usefixtures("_zarr_threads_end")
def test_zarrs_format_3_names_the_codec(tmp_path: Path) -> None:
    numbers = np.arange(120_000, dtype="i4").reshape(300, 400)
    codec = BatchzipCodec("lz4", page_size=4096, shuffle=4)
    made: Any = zarr.create_array(
        tmp_path / "a.zarr",
        shape=numbers.shape,
        dtype=numbers.dtype,
        chunks=(100, 150),
        compressors=codec,
    )
    made[:] = numbers
    metadata = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    assert metadata["codecs"][-1] == codec.to_dict()
    zarr.registry.register_codec("batchzip", BatchzipCodec)  # as the entry point does
    back: Any = zarr.open_array(tmp_path / "a.zarr", mode="r")
    assert back.compressors == (codec,)
    assert np.array_equal(back[:], numbers)
    (chunk,) = (tmp_path / "a.zarr" / "c" / "0").glob("0")
    damaged = bytearray(chunk.read_bytes())
    assert len(damaged) < 100 * 150 * 4 / 2
    damaged[-1] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(BadBatch, match="damaged"):
        back[0, 0]


@pytest.mark.usefixtures("_zarr_threads_end")
def test_zarrs_shards_are_read_and_written_in_part() -> None:
    """zarr-python#3682, icechunk#1019: parts of a shard came back as others."""
    data = np.arange(10_000, dtype="f4").reshape(100, 100)
    array: Any = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=data.shape,
        chunks=(10, 10),
        shards=(50, 50),
        dtype=data.dtype,
        compressors=BatchzipCodec("zstd", shuffle=4),
    )
    array[:] = data
    array[13:57, 3:88] = data[13:57, 3:88] = -1
    assert np.array_equal(array[5:60, 80:], data[5:60, 80:])
    assert np.array_equal(array[:], data)


def test_zarrs_metadata_of_another_codec_is_refused() -> None:
    assert BatchzipCodec.from_dict(BatchzipCodec(level=5).to_dict()) == BatchzipCodec(level=5)
    with pytest.raises(BadArgument, match="metadata of codec"):
        BatchzipCodec.from_dict({"name": "zstd", "configuration": {}})


# Chunks that lie


def test_any_flipped_bit_is_found() -> None:
    codec = Batchzip("lz4", page_size=512)
    encoded = codec.encode(text(1, 700))
    for bit in range(len(encoded) * 8):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadBatch):
            codec.decode(damaged)
    for length in range(len(encoded)):
        with pytest.raises(BadBatch):
            codec.decode(encoded[:length])


def forged(length: int, lengths: list[int], pages: bytes, bits: int = 16) -> bytes:
    """Make a chunk that says so of itself, with a checksum that is right."""
    header = struct.pack("<4sBBHQ", b"bzc1", bits, 0, 0, length)
    rest = np.array(lengths, "<u4").tobytes() + pages
    return header + struct.pack("<Q", xxh3_64(header + rest).intdigest()) + rest


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (forged(1 << 60, [], b""), "too short"),
        ((forged(1 << 63, [9], b"x" * 9)), "too short"),
        (forged(100, [5], b"four"), "do not match"),
        (forged(100, [2**32 - 1], b"four"), "do not match"),
        (forged(100, [4], b"fourteen"), "do not match"),
        (forged(0, [], b"more"), "do not match"),
        (forged(100, [4], b"four", bits=12), "pages of 2\\^12"),
        (b"", "too few for a chunk"),
        (b"x" * 100, "header differs"),
    ],
)
def test_a_chunk_whose_lengths_cannot_be_is_refused(chunk: bytes, said: str) -> None:
    with pytest.raises(BadBatch, match=said):
        Batchzip().decode(chunk)


@pytest.mark.parametrize("algorithm", ["zstd", "lz4"])
def test_a_chunk_that_declares_much_takes_little_memory(algorithm: str) -> None:
    codec = Batchzip(algorithm, page_size=1 << 21)
    count = 10_000  # 20 GiB, by what it says
    chunk = forged(count << 21, [1] * count, b"x" * count, bits=21)
    tracemalloc.start()
    with pytest.raises(CorruptPage):
        codec.decode(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


def test_an_out_of_another_size_is_refused_and_not_touched() -> None:
    encoded = Batchzip().encode(text(1))
    for length in (4095, 4097):
        out = bytearray(length)
        with pytest.raises(BadBatch, match="out must have"):
            Batchzip().decode(encoded, out)
        assert out == bytes(length)


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused_or_restored(rest: bytes) -> None:
    codec = Batchzip("lz4", page_size=512)
    for chunk in (rest, b"bzc1" + rest, forged(len(rest), [len(rest)], rest, bits=9)):
        try:
            assert len(codec.decode(chunk)) == len(rest)
        except (BadBatch, CorruptPage):
            continue


def test_a_page_whose_output_is_as_long_as_the_page_comes_back() -> None:
    random = np.random.default_rng(0).bytes(512)
    with Engine("lz4", backend="sequential", page_size=512) as engine:
        for repeated in range(50):  # the more of it, the shorter the output
            page = random[:300] + random[:repeated] + random[300 + repeated :]
            if len(engine.compress_page(page)) == 512:
                break
        else:
            pytest.fail("there is no such page")
    codec = Batchzip("lz4", page_size=512)
    assert codec.decode(codec.encode(page)) == page


def test_the_defaults_are_what_the_metadata_of_arrays_has() -> None:
    expected = {"algorithm": "zstd", "page_size": 65536, "shuffle": None}
    assert Batchzip().get_config() == {"id": "batchzip", **expected}
    assert BatchzipCodec().to_dict() == {"name": "batchzip", "configuration": expected}


# NumPy's numbers, Zarr's ways


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.uint16, int])
def test_numbers_of_numpy_stand_in_the_metadata_as_plain_ones(kind: Callable[[Any], Any]) -> None:
    config = {
        "algorithm": np.str_("zstd"),
        "page_size": kind(4096),
        "shuffle": kind(4),
        "level": kind(2),
    }
    codec = Batchzip(**config)
    assert json.loads(json.dumps(codec.get_config())) == {
        "id": "batchzip",
        "algorithm": "zstd",
        "page_size": 4096,
        "shuffle": 4,
        "level": 2,
    }
    assert codec == Batchzip("zstd", page_size=4096, shuffle=4, level=2)
    named = BatchzipCodec(**config)
    assert BatchzipCodec.from_dict(json.loads(json.dumps(named.to_dict()))) == named


@pytest.mark.parametrize(
    "config",
    [
        {"page_size": np.float64(4096)},
        {"page_size": np.array([4096])},
        {"page_size": np.int8(64)},
        {"page_size": True},
        {"level": np.float32(1)},
        {"level": 10**400},
        {"shuffle": np.bool_(True)},
        {"algorithm": Zstd(1)},
        {"algorithm": None},
    ],
)
@pytest.mark.parametrize("codec", [Batchzip, BatchzipCodec])
def test_settings_that_metadata_cannot_hold_are_refused_at_once(codec: Any, config: Any) -> None:
    with pytest.raises((BatchzipError, TypeError)):
        codec(**config)


@pytest.mark.usefixtures("_zarr_threads_end")
def test_zarr_may_call_the_codec_without_an_event_loop(tmp_path: Path) -> None:
    codec = BatchzipCodec("lz4", shuffle=4)
    protocol = getattr(zarr.abc.codec, "SupportsSyncCodec", object)  # Zarr 3.1.6 has it
    assert isinstance(codec, protocol)
    data = np.arange(30_000, dtype="i4")
    array = zarr.create_array(
        tmp_path / "a", shape=data.shape, chunks=(7000,), dtype="i4", compressors=codec
    )
    array[:] = data
    spec = SimpleNamespace(prototype=default_buffer_prototype())
    chunk = spec.prototype.buffer.from_bytes(data[:7000].tobytes())
    encoded = codec._encode_sync(chunk, spec)  # type: ignore[arg-type]
    stored = (tmp_path / "a" / "c" / "0").read_bytes()
    assert encoded.to_bytes() == stored
    assert codec._decode_sync(encoded, spec).to_bytes() == data[:7000].tobytes()  # type: ignore[arg-type]
    damaged = spec.prototype.buffer.from_bytes(stored[:-1])
    with pytest.raises(BatchzipError):
        codec._decode_sync(damaged, spec)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_zarr_threads_end")
def test_a_mapping_serves_as_a_zarr_store(store: SwapStore) -> None:
    with CompressedMapping(store, serializer="pickle") as mapping:
        kept = zarr.storage.MemoryStore(cast("Any", mapping))
        group = zarr.create_group(kept)
        data = (np.arange(60_000, dtype="f4") % 50).reshape(300, 200)
        array = group.create_array(
            "a", shape=data.shape, chunks=(64, 64), dtype="f4", compressors=None
        )
        array[:] = data
        array[7, 5:9] = -1
        data[7, 5:9] = -1
        array.resize((310, 200))
        group.create_array("b/c", shape=(5,), dtype="i8")[:] = range(5)
        again: Any = zarr.open_group(kept, mode="r")
        assert np.array_equal(again["a"][:300], data)
        assert not again["a"][300:].any()
        assert sorted(name for name, _ in again.members(max_depth=None)) == ["a", "b", "b/c"]
        assert mapping.cbytes < data.nbytes
        assert kept == zarr.storage.MemoryStore(cast("Any", mapping))
        del group["b"]
        assert not [key for key in mapping if str(key).startswith("b/")]
        mapping.check_invariants()
