r"""Measure the ratios of floating-point pages, by kind of number, page size and engine.

    python examples/benchmarks/floats.py [FILE ...] [--json FILE]

A FILE contains the weights of a model: .onnx (needs the package onnx) or .safetensors. Its float32
weights are measured unchanged, and rounded to bfloat16 and to float16, as models are published and
kept in memory. Normally distributed numbers are always measured. Two packages ship weights:

    pip install onnx && pip install --no-deps rapidocr-onnxruntime silero-vad
    cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    … rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx \
        silero_vad/data/silero_vad_16k.safetensors

`bound` is the ratio of an ideal code of single bytes, with exponents and mantissas separate. Data
with repetitions, or pages of different kinds, can exceed it. MB/s are for one core and pages of
64 KiB. They are medians of rounds in which all engines take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import batchzip
from batchzip.bench.figure import describe_machine
from batchzip.codecs.shuffled import shuffle_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE_SIZES = 4 << 10, 16 << 10, 64 << 10
MOST_BYTES = 4 << 20
"""Maximum bytes per kind of number."""

ROUNDS = 3


def normal() -> np.ndarray[Any, Any]:
    """Make normally distributed float32 numbers."""
    return np.random.default_rng(1).normal(0, 0.02, MOST_BYTES // 4).astype(np.float32)


def weights_of(path: Path) -> np.ndarray[Any, Any]:
    """Return the float32 weights of a model, concatenated. Raise SystemExit if it has none."""
    tensors = list(_of_onnx(path) if path.suffix == ".onnx" else _of_safetensors(path))
    if not tensors:
        raise SystemExit(f"{path} has no float32 weights")
    return np.concatenate(tensors)


def _of_onnx(path: Path) -> Iterator[np.ndarray[Any, Any]]:
    import onnx  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - optional

    graph = onnx.load(path).graph
    constants = (node.attribute[0].t for node in graph.node if node.op_type == "Constant")
    for tensor in (*graph.initializer, *constants):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield onnx.numpy_helper.to_array(tensor).reshape(-1)


def _of_safetensors(path: Path) -> Iterator[np.ndarray[Any, Any]]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, tensor in json.loads(data[8:start]).items():
        if name != "__metadata__" and tensor["dtype"] == "F32":
            begin, end = tensor["data_offsets"]
            yield np.frombuffer(data[start + begin : start + end], np.float32)


def kinds_of(numbers: np.ndarray[Any, Any]) -> Iterator[tuple[str, str, bytes]]:
    """Yield the numbers as each kind: its name, its shuffle, and the bytes."""
    bits = numbers.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    yield "bf16", "f2", rounded.astype(np.uint16)[: MOST_BYTES // 2].tobytes()
    with np.errstate(over="ignore"):  # a few numbers exceed float16's range
        halves = numbers.astype(np.float16)
    yield "fp16", "f2", halves[: MOST_BYTES // 2].tobytes()
    yield "fp32", "f4", numbers[: MOST_BYTES // 4].tobytes()


def bound(data: bytes, shuffle: str) -> float:
    """Return the ratio of an ideal code of each plane's bytes."""
    planes = np.frombuffer(shuffle_bytes(data, shuffle), np.uint8).reshape(int(shuffle[1]), -1)
    bits = 0.0
    for plane in planes:
        shares = np.bincount(plane) / plane.size
        shares = shares[shares > 0]
        bits -= float((shares * np.log2(shares)).sum())
    return 8 * len(planes) / bits


def ratio_of(data: bytes, size: int, **options: Any) -> float:
    """Return the ratio of whole pages. A page that does not shrink counts with its full size."""
    pages = np.frombuffer(data, np.uint8)[: len(data) // size * size].reshape(-1, size)
    with batchzip.Engine("zstd", backend="sequential", page_size=size, **options) as engine:
        batch = batchzip.CompressBatch(pages)
        engine.compress(batch)
        back = batchzip.DecompressBatch(batch.outputs(), page_size=size)
        engine.decompress(back)
        assert np.array_equal(back.pages, pages)
        return pages.nbytes / float(np.minimum(batch.dlens, size).sum())


def speeds_of(data: bytes, ways: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return the MB/s of compressing and restoring, by way."""
    size = PAGE_SIZES[-1]
    pages = np.frombuffer(data, np.uint8)[: len(data) // size * size].reshape(-1, size)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, options in ways.items():
            with batchzip.Engine("zstd", backend="sequential", page_size=size, **options) as engine:
                began = time.perf_counter()
                batch = batchzip.CompressBatch(pages)
                engine.compress(batch)
                between = time.perf_counter()
                engine.decompress(batchzip.DecompressBatch(batch.outputs(), page_size=size))
                taken[name].append((between - began, time.perf_counter() - between))
    return {
        name: (
            pages.nbytes / 1e6 / statistics.median(one[0] for one in each),
            pages.nbytes / 1e6 / statistics.median(one[1] for one in each),
        )
        for name, each in taken.items()
    }


def measure(source: str, numbers: np.ndarray[Any, Any]) -> Iterator[dict[str, Any]]:
    """Measure and print all kinds of a source's numbers. Yield the figures."""
    for kind, shuffle, data in kinds_of(numbers):
        ways: dict[str, dict[str, Any]] = {
            "plain": {"level": 1},
            f"shuffle={shuffle[1]}": {"level": 1, "shuffle": int(shuffle[1])},
            f'shuffle="{shuffle}"': {"level": 1, "shuffle": shuffle},
        }
        speeds = speeds_of(data, ways)
        best = bound(data, shuffle)
        print(f"{source}, {kind}: {len(data) >> 10} KiB, bound {best:.2f}")
        for name, options in ways.items():
            ratios = {size: ratio_of(data, size, **options) for size in PAGE_SIZES}
            told = "  ".join(f"{ratio:5.2f}" for ratio in ratios.values())
            fast, back = speeds[name]
            print(f"  {name:13} {told}   {fast:5.0f} MB/s  back {back:5.0f} MB/s")
            yield {
                "source": source,
                "kind": kind,
                "bound": best,
                "way": name,
                "ratios": ratios,
                "compress_mb_s": fast,
                "decompress_mb_s": back,
            }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    print(describe_machine()["processor"])
    print("times smaller in pages of 4, 16 and 64 KiB; zstd, level 1")
    sources = {"normal": normal(), **{path.name: weights_of(path) for path in options.files}}
    figures = [figure for name, numbers in sources.items() for figure in measure(name, numbers)]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
