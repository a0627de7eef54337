"""KV-cache blocks in compressed RAM: bf16 and fp16, with and without the bytes sorted by place.

A block holds keys and values of 16 tokens in one layer, as vLLM's do. The numbers are made up after what is
known of such caches: each channel of the keys has a mean and a scale of its own, a few are large, and
tokens that follow one another are alike. What your model's blocks gain, this script cannot say.

Run it with `python examples/kv_cache.py`; it takes a few seconds. Speeds are medians of interleaved rounds.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

import batchzip

LAYERS, BLOCKS, HEADS, TOKENS, WIDTH = 4, 24, 8, 16, 128
ROUNDS = 5


def kv_blocks() -> np.ndarray:
    """Make blocks of (layers, blocks, keys and values, heads, tokens, width), float32."""
    rng = np.random.default_rng(1)
    shape = LAYERS, 2, HEADS, BLOCKS * TOKENS, WIDTH
    channels = LAYERS, 2, HEADS, 1, WIDTH
    scale = rng.lognormal(-1, 0.8, channels)
    mean = rng.normal(0, 2, channels) * (rng.random(channels) < 0.1)
    steps = rng.normal(size=shape)
    for token in range(1, shape[3]):  # alike: correlation 0.8 from token to token
        steps[..., token, :] = 0.8 * steps[..., token - 1, :] + 0.6 * steps[..., token, :]
    flat = (mean + scale * steps).astype(np.float32)
    return flat.reshape(LAYERS, 2, HEADS, BLOCKS, TOKENS, WIDTH).transpose(0, 3, 1, 2, 4, 5)


def as_bf16(numbers: np.ndarray) -> np.ndarray:
    """Round to bfloat16, the upper half of a float32; its bits, as NumPy has no such type."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(blocks: np.ndarray) -> None:
    """Store and load all blocks in each way, and print what that takes."""
    ways = [(name, shuffle) for name in ("lz4", "zstd") for shuffle in (None, 2)]
    engines = [batchzip.Engine(name, shuffle=shuffle) for name, shuffle in ways]
    stores = [batchzip.SwapStore(engine) for engine in engines]
    for engine in engines:
        engine.wait_ready()
    pages = blocks[0, 0].nbytes // 4096
    flat = blocks.reshape(-1, *blocks.shape[2:])
    took: list[list[tuple[float, float]]] = [[] for _ in ways]

    def fill(store: batchzip.SwapStore) -> list[batchzip.StoredArray]:
        return [batchzip.store_array(store, n * pages, block) for n, block in enumerate(flat)]

    for _ in range(ROUNDS):
        for store, times in zip(stores, took, strict=True):
            tickets: list[batchzip.StoredArray] = []
            store_s = seconds(lambda s=store, t=tickets: t.extend(fill(s)))  # type: ignore[misc] # mypy cannot tell defaults
            out = np.empty_like(flat)
            load_s = seconds(
                lambda s=store, t=tickets, o=out: [  # type: ignore[misc] # as above
                    batchzip.load_array(s, ticket, room) for ticket, room in zip(t, o, strict=True)
                ]
            )
            assert np.array_equal(out, flat)
            times.append((store_s, load_s))
    for (name, shuffle), store, times in zip(ways, stores, took, strict=True):
        store_s, load_s = map(statistics.median, zip(*times, strict=True))
        ratio = flat.nbytes / store.stored_bytes
        print(
            f"  {name:4} {'shuffle=2' if shuffle else 'as it is':9}  {ratio:5.2f} times smaller"
            f"  store {flat.nbytes / store_s / 1e6:5.0f} MB/s  load {flat.nbytes / load_s / 1e6:5.0f} MB/s"
        )
    for closing in (*stores, *engines):
        closing.close()


made = kv_blocks()
for kind, these in (("bf16", as_bf16(made)), ("fp16", np.ascontiguousarray(made, np.float16))):
    print(f"{kind}: {these.nbytes / 1e6:.0f} MB in blocks of {these[0, 0].nbytes >> 10} KiB")
    measure(these)
