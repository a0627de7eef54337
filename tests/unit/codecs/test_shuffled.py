"""shuffle=: arrays of numbers get smaller, come back as they were, and damage is damage."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.sample_pages import SIZE, arrays, pages_of, ratio, source_pages

from batchzip import (
    BadArgument,
    CompressBatch,
    CompressedMapping,
    DecompressBatch,
    Engine,
    PageError,
    SwapStore,
)
from batchzip.codecs.lz4 import Lz4
from batchzip.codecs.shuffled import Shuffled, shuffle_bytes
from batchzip.codecs.verified import Verified
from batchzip.codecs.zstd import Zstd

ARRAYS = arrays()


@pytest.mark.parametrize(
    ("algorithm", "kind", "gain"),
    [
        ("lz4", "float32 signal", 1.4),
        ("lz4", "float64 signal", 1.25),
        ("lz4", "int64 sorted ids", 2),
        ("lz4", "int32 random walk", 2),
        ("lz4", "bfloat16 weights", 1.05),  # most bits of weights are noise
        ("lz4", "float32 weights", 1.005),
        ("zstd", "float32 signal", 1.4),
        ("zstd", "float64 signal", 1.2),
        ("zstd", "int32 random walk", 1.5),
        ("zstd", "bfloat16 weights", 1.005),
        ("zstd", "float32 weights", 1.005),
    ],
)
def test_arrays_of_numbers_get_smaller(algorithm: str, kind: str, gain: float) -> None:
    element_size, data = ARRAYS[kind]
    pages = pages_of(data)
    assert ratio(pages, algorithm, shuffle=element_size) > ratio(pages, algorithm) * gain


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize(
    ("kind", "size", "least"),
    [("bfloat16 weights", 2, 1.46), ("float32 weights", 4, 1.17), ("float32 signal", 4, 1.5)],
)
def test_floats_get_smaller_than_shuffled_bytes(
    kind: str, size: int, least: float, level: int
) -> None:
    pages = pages_of(ARRAYS[kind][1])
    assert ratio(pages, "zstd", level=level, shuffle=f"f{size}") > least


@pytest.mark.parametrize("shuffle", [2, 4, 8])
def test_text_does_not_but_comes_back(shuffle: int) -> None:
    pages = source_pages()[:50]
    assert ratio(pages, "zstd", shuffle=shuffle) < ratio(pages, "zstd")


class _Kept(Lz4):
    """Stores what it is given, so that a test sees it."""

    def compressor(self, page_size: int) -> Any:  # noqa: ARG002
        return bytes

    def decompressor(self, page_size: int) -> Any:  # noqa: ARG002
        return bytes


@pytest.mark.slow
@given(data=st.data())
@pytest.mark.parametrize("element_size", [2, 4, 8])
@pytest.mark.parametrize("page_size", [512, 4096, 1 << 16])
def test_byte_i_of_every_element_comes_before_byte_i_plus_1_of_any(
    page_size: int, element_size: int, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 1 << 32))
    page = np.random.default_rng(seed).bytes(page_size)
    codec = Shuffled(_Kept(), element_size)
    output = codec.compressor(page_size)(page)
    assert output == b"".join(page[place::element_size] for place in range(element_size))
    assert codec.decompressor(page_size)(memoryview(output)) == page


@given(data=st.data())
@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_sign_of_a_float_goes_behind_its_mantissa(size: int, data: st.DataObject) -> None:
    page = np.random.default_rng(data.draw(st.integers(0, 1 << 32))).bytes(512)
    bits = 8 * size - 1
    turned = b"".join(
        ((word << 1 & (1 << bits + 1) - 1) | word >> bits).to_bytes(size, "little")
        for word in np.frombuffer(page, f"<u{size}").tolist()
    )
    codec = Shuffled(_Kept(), size, floats=True)
    output = codec.compressor(512)(page)
    assert output == b"".join(turned[place::size] for place in range(size))
    assert output == shuffle_bytes(page, f"f{size}")
    assert codec.decompressor(512)(memoryview(output)) == page


def test_floats_of_every_kind_come_back_bit_by_bit() -> None:
    words = np.arange(1 << 16, dtype=np.uint16)  # every bfloat16 and float16 there is
    pages = pages_of(np.concatenate([words, words[::-1], words * np.uint16(40503)]).tobytes())
    for size in (2, 4, 8):
        for algorithm in ("lz4", "zstd"):
            ratio(pages, algorithm, shuffle=f"f{size}")


@pytest.mark.parametrize("least", [1, 2, 63, 64, 127, 128, 129, 255, 256, 257, 511])
def test_values_of_any_length_come_back(least: int) -> None:
    for shuffle in ("f2", "f4", "f8"):
        with (
            Engine("zstd", backend="sequential", shuffle=shuffle) as engine,
            SwapStore(engine) as store,
            CompressedMapping(store) as mapping,
        ):
            numbers = np.random.default_rng(least).normal(size=4096).astype(np.float32).tobytes()
            values = {length: numbers[:length] for length in range(least, 4 * least + 9, least)}
            mapping.update(values)
            assert dict(mapping) == values


def test_frames_of_floats_are_standard_ones_and_smaller_than_any_one_block() -> None:
    page = pages_of(ARRAYS["bfloat16 weights"][1])[0]
    with Engine("zstd", backend="sequential", shuffle="f2") as engine:
        output = engine.compress_page(page)
        assert zstandard.decompress(output) == shuffle_bytes(page, "f2")
        assert len(output) < len(Zstd(1).compressor(SIZE)(shuffle_bytes(page, "f2"))) * 0.9


def test_a_codec_of_ones_own_sees_whole_pages() -> None:
    class Counted(Zstd):
        def compressor(self, page_size: int) -> Any:
            compress = super().compressor(page_size)

            def counted(page: bytes) -> bytes:
                seen.append(len(page))
                return compress(page)

            return counted

    seen: list[int] = []
    page = pages_of(ARRAYS["bfloat16 weights"][1])[0]
    with Engine(Counted(), backend="sequential", shuffle="f2") as engine:
        assert engine.decompress_page(engine.compress_page(page)) == page
        assert seen == [SIZE]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["threads", "workers"])
def test_lanes_compress_floats_as_the_caller_does(backend: str) -> None:
    pages = pages_of(ARRAYS["float32 weights"][1])[:64]
    with (
        Engine("zstd", backend="sequential", shuffle="f4") as alone,
        Engine(
            "zstd", backend=backend, workers=1, isolate=backend == "workers", shuffle="f4"
        ) as engine,
    ):
        batch = CompressBatch(pages)
        engine.compress(batch)
        assert [bytes(output) for output in batch.outputs()] == list(
            map(alone.compress_page, pages)
        )
        assert pickle.loads(pickle.dumps(engine.codec)) == alone.codec


@pytest.mark.parametrize("wrong", ["f1", "f16", "F2", "bf16", "float32", "", "2"])
def test_another_kind_of_floats_is_told_which_there_are(wrong: str) -> None:
    with pytest.raises(BadArgument, match="'f2', 'f4' or 'f8'"):
        Engine("zstd", backend="sequential", shuffle=wrong)


@pytest.mark.parametrize("wrong", [0, 1, 3, 16, -2, 4.0, "4", True, np.int64(3)])
def test_another_size_of_elements_is_told_which_there_are(wrong: Any) -> None:
    with pytest.raises(BadArgument, match="shuffle must be 2, 4 or 8"):
        Engine("lz4", backend="sequential", shuffle=wrong)


@pytest.mark.parametrize("shuffle", [4, "f4"])
@pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
def test_a_source_of_another_length_or_damaged_is_undecodable_or_a_page(
    algorithm: str, shuffle: int | str
) -> None:
    rng = np.random.default_rng(4)
    page = np.arange(1024, dtype=np.float32).tobytes()
    with Engine(algorithm, backend="sequential", shuffle=shuffle) as engine:
        good = engine.compress_page(page)
        plain = engine.codec.codec  # type: ignore[attr-defined]
        for size in (512, 2048, 4095, 4097, 8192):
            with pytest.raises(PageError) as failure:
                engine.decompress_page(plain.compressor(size)(bytes(size)))
            assert failure.value.errno == -errno.EBADMSG
        for _ in range(2000):
            src = bytearray(good[: rng.integers(1, len(good) + 1)])
            src[rng.integers(len(src))] ^= 1 << int(rng.integers(8))
            batch = DecompressBatch([good, bytes(src), good])
            engine.decompress(batch)
            assert batch.errors[1] in (0, -errno.EBADMSG)
            assert batch.errors[0] == batch.errors[2] == 0
        assert engine.decompress_page(good) == page


def test_pages_of_one_context_do_not_share_memory() -> None:
    with Engine("lz4", backend="sequential", shuffle=8) as engine:
        outputs = [engine.compress_page(bytes([number]) * SIZE) for number in range(3)]
        pages = [engine.decompress_page(output) for output in outputs]
        assert pages == [bytes([number]) * SIZE for number in range(3)]


def test_verify_goes_around_it() -> None:
    with Engine("zstd", level=1, backend="sequential", shuffle=4, verify=True) as engine:
        assert engine.codec == Verified(Shuffled(Zstd(1), 4))
        assert engine.codec.algorithm == "zstd"
        assert (
            repr(engine.codec)
            == "Verified(codec=Shuffled(codec=Zstd(level=1), element_size=4, floats=False))"
        )
    with Engine(Lz4(), backend="sequential", shuffle=2) as engine:
        assert engine.codec == Shuffled(Lz4(), 2)


NUMPY_IN_WORKERS = """
import sys
from batchzip_workers import worker
from batchzip.codecs.{module} import {name}
{make}.compressor(4096)
print("numpy" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "make", "imported"),
    [
        ("lz4", "Lz4", "Lz4()", "False"),
        ("zstd", "Zstd", "Zstd()", "False"),
        (
            "shuffled",
            "Shuffled",
            "import batchzip; Shuffled(batchzip.codecs.make_codec('lz4'), 4)",
            "True",
        ),
    ],
)
def test_a_worker_imports_numpy_only_to_shuffle(
    module: str, name: str, make: str, imported: str
) -> None:
    script = NUMPY_IN_WORKERS.format(module=module, name=name, make=make)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", imported)
