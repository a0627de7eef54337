"""shuffle=: arrays of numbers get smaller, come back as they were, and damage is damage."""

from __future__ import annotations

import errno
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_pages import SIZE, arrays, pages_of, source_pages

from batchzip import BadArgument, CompressBatch, DecompressBatch, Engine, PageError
from batchzip.codecs.lz4 import Lz4
from batchzip.codecs.shuffled import Shuffled
from batchzip.codecs.verified import Verified
from batchzip.codecs.zstd import Zstd

ARRAYS = arrays()


def ratio(pages: list[bytes], algorithm: str, **parameters: Any) -> float:
    """How much smaller pages become, which come back unchanged."""
    with Engine(algorithm, backend="sequential", **parameters) as engine:
        batch = CompressBatch(pages)
        engine.compress(batch)
        assert not batch.errors.any()
        back = DecompressBatch(batch.outputs())
        engine.decompress(back)
        assert not back.errors.any()
        assert back.pages.tobytes() == b"".join(pages)
        return len(pages) * SIZE / int(batch.dlens.sum())


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


@pytest.mark.parametrize("wrong", [0, 1, 3, 16, -2, 4.0, "4", True, np.int64(3)])
def test_another_size_of_elements_is_told_which_there_are(wrong: Any) -> None:
    with pytest.raises(BadArgument, match="2, 4 or 8, not"):
        Engine("lz4", backend="sequential", shuffle=wrong)


@pytest.mark.parametrize("algorithm", ["lz4", "zstd"])
def test_a_source_of_another_length_or_damaged_is_undecodable_or_a_page(algorithm: str) -> None:
    rng = np.random.default_rng(4)
    page = np.arange(1024, dtype=np.float32).tobytes()
    with Engine(algorithm, backend="sequential", shuffle=4) as engine:
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
        assert repr(engine.codec) == "Verified(codec=Shuffled(codec=Zstd(level=1), element_size=4))"
    with Engine(Lz4(), backend="sequential", shuffle=2) as engine:
        assert engine.codec == Shuffled(Lz4(), 2)


NUMPY_IN_WORKERS = """
import sys
from batchzip_workers import worker
from batchzip.codecs.{module} import {name}
{make}.compressor(4096)
print("numpy" in sys.modules)
"""


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
