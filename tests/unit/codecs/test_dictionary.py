"""zstd dictionaries: small pages get smaller, only the right dictionary restores them."""

from __future__ import annotations

import errno
import pickle
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zstandard
from support.harmful import BOMB, HARMFUL
from support.sample_pages import SIZE, arrays, json_pages, pages_of, ratio, source_pages

import batchzip
from batchzip import BadArgument, BadBatch, CompressBatch, DecompressBatch, Engine, PageError
from batchzip.codecs.lz4 import Lz4
from batchzip.codecs.shuffled import Shuffled
from batchzip.codecs.verified import Verified
from batchzip.codecs.zstd import Zstd
from batchzip.testing.plain import SLACK_S, make_pages

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS: dict[str, Callable[[], list[bytes]]] = {"source": source_pages, "JSON": json_pages}


@pytest.fixture(scope="module")
def dictionary() -> bytes:
    return batchzip.train_dictionary(json_pages()[::2], size=16 << 10)


# The gain


@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize(("kind", "gain"), [("source", 1.08), ("JSON", 1.15)])
def test_pages_that_it_was_not_trained_on_get_smaller(kind: str, gain: float, level: int) -> None:
    pages = KINDS[kind]()
    trained = batchzip.train_dictionary(pages[::2], level=level)
    assert 1024 < len(trained) <= 64 << 10
    plain = ratio(pages[1::2], "zstd", level=level)
    assert ratio(pages[1::2], "zstd", level=level, dictionary=trained) > plain * gain


def test_a_dictionary_for_floats_is_trained_on_transformed_pages() -> None:
    data = arrays()["bfloat16 weights"][1]
    pages = [data[start : start + 512] for start in range(0, len(data), 512)]
    how = {"level": 1, "shuffle": "f2"}
    trained = batchzip.train_dictionary(pages, size=4096, **how)  # type: ignore[arg-type]
    other = batchzip.train_dictionary(pages, size=4096, level=1, shuffle=2)
    assert trained != other
    codec = Shuffled(Zstd(1, trained), 2, floats=True)
    with batchzip.Engine(codec, page_size=512, backend="sequential") as engine:
        outputs = [engine.compress_page(page) for page in pages]
        assert list(map(engine.decompress_page, outputs)) == pages
        assert len(data) > 1.2 * sum(map(len, outputs))


def test_a_dictionary_for_shuffled_pages_is_trained_on_shuffled_ones() -> None:
    element_size, data = arrays()["float64 signal"]
    pages = pages_of(data)
    how = {"level": 1, "shuffle": element_size}
    trained = batchzip.train_dictionary(pages[::2], size=4096, **how)
    assert ratio(pages[1::2], "zstd", dictionary=trained, **how) > ratio(pages[1::2], "zstd", **how)


@pytest.mark.parametrize("level", [-7, -1, 0, 1, 12, 22])
def test_every_level_takes_a_dictionary(dictionary: bytes, level: int) -> None:
    pages = json_pages()[1:40:2]
    gained = ratio(pages, "zstd", level=level, dictionary=dictionary)
    assert gained > ratio(pages, "zstd", level=level)


@pytest.mark.parametrize("page_size", [512, 1 << 16, 2 << 20])
def test_pages_of_every_size_come_back(dictionary: bytes, page_size: int) -> None:
    pages = make_pages(5, page_size=page_size)
    text = (b"".join(json_pages()) * 2)[:page_size]
    pages[0] = np.frombuffer(text, np.uint8)
    with Engine("zstd", page_size=page_size, dictionary=dictionary, verify=True) as engine:
        batch = CompressBatch(pages)
        engine.compress(batch)
        assert not batch.errors.any()


# Training


def test_the_same_pages_give_the_same_dictionary_in_whatever_form() -> None:
    pages = json_pages()[:120]
    made = batchzip.train_dictionary(pages, size=8192)
    assert batchzip.train_dictionary([memoryview(page) for page in pages], size=8192) == made
    array = np.frombuffer(b"".join(pages), np.uint8).reshape(-1, SIZE)
    assert batchzip.train_dictionary(array, size=8192) == made
    assert len(made) <= 8192


def test_training_uses_a_sample_of_very_many_pages() -> None:
    pages = json_pages()
    assert len(pages) > 400
    made = batchzip.train_dictionary(pages, size=1024)
    assert made == batchzip.train_dictionary(pages[:: len(pages) * SIZE // (100 << 10)], size=1024)


FEW = "needs at least 8 pages of at least 262144 bytes in total that differ and can be compressed"


@pytest.mark.parametrize(
    ("pages", "found"),
    [
        (lambda: json_pages()[:40], "of the 40 given, 40 do, with 163840 bytes: give more"),
        (lambda: json_pages()[:1] * 100, "of the 100 given, 1 do"),
        (lambda: [bytes(SIZE)] * 100, "of the 100 given, 1 do"),
        (lambda: [np.random.default_rng(i).bytes(SIZE) for i in range(100)], "100 given, 0 do"),
        (lambda: np.zeros((3, 1 << 20), np.uint8), "of the 3 given, 1 do"),
    ],
    ids=["few", "one over and over", "zeros", "noise", "few and large"],
)
def test_an_error_about_unsuitable_pages_says_what_is_needed(
    pages: Callable[[], Any], found: str
) -> None:
    with pytest.raises(BadArgument) as refusal:
        batchzip.train_dictionary(pages())
    assert FEW in str(refusal.value)
    assert found in str(refusal.value)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"size": 1023}, "size must be an integer in 1024…2097152, not 1023"),
        ({"size": (2 << 20) + 1}, "not 2097153"),
        ({"size": 1e5}, "not 100000.0"),
        ({"level": 23}, "level must be"),
        ({"shuffle": 3}, "shuffle must be 2, 4 or 8"),
    ],
)
def test_an_error_about_a_parameter_says_what_is_allowed(parameters: Any, words: str) -> None:
    with pytest.raises(BadArgument) as refusal:
        batchzip.train_dictionary(json_pages(), **parameters)
    assert words in str(refusal.value)


def test_training_refuses_invalid_pages() -> None:
    for wrong in ([], "pages", np.zeros((4, 4), np.float32), [1, 2]):
        with pytest.raises(BadBatch, match="pages"):
            batchzip.train_dictionary(wrong)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="divided into elements of 4 bytes"):
        batchzip.train_dictionary([b"x" * 4095] * 100, shuffle=4)


# The parameter


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (b"", "0 bytes has no ID: it must come from batchzip.train_dictionary or"),
        (b"raw content " * 100, "1200 bytes has no ID"),
        (bytes.fromhex("37a430ec") + bytes(100), "has no ID"),
        (bytes.fromhex("37a430ec") + b"\1" * 100, "104 bytes is damaged: "),
        (bytes((2 << 20) + 1), "at most 2097152 bytes, not 2097153"),
        ("text", "must be bytes or None, not str"),
        (4096, "must be bytes or None, not int"),
        ([1, 2], "must be bytes or None, not list"),
    ],
)
def test_an_invalid_dictionary_is_refused_when_the_codec_is_made(wrong: Any, words: str) -> None:
    with pytest.raises(BadArgument) as refusal:
        Engine("zstd", backend="sequential", dictionary=wrong)
    assert words in str(refusal.value)


def test_a_dictionary_damaged_anywhere_in_its_tables_is_refused_or_works(dictionary: bytes) -> None:
    page = json_pages()[1]
    refused = 0
    for at in range(4, 160):
        damaged = bytearray(dictionary)
        damaged[at] ^= 0x55
        try:
            codec = Zstd(1, bytes(damaged))
        except BadArgument:
            refused += 1
        else:
            assert codec.decompressor(SIZE)(codec.compressor(SIZE)(page)) == page
    assert refused


def test_a_codec_copies_its_dictionary_and_never_prints_it(dictionary: bytes) -> None:
    given = bytearray(dictionary)
    codec = Zstd(1, given)  # type: ignore[arg-type] # any buffer will do
    given[:] = bytes(len(given))
    assert codec.dictionary == dictionary
    number = zstandard.ZstdCompressionDict(dictionary).dict_id()
    assert repr(codec) == f"Zstd(level=1, dictionary=<{len(dictionary)} bytes, id {number}>)"


def test_codecs_are_equal_by_value(dictionary: bytes) -> None:
    other = batchzip.train_dictionary(source_pages(), size=4096)

    def make(dictionary: bytes | None) -> list[batchzip.Codec]:
        copy = None if dictionary is None else bytes(bytearray(dictionary))
        plain = [Zstd(1, copy), Zstd(2, copy)]
        return [*plain, *(Shuffled(codec, size) for codec in plain for size in (2, 4))]

    codecs = [*make(None), *make(dictionary), *make(other), Lz4(), Shuffled(Lz4(), 2)]
    codecs += map(Verified, list(codecs))
    again = [*make(None), *make(dictionary), *make(other), Lz4(), Shuffled(Lz4(), 2)]
    again += map(Verified, list(again))
    assert len(set(codecs)) == len(codecs)
    for index, codec in enumerate(codecs):
        assert [codec == one for one in again] == [index == at for at in range(len(again))]
        assert hash(codec) == hash(again[index]) == hash(pickle.loads(pickle.dumps(codec)))
        assert pickle.loads(pickle.dumps(codec)) == codec


# Frames


def test_other_zstd_tools_read_what_is_written(dictionary: bytes) -> None:
    page = json_pages()[1]
    frame = Zstd(1, dictionary).compressor(SIZE)(page)
    read = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(dictionary))
    assert read.decompress(frame) == page
    number = zstandard.ZstdCompressionDict(dictionary).dict_id()
    assert zstandard.get_frame_parameters(frame).dict_id == number


def test_a_frame_with_another_dictionary_or_without_the_one_it_needs_is_undecodable(
    dictionary: bytes,
) -> None:
    page = json_pages()[1]
    other = batchzip.train_dictionary(json_pages()[::3], size=8192)
    codecs = {None: Zstd(1), dictionary: Zstd(1, dictionary), other: Zstd(1, other)}
    frames = {of: codec.compressor(SIZE)(page) for of, codec in codecs.items()}
    for reader, codec in codecs.items():
        with Engine(codec, backend="sequential") as engine:
            for writer, frame in frames.items():
                if writer in (None, reader):
                    assert engine.decompress_page(frame) == page
                    continue
                with pytest.raises(PageError) as failure:
                    engine.decompress_page(frame)
                assert failure.value.errno == -errno.EBADMSG


def test_no_harmful_frame_is_read_with_a_dictionary_either(dictionary: bytes) -> None:
    compress = zstandard.ZstdCompressor(
        dict_data=zstandard.ZstdCompressionDict(dictionary)
    ).compress
    bomb = compress(bytes(50 << 20))
    assert len(bomb) < len(BOMB) * 2
    with Engine("zstd", backend="sequential", dictionary=dictionary) as engine:
        good = engine.compress_page(json_pages()[1])
        for source in [*HARMFUL.values(), bomb, compress(b"x" * (SIZE + 1)), good + b"x", good * 2]:
            batch = DecompressBatch([good, source, good])
            engine.decompress(batch)
            assert batch.errors.tolist() == [0, -errno.EBADMSG, 0]


def test_damaged_frames_are_a_page_or_undecodable(dictionary: bytes) -> None:
    rng = np.random.default_rng(5)
    with Engine("zstd", backend="sequential", dictionary=dictionary) as engine:
        good = engine.compress_page(json_pages()[1])
        srcs = []
        for _ in range(3000):
            src = bytearray(good[: rng.integers(1, len(good) + 1)])
            for at in rng.integers(0, len(src), rng.integers(0, 9)):
                src[at] = rng.integers(0, 256)
            srcs.append(bytes(src))
        batch = DecompressBatch(srcs)
        engine.decompress(batch)
        assert set(batch.errors.tolist()) <= {0, -errno.EBADMSG}


# Workers


@pytest.mark.slow
def test_workers_get_a_dictionary_larger_than_a_pipe_holds() -> None:
    large = batchzip.train_dictionary(source_pages(), size=256 << 10)
    assert len(large) == 256 << 10
    pages = source_pages()[:300]
    compress = Zstd(1, large).compressor(SIZE)
    with Engine("zstd", level=1, dictionary=large, backend="workers", workers=1) as engine:
        assert engine.wait_ready(SLACK_S)
        deadline = time.monotonic() + SLACK_S
        while not sum(worker.pages for worker in engine.statistics.workers):
            assert time.monotonic() < deadline, "no worker ever did a page"
            batch = engine.submit(CompressBatch(pages)).wait(SLACK_S)
            assert [bytes(output) for output in batch.outputs()] == list(map(compress, pages))
        back = engine.submit(DecompressBatch(batch.outputs())).wait(SLACK_S)
        assert back.pages.tobytes() == b"".join(pages)
        assert engine.statistics.restarts == 0
