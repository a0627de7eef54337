"""Codecs: parameters, known bytes, and input that was made to do harm."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zstandard
from support.harmful import COUNTED, HARMFUL, WORD, ZSTD_WORD, frame, raw_block
from support.paths import TESTS

import batchzip
from batchzip import BadArgument, DecompressBatch, Engine, PageError, UnknownAlgorithm
from batchzip.codecs import Codec, make_codec
from batchzip.codecs.brotli import Brotli
from batchzip.codecs.deflate import Deflate
from batchzip.codecs.lz4 import Lz4
from batchzip.codecs.lz4hc import Lz4hc
from batchzip.codecs.shuffled import Shuffled
from batchzip.codecs.snappy import Snappy
from batchzip.codecs.verified import Verified
from batchzip.codecs.zstd import Zstd
from batchzip.testing.plain import make_layered_codec

if TYPE_CHECKING:
    from collections.abc import Iterator

CODECS = [
    Zstd(),
    *(Zstd(level) for level in (-131072, -1, 1, 22)),
    Lz4(),
    Lz4(acceleration=17),
    Lz4(acceleration=65537),
    Lz4(high_compression=1),
    Lz4(high_compression=12),
    *(Lz4hc(level) for level in (1, 9, 12)),
    *(Deflate(level) for level in (0, 1, 2, 3)),
    *(Brotli(level) for level in (2, 5, 11)),
    Snappy(),
    *(Shuffled(Lz4(), element_size) for element_size in (2, 4, 8)),
    Verified(Shuffled(Zstd(), 4)),
    make_layered_codec(),
]


# Registry and parameters


def test_registered_codecs_bear_the_name_they_are_registered_under() -> None:
    for name in batchzip.algorithms():
        codec = make_codec(name)
        assert isinstance(codec, Codec)
        assert codec.name == name


def test_an_error_about_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownAlgorithm, match=r"unknown algorithm 'lzo'; known: .*lz4.*zstd"):
        make_codec("lzo")
    with pytest.raises(LookupError):
        make_codec("")


@pytest.mark.parametrize(
    ("algorithm", "parameters", "words"),
    [
        ("zstd", {"level": 23}, "zstd level must be an integer in -131072…22, not 23"),
        ("zstd", {"level": -131073}, "not -131073"),
        ("zstd", {"level": 1.0}, "not 1.0"),
        ("zstd", {"level": "1"}, "not '1'"),
        ("zstd", {"level": None}, "not None"),
        ("zstd", {"level": True}, "not True"),
        (
            "zstd",
            {"acceleration": 1},
            "zstd has no parameter 'acceleration'; it has: level, dictionary",
        ),
        ("lz4", {"acceleration": 0}, "lz4 acceleration must be an integer in 1…65537, not 0"),
        ("lz4", {"acceleration": 65538}, "not 65538"),
        ("lz4", {"acceleration": 1.5}, "not 1.5"),
        ("lz4", {"acceleration": True}, "not True"),
        ("lz4", {"high_compression": 0}, "lz4 high_compression must be an integer in 1…12, not 0"),
        ("lz4", {"high_compression": 13}, "not 13"),
        ("lz4", {"high_compression": True}, "not True"),
        ("lz4", {"acceleration": 2, "high_compression": 9}, "not both"),
        ("lz4hc", {"level": 0}, "lz4hc level must be an integer in 1…12, not 0"),
        ("lz4hc", {"level": 13}, "not 13"),
        ("lz4hc", {"level": True}, "not True"),
        ("deflate", {"level": -1}, "deflate level must be an integer in 0…3, not -1"),
        ("deflate", {"level": 4}, "not 4"),
        ("deflate", {"level": 1.0}, "not 1.0"),
        ("brotli", {"level": 1}, "brotli level must be an integer in 2…11, not 1"),
        ("brotli", {"level": 12}, "not 12"),
        ("brotli", {"level": None}, "not None"),
        ("snappy", {"level": 1}, "snappy has no parameter 'level'; it has: none"),
        ("lz4", {"level": 1}, "no parameter 'level'; it has: acceleration, high_compression"),
    ],
)
def test_an_error_about_a_parameter_says_what_is_allowed(
    algorithm: str, parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadArgument) as refusal:
        make_codec(algorithm, **parameters)
    assert words in str(refusal.value)


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_every_setting_gives_pages_back_and_survives_the_way_to_a_worker(codec: Codec) -> None:
    again = pickle.loads(pickle.dumps(codec))
    assert again == codec
    assert hash(again) == hash(codec)
    noise = np.random.default_rng(1).bytes(4096)
    for page in (COUNTED, WORD, bytes(4096), noise):
        output = codec.compressor(4096)(page)
        restore = again.decompressor(4096)
        assert restore(output) == page
        others = again.compressor(4096)(page), codec.compressor(4096)(memoryview(page))
        assert [restore(other) for other in others] == [page, page]
        assert others == (output, output) or not codec.deterministic


def test_wrappers_are_as_deterministic_as_their_codec() -> None:
    for codec in (Deflate(), Zstd()):
        expected = isinstance(codec, Zstd)
        assert codec.deterministic is expected
        assert Verified(Shuffled(codec, 2)).deterministic is expected


def test_a_codec_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Zstd().level = 2  # type: ignore[misc]


# Known bytes: what was stored in a format is readable for good

LZ4_WORD = bytes.fromhex("4f706167650400fffffffffffffffffffffffffffffff3506570616765")


@pytest.fixture(params=batchzip.algorithms())
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(request.param, backend="sequential") as engine:
        yield engine


@pytest.fixture
def zstd() -> Iterator[Engine]:
    with Engine("zstd", backend="sequential") as engine:
        yield engine


@pytest.fixture
def lz4() -> Iterator[Engine]:
    with Engine("lz4", backend="sequential") as engine:
        yield engine


def test_known_blocks_and_frames_are_read(lz4: Engine, zstd: Engine) -> None:
    assert (len(LZ4_WORD), len(ZSTD_WORD)) == (29, 21)
    assert lz4.decompress_page(LZ4_WORD) == WORD
    assert zstd.decompress_page(ZSTD_WORD) == WORD


def test_other_zstd_tools_read_what_is_written(zstd: Engine) -> None:
    frame = zstd.compress_page(COUNTED)
    assert zstandard.frame_content_size(frame) == 4096
    assert zstandard.ZstdDecompressor().decompress(frame) == COUNTED


# zstd frames made by hand


@pytest.mark.parametrize("what", HARMFUL)
def test_a_harmful_zstd_source_is_refused_alone_and_among_others(zstd: Engine, what: str) -> None:
    with pytest.raises(PageError, match="Bad message"):
        zstd.decompress_page(HARMFUL[what])
    batch = DecompressBatch([ZSTD_WORD, HARMFUL[what], ZSTD_WORD])
    zstd.decompress(batch)
    assert batch.errors.tolist() == [0, -errno.EBADMSG, 0]


@pytest.mark.parametrize("window", [0x60, 0x70, 0x90, 0xA8])
def test_a_large_window_around_a_page_is_read_or_refused(zstd: Engine, window: int) -> None:
    batch = DecompressBatch([frame(raw_block(COUNTED), window=window)])
    zstd.decompress(batch)
    code = int(batch.errors[0])
    assert code in (0, -errno.EBADMSG)
    assert code or bytes(batch.pages[0]) == COUNTED


PEAK = """
import sys
sys.path.insert(0, sys.argv[1])
from support.harmful import COUNTED, HARMFUL, OTHERS_HARMFUL, frame, raw_block
from batchzip import Engine, PageError

def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

sources = [*HARMFUL.values(), *(frame(raw_block(COUNTED), window=w) for w in range(256))]
others = [source for each in OTHERS_HARMFUL.values() for source in each.values()]
blocks = [b"\\x1f\\x00\\x01\\x00" + b"\\xff" * size for size in (10, 8000, 1 << 20)]
names = ("zstd", "lz4", "lz4hc", "deflate", "brotli", "snappy")
engines = [Engine(name, backend="sequential") for name in names]
for engine in engines:
    engine.decompress_page(engine.compress_page(COUNTED))
before = peak_kib()
for engine in engines:
    for source in sources + blocks + others:
        try:
            engine.decompress_page(source)
        except PageError:
            pass
print(peak_kib() - before)
"""


@pytest.mark.slow
def test_no_input_makes_a_decompress_hold_more_than_a_page_and_a_constant() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, TESTS],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) < 4096, "KiB"


# lz4 blocks carry nothing that tells them from noise


def test_random_bytes_are_a_page_or_undecodable_and_never_a_crash(engine: Engine) -> None:
    rng = np.random.default_rng(2)
    srcs = [rng.bytes(int(size)) for size in rng.integers(0, 9000, 3000)]
    batch = DecompressBatch(srcs)
    engine.decompress(batch)
    assert set(batch.errors.tolist()) <= {0, -errno.EBADMSG}
    assert batch.dlens.tolist() == [0 if code else 4096 for code in batch.errors.tolist()]


@pytest.mark.slow
def test_damaged_pages_are_a_page_or_undecodable_and_never_a_crash(engine: Engine) -> None:
    rng = np.random.default_rng(3)
    good = engine.compress_page(rng.integers(0, 9, 4096, np.uint8).tobytes())
    srcs = []
    for _ in range(3000):
        src = bytearray(good[: rng.integers(1, len(good) + 1)])
        for at in rng.integers(0, len(src), rng.integers(0, 9)):
            src[at] = rng.integers(0, 256)
        srcs.append(bytes(src))
    batch = DecompressBatch(srcs)
    engine.decompress(batch)
    assert set(batch.errors.tolist()) <= {0, -errno.EBADMSG}


# Threads


@pytest.mark.slow
def test_threads_that_use_one_codec_at_once_keep_apart(engine: Engine) -> None:
    failures: list[str] = []
    together = threading.Barrier(4)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        together.wait(60)
        for _ in range(300):
            page = rng.integers(0, 6, 4096, np.uint8).tobytes()
            if engine.decompress_page(engine.compress_page(page)) != page:
                failures.append("another page came back")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
