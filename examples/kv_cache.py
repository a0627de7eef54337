"""Store blocks of a KV cache, in bf16 and fp16, with and without shuffling.

A block holds the keys and values of 16 tokens in one layer, 64 KiB, and is one page of the store.
The numbers are synthetic, with the known properties of such caches: each channel has a scale of its
own, a few channels have a mean far from 0, and consecutive tokens are similar. The script cannot
predict the ratio for the blocks of a real model.

Half of the bits of such a number are noise to a codec. Exponents repeat, and more so within a
channel than within a token. Therefore blocks are also stored channel by channel, as a transposed
view that store_array copies. `shuffle="f2"` declares that pages are floats: zstd then compresses
their exponents separately from the noise.

Run it with `python examples/kv_cache.py`. It takes a few seconds. Speeds are medians of interleaved
rounds.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

import batchzip

LAYERS, BLOCKS, HEADS, TOKENS, WIDTH = 2, 24, 8, 16, 128
ROUNDS = 3


def kv_blocks() -> np.ndarray:
    """Make blocks of (layers, blocks, keys and values, heads, tokens, width), float32."""
    rng = np.random.default_rng(1)
    shape = LAYERS, 2, HEADS, BLOCKS * TOKENS, WIDTH
    channels = LAYERS, 2, HEADS, 1, WIDTH
    scale = rng.lognormal(-1, 0.8, channels)
    mean = rng.normal(0, 2, channels) * (rng.random(channels) < 0.1)
    steps = rng.normal(size=shape)
    for token in range(1, shape[3]):  # a correlation of 0.8 between consecutive tokens
        steps[..., token, :] = 0.8 * steps[..., token - 1, :] + 0.6 * steps[..., token, :]
    flat = (mean + scale * steps).astype(np.float32)
    return flat.reshape(LAYERS, 2, HEADS, BLOCKS, TOKENS, WIDTH).transpose(0, 3, 1, 2, 4, 5)


def as_bf16(numbers: np.ndarray) -> np.ndarray:
    """Round to bfloat16, the upper half of a float32. Return the bits: NumPy has no such type."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def seconds(work: Callable[[np.ndarray], None], blocks: np.ndarray) -> float:
    """Time one call."""
    began = time.perf_counter()
    work(blocks)
    return time.perf_counter() - began


class Way:
    """A codec and an order of the numbers in a block, with a store of its own."""

    def __init__(self, algorithm: str, shuffle: int | str | None, *, channels: bool) -> None:
        order = "channel by channel" if channels else "token by token"
        self.name = f"{order:18} {algorithm:4} {f'{shuffle=}' if shuffle else ''}"
        self.channels = channels
        self.engine = batchzip.Engine(algorithm, shuffle=shuffle, page_size=1 << 16)
        self.store = batchzip.SwapStore(self.engine)
        self.tickets: list[batchzip.StoredArray] = []
        self.seconds: list[tuple[float, float]] = []

    def turn(self, block: np.ndarray) -> np.ndarray:
        """Return a view of a block in this order, or back in the original order."""
        return block.swapaxes(-1, -2) if self.channels else block

    def fill(self, blocks: np.ndarray) -> None:
        """Store all blocks."""
        self.tickets = [
            batchzip.store_array(self.store, index, self.turn(block))
            for index, block in enumerate(blocks)
        ]

    def load(self, out: np.ndarray) -> None:
        """Load all blocks."""
        for ticket, room in zip(self.tickets, out, strict=True):
            room[...] = self.turn(batchzip.load_array(self.store, ticket))


def measure(blocks: np.ndarray) -> None:
    """Store and load all blocks in each way, and print ratios and speeds."""
    ways = [
        Way(algorithm, shuffle, channels=channels)
        for channels in (False, True)
        for algorithm, shuffle in (("lz4", 2), ("zstd", None), ("zstd", 2), ("zstd", "f2"))
    ]
    for _ in range(ROUNDS):
        for way in ways:
            out = np.empty_like(blocks)
            way.seconds.append((seconds(way.fill, blocks), seconds(way.load, out)))
            assert np.array_equal(out, blocks)
    for way in ways:
        store_s, load_s = map(statistics.median, zip(*way.seconds, strict=True))
        ratio, mb = blocks.nbytes / way.store.stored_bytes, blocks.nbytes / 1e6
        print(
            f"  {way.name:37} {ratio:5.2f} times smaller"
            f"  store {mb / store_s:4.0f} MB/s  load {mb / load_s:4.0f} MB/s"
        )
        way.store.close()
        way.engine.close()


made = kv_blocks()
for kind, these in (("bf16", as_bf16(made)), ("fp16", np.ascontiguousarray(made, np.float16))):
    flat_blocks = these.reshape(-1, *these.shape[2:])
    print(f"{kind}: {len(flat_blocks)} blocks of {flat_blocks[0].nbytes >> 10} KiB")
    measure(flat_blocks)
