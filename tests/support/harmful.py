"""Sources made to harm whoever decompresses them, for zstd and the other codecs."""

from __future__ import annotations

import zlib

import brotli
import cramjam
import zstandard

COUNTED = bytes(range(256)) * 16
WORD = b"page" * 1024
ZSTD_WORD = bytes.fromhex("28b52ffd60000f5d000020706167650100f9df7744")
HUGE = bytes(50 << 20)


def raw_deflate(data: bytes, level: int = 9) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, -15)
    return made.compress(data) + made.flush()


# zstd frames made by hand: RFC 8878, section 3.1.1

MAGIC = bytes.fromhex("28b52ffd")


def raw_block(content: bytes, *, last: bool = True) -> bytes:
    return (last | len(content) << 3).to_bytes(3, "little") + content


def repeated_block(byte: int, size: int, *, last: bool) -> bytes:
    return (last | 1 << 1 | size << 3).to_bytes(3, "little") + bytes([byte])


def frame(content: bytes, *, window: int | None, declared: int | None = 4096) -> bytes:
    """A frame with a window descriptor byte, or of one segment; declaring its size or not."""
    single = window is None
    size = b"" if declared is None else declared.to_bytes(8, "little")
    descriptor = (0 if declared is None else 3 << 6) | single << 5
    return MAGIC + bytes([descriptor]) + (b"" if single else bytes([window or 0])) + size + content


BOMB = zstandard.ZstdCompressor().compress(bytes(50 << 20))
MEBIBYTES = b"".join(repeated_block(0, 1 << 17, last=at == 399) for at in range(400))

HARMFUL = {
    "declares 50 MiB and has them": BOMB,
    "declares 2^62 bytes": frame(raw_block(COUNTED), window=None, declared=1 << 62),
    "declares 2^64 - 1 bytes": frame(raw_block(COUNTED), window=None, declared=2**64 - 1),
    "declares a page and has 50 MiB": frame(MEBIBYTES, window=0x70),
    "declares a page and has less": frame(raw_block(COUNTED[:-1]), window=None),
    "declares a page and has more": frame(raw_block(COUNTED + b"x"), window=None),
    "declares no size": frame(raw_block(COUNTED), window=0x18, declared=None),
    "declares no size and has 50 MiB": frame(MEBIBYTES, window=0x70, declared=None),
    "has no size and the hugest window": frame(raw_block(COUNTED), window=0xFF, declared=None),
    "has the hugest window": frame(raw_block(COUNTED), window=0xFF),
    "is two frames": ZSTD_WORD * 2,
    "is two frames of half a page": zstandard.ZstdCompressor().compress(bytes(2048)) * 2,
    "is followed by garbage": ZSTD_WORD + b"x",
    "is followed by a skippable frame": ZSTD_WORD + bytes.fromhex("502a4d1800000000"),
    "is behind a skippable frame": bytes.fromhex("502a4d1800000000") + ZSTD_WORD,
    "is a skippable frame": bytes.fromhex("502a4d18ffffffff"),
    "is a header only": ZSTD_WORD[:6],
    "is truncated": ZSTD_WORD[:-1],
    "is the magic number": MAGIC,
    "is not there": b"",
}

OTHERS_HARMFUL = {
    "deflate": {
        "has 50 MiB": raw_deflate(HUGE),
        "has 50 MiB, stored": raw_deflate(HUGE, 0),
        "has a byte more": raw_deflate(COUNTED + b"x"),
        "has a byte less": raw_deflate(COUNTED[:-1]),
        "does not end": raw_deflate(COUNTED)[:-2],
        "goes on behind its end": raw_deflate(COUNTED) + b"x",
        "is two streams": raw_deflate(COUNTED) * 2,
        "is two streams of half a page": raw_deflate(COUNTED[:2048]) * 2,
        "has a header": zlib.compress(COUNTED),
        "looks back before its begin": bytes.fromhex("4b040000"),
        "is not there": b"",
    },
    "snappy": {
        "declares 50 MiB and has them": bytes(cramjam.snappy.compress_raw(HUGE)),
        "declares a page and has 50 MiB": b"\x80\x20"
        + bytes(cramjam.snappy.compress_raw(HUGE))[4:],
        "declares 2^32 - 1 bytes": b"\xff\xff\xff\xff\x0f" + bytes(99),
        "declares 2^64 bytes": b"\xff" * 10 + bytes(99),
        "declares a byte more": bytes(cramjam.snappy.compress_raw(COUNTED + b"x")),
        "declares a byte less": bytes(cramjam.snappy.compress_raw(COUNTED[:-1])),
        "declares a page and has less": bytes(cramjam.snappy.compress_raw(COUNTED))[:-1],
        "is framed": bytes(cramjam.snappy.compress(COUNTED)),
        "is not there": b"",
    },
    "brotli": {
        "has 50 MiB": brotli.compress(HUGE, quality=5, lgwin=16),
        "has 50 MiB and their window": brotli.compress(HUGE, quality=5, lgwin=24),
        "has another window": brotli.compress(COUNTED, quality=5, lgwin=22),
        "has a byte more": brotli.compress(COUNTED + b"x", quality=5, lgwin=16),
        "has a byte less": brotli.compress(COUNTED[:-1], quality=5, lgwin=16),
        "does not end": brotli.compress(COUNTED, quality=5, lgwin=16)[:-1],
        "goes on behind its end": brotli.compress(COUNTED, quality=5, lgwin=16) + b"x",
        "is not there": b"",
    },
}
