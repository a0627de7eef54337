"""The core's codecs give the bytes that the Python codecs give, and refuse what they refuse."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from support.harmful import HARMFUL
from support.sample_pages import json_pages, source_pages

from batchzip import PageError, train_dictionary
from batchzip.codecs.brotli import Brotli
from batchzip.codecs.codec import Codec
from batchzip.codecs.deflate import Deflate
from batchzip.codecs.lz4 import Lz4
from batchzip.codecs.lz4hc import Lz4hc
from batchzip.codecs.shuffled import Shuffled
from batchzip.codecs.snappy import Snappy
from batchzip.codecs.verified import Verified
from batchzip.codecs.zstd import Zstd
from batchzip.core.coder import Coder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batchzip.arguments.buffers import Flat
    from batchzip.codecs.codec import Transcode

SIZES = [512 << power for power in range(13)]

LZ4 = [Lz4(acceleration) for acceleration in (1, 2, 3, 7, 17, 100, 1000, 65536, 65537)]
HIGH = [Lz4(high_compression=level) for level in range(1, 13)] + [Lz4hc(1), Lz4hc(), Lz4hc(12)]
ZSTD = [Zstd(level) for level in (-131072, -1000, -100, -20, -7, -5, -3, -2, -1, *range(23))]
DICTIONARY_LEVELS = (-131072, -100, -5, -1, 0, 1, 2, 3, 4, 6, 8, 11, 13, 16, 19, 22)


@cache
def dictionary(size: int = 16 << 10, first: int = 0) -> bytes:
    return train_dictionary(source_pages()[first::2], size=size)


@cache
def stream(kind: str) -> bytes:
    """Make 2 MiB of one kind of data."""
    rng = random.Random(kind)
    size = SIZES[-1]
    if kind == "zeros":
        return bytes(size)
    if kind == "noise":
        return rng.randbytes(size)
    if kind == "few values":
        return bytes(rng.choices(range(6), k=size // 8)) * 8
    data = b"".join(json_pages() if kind == "json" else source_pages())
    if kind == "mixed":
        data = b"".join(
            data[at : at + 700] + rng.randbytes(300) for at in range(0, min(len(data), size), 700)
        )
    return (data * (size // len(data) + 1))[:size]


KINDS = ("zeros", "noise", "few values", "json", "source", "mixed")


def pages(page_size: int, seed: int = 0) -> Iterator[bytes]:
    """Pages of every kind, more of the small ones; of the largest, what codecs work hardest on."""
    rng = random.Random(seed)
    for _ in range(max(1, min(4, 16384 // page_size))):
        for kind in KINDS if page_size <= 128 << 10 else ("source", "mixed"):
            at = rng.randrange(SIZES[-1] // page_size) * page_size
            yield stream(kind)[at : at + page_size]


def sizes(codec: Codec) -> list[int]:
    """Every page size, or some where the codec takes milliseconds for a page."""
    slow = (getattr(codec, "level", 0) or getattr(codec, "high_compression", 0) or 0) >= 10
    return [512, 4096, 32768, 131072, 262144] if slow else SIZES


def check_equal(codec: Codec, page_size: int) -> None:
    compress, restore = codec.compressor(page_size), codec.decompressor(page_size)
    coder = Coder(codec, page_size)
    assert coder.native
    for page in pages(page_size):
        output = coder.compress(page)
        assert output == compress(page)
        assert coder.decompress(output) == restore(output) == page


# Equal bytes


@pytest.mark.slow
@pytest.mark.parametrize("codec", [*LZ4, *HIGH, *ZSTD], ids=str)
def test_outputs_are_those_of_the_python_codec(codec: Codec) -> None:
    for page_size in sizes(codec):
        check_equal(codec, page_size)


@pytest.mark.slow
@pytest.mark.parametrize("codec", [Lz4(high_compression=12), Zstd(16), Zstd(19), Zstd(22)], ids=str)
def test_outputs_of_the_largest_pages_are_those_of_the_python_codec(codec: Codec) -> None:
    check_equal(codec, SIZES[-1])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1 << 10, 64 << 10, 512 << 10])
@pytest.mark.parametrize("level", DICTIONARY_LEVELS)
def test_outputs_with_a_dictionary_are_those_of_the_python_codec(level: int, size: int) -> None:
    # From 128 KiB on, whether libzstd uses a dictionary's tables depends on how they were made.
    for page_size in (512, 4096, 65536, 131072, 524288)[: 5 if level < 13 else 4]:
        check_equal(Zstd(level, dictionary(size)), page_size)


@pytest.mark.slow
@pytest.mark.parametrize("element_size", [2, 4, 8])
@pytest.mark.parametrize("around", [lambda codec: codec, Verified], ids=["", "verified"])
def test_outputs_of_shuffled_pages_are_those_of_the_python_codec(
    element_size: int, around: Callable[[Codec], Codec]
) -> None:
    for inner in (Lz4(), Lz4(7), Lz4hc(), Zstd(1), Zstd(1, dictionary()), Zstd(-5)):
        for page_size in (512, 4096, 131072):
            check_equal(around(Shuffled(inner, element_size)), page_size)


@pytest.mark.slow
@pytest.mark.parametrize("element_size", [2, 4, 8])
@pytest.mark.parametrize("inner", [Lz4(), Zstd(-5), Zstd(), Zstd(2), Zstd(5), Zstd(13)], ids=str)
def test_outputs_of_floats_are_those_of_the_python_codec(inner: Codec, element_size: int) -> None:
    codec = Shuffled(inner, element_size, floats=True)
    for page_size in SIZES if inner == Zstd() else (512, 4096, 131072, 262144):
        check_equal(codec, page_size)


@pytest.mark.parametrize("level", [-5, 1, 3, 6])
def test_outputs_of_floats_with_a_dictionary_are_those_of_the_python_codec(level: int) -> None:
    for page_size in (512, 4096, 131072):
        check_equal(Verified(Shuffled(Zstd(level, dictionary()), 2, floats=True)), page_size)


@pytest.mark.parametrize("codec", [Lz4(), Lz4hc(3), Zstd(1), Zstd(3, dictionary())], ids=str)
def test_verified_outputs_are_those_of_the_python_codec(codec: Codec) -> None:
    check_equal(Verified(codec), 4096)


FAST = [
    Lz4(),
    Lz4(9),
    Lz4hc(3),
    Zstd(-5),
    Zstd(1),
    Zstd(3),
    Zstd(1, dictionary()),
    Shuffled(Lz4(), 4),
    Shuffled(Zstd(1), 8),
    Verified(Shuffled(Lz4(), 2)),
    Shuffled(Zstd(1), 2, floats=True),
    Verified(Shuffled(Zstd(3), 4, floats=True)),
    Shuffled(Zstd(1, dictionary()), 8, floats=True),
]


@pytest.mark.slow
@settings(deadline=None)
@given(
    codec=st.sampled_from(FAST),
    page_size=st.sampled_from([512, 4096, 65536]),
    parts=st.lists(st.tuples(st.binary(min_size=1, max_size=64), st.integers(1, 300)), min_size=1),
)
def test_outputs_of_any_page_are_those_of_the_python_codec(
    codec: Codec, page_size: int, parts: list[tuple[bytes, int]]
) -> None:
    data = b"".join(part * times for part, times in parts)
    page = (data * (page_size // len(data) + 1))[:page_size]
    coder = Coder(codec, page_size)
    output = coder.compress(page)
    assert output == codec.compressor(page_size)(page)
    assert coder.decompress(output) == page


# Equal judgement


def check_judged_alike(codec: Codec, page_size: int, srcs: list[bytes]) -> set[bool]:
    """Restore sources both ways; return whether some were pages, some were not, or both."""
    restore = codec.decompressor(page_size)
    coder = Coder(codec, page_size)
    verdicts = set()
    for src in srcs:
        expected: bytes | None
        try:
            expected = restore(src)
        except Exception:  # noqa: BLE001 - codecs raise what they like
            expected = None
        if expected is None or len(expected) != page_size:
            with pytest.raises(PageError) as refusal:
                coder.decompress(src)
            assert refusal.value.errno == -errno.EBADMSG
        else:
            assert coder.decompress(src) == expected
        verdicts.add(expected is not None and len(expected) == page_size)
    return verdicts


def flipped(src: bytes, bit: int) -> bytes:
    return src[: bit >> 3] + bytes([src[bit >> 3] ^ 1 << (bit & 7)]) + src[(bit >> 3) + 1 :]


@pytest.mark.parametrize("codec", FAST, ids=str)
def test_damaged_sources_are_judged_alike(codec: Codec) -> None:
    rng = random.Random(3)
    for page in pages(512, seed=5):
        output = codec.compressor(512)(page)
        srcs = [flipped(output, bit) for bit in rng.sample(range(8 * len(output)), 40)]
        srcs += [flipped(output, bit) for bit in range(min(96, 8 * len(output)))]  # headers
        srcs += [output[:length] for length in rng.sample(range(len(output)), 8)]
        srcs += [output[at:] for at in range(1, 4)]
        srcs += [output + tail for tail in (b"\0", b"\xff", output, bytes(512))]
        srcs += [page, b"", output]
        assert True in check_judged_alike(codec, 512, srcs)


@pytest.mark.parametrize("codec", FAST, ids=str)
def test_pages_of_other_sizes_are_judged_alike(codec: Codec) -> None:
    others = [512, 2048, 8192, 2 << 20]
    srcs = [codec.compressor(size)(stream("source")[:size]) for size in others]
    assert check_judged_alike(codec, 4096, srcs) == {False}


@pytest.mark.parametrize("codec", FAST, ids=str)
def test_noise_is_judged_alike(codec: Codec) -> None:
    rng = random.Random(4)
    srcs = [rng.randbytes(rng.randrange(1, 2000)) for _ in range(500)]
    # A long match reaches a page's size: what noise seldom is.
    srcs += [b"\x1fx\x01\x00" + b"\xff" * times + rng.randbytes(9) for times in range(1, 40)]
    check_judged_alike(codec, 4096, srcs)


@pytest.mark.parametrize("what", HARMFUL)
@pytest.mark.parametrize("codec", [Zstd(), Zstd(1, dictionary())], ids=["plain", "dictionary"])
def test_core_and_python_codec_judge_a_harmful_frame_alike(codec: Codec, what: str) -> None:
    check_judged_alike(codec, 4096, [HARMFUL[what]])


def test_frames_of_other_dictionaries_are_judged_alike() -> None:
    own, other = dictionary(), dictionary(8 << 10, first=1)
    page = stream("source")[:4096]
    frames = [
        zstandard.ZstdCompressor(
            dict_data=zstandard.ZstdCompressionDict(chosen) if chosen else None,
            write_dict_id=named,
            write_checksum=True,
        ).compress(page)
        for chosen in (own, other, None)
        for named in (True, False)
    ]
    assert check_judged_alike(Zstd(1, own), 4096, frames) == {True, False}
    assert check_judged_alike(Zstd(1), 4096, frames) == {True, False}
    coder = Coder(Zstd(1, own), 4096)
    assert coder.decompress(frames[0]) == coder.decompress(frames[-1]) == page
    with pytest.raises(PageError):
        coder.decompress(frames[2])


def test_a_refused_source_spoils_nothing_for_the_next_page() -> None:
    for codec in FAST:
        coder = Coder(codec, 4096)
        page = stream("json")[:4096]
        output = coder.compress(page)
        for damaged in (output[:-1], output[: len(output) // 2], b"", bytes(4096)):
            with pytest.raises(PageError):
                coder.decompress(damaged)
            assert coder.compress(page) == output
            assert coder.decompress(output) == page


# Codecs in Python


@dataclass(frozen=True, slots=True)
class Failing(Codec):
    """Raises what it is told to, or returns `output`."""

    name: ClassVar[str] = "failing"

    error: type[BaseException] | None = None
    output: bytes = b"output"

    def compressor(self, page_size: int) -> Transcode:  # noqa: ARG002 - it fails for all
        def fail(page: Flat) -> bytes:  # noqa: ARG001
            if self.error is not None:
                raise self.error
            return self.output

        return fail

    def decompressor(self, page_size: int) -> Transcode:
        return self.compressor(page_size)


@pytest.mark.parametrize("codec", [Brotli(), Deflate(), Snappy(), Shuffled(Snappy(), 4)], ids=str)
def test_a_codec_in_python_is_called_back(codec: Codec) -> None:
    coder = Coder(codec, 4096)
    assert not coder.native
    for page in pages(4096):
        output = coder.compress(page)
        assert output == codec.compressor(4096)(page) or not codec.deterministic
        assert coder.decompress(output) == page
        with pytest.raises(PageError) as refusal:
            coder.decompress(output[: len(output) // 2])
        assert refusal.value.errno == -errno.EBADMSG


@pytest.mark.parametrize(
    ("codec", "compressing", "restoring"),
    [
        (Failing(ValueError), errno.EIO, errno.EBADMSG),
        (Failing(MemoryError), errno.ENOMEM, errno.ENOMEM),
        (Failing(output=b""), errno.EIO, errno.EBADMSG),
        (Verified(Failing()), errno.EIO, errno.EBADMSG),
    ],
    ids=str,
)
def test_an_error_raised_by_a_codec_becomes_the_error_of_its_page(
    codec: Codec, compressing: int, restoring: int
) -> None:
    coder = Coder(codec, 4096)
    with pytest.raises(PageError) as refusal:
        coder.compress(bytes(4096))
    assert refusal.value.errno == -compressing
    with pytest.raises(PageError) as refusal:
        coder.decompress(b"source")
    assert refusal.value.errno == -restoring
