r"""Measure the ratios of floating-point pages, by kind of number, page size and engine.

    python examples/benchmarks/floats.py [FILE ...] [--rounds 3] [--json FILE | --show FILE]

A FILE contains the weights of a model: .onnx (needs the package onnx) or .safetensors. Its float32
weights are measured unchanged, and rounded to bfloat16 and to float16, as models are published and
kept in memory. Normally distributed numbers are always measured. Two packages ship weights:

    pip install onnx && pip install --no-deps rapidocr-onnxruntime silero-vad
    cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    … rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx \
        silero_vad/data/silero_vad_16k.safetensors

`ideal` is the ratio of an ideal code of single bytes, with exponents and mantissas separate. Data
with repetitions, or pages of different kinds, can exceed it. MB/s are for one core and pages of
64 KiB. They are medians of rounds in which all engines take turns.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import batchzip
from batchzip.bench.figure import Labels, Result
from batchzip.bench.rounds import in_turns
from batchzip.bench.script import Script, progress
from batchzip.codecs.shuffled import shuffle_bytes
from batchzip.terminal.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

PAGE_SIZES = 4 << 10, 16 << 10, 64 << 10
MOST_BYTES = 4 << 20
"""Maximum bytes per kind of number."""


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


def speeds_of(
    data: bytes, ways: dict[str, dict[str, Any]], rounds: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Return the ns per byte of compressing and of restoring in each round, by way."""
    size = PAGE_SIZES[-1]
    pages = np.frombuffer(data, np.uint8)[: len(data) // size * size].reshape(-1, size)
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for turn, name in in_turns(ways, rounds):
        options = {"backend": "sequential", "page_size": size, **ways[name]}
        with batchzip.Engine("zstd", **options) as engine:
            began = time.perf_counter()
            batch = batchzip.CompressBatch(pages)
            engine.compress(batch)
            between = time.perf_counter()
            engine.decompress(batchzip.DecompressBatch(batch.outputs(), page_size=size))
            ended = time.perf_counter()
        if turn:
            taken[name][0].append((between - began) / pages.nbytes * 1e9)
            taken[name][1].append((ended - between) / pages.nbytes * 1e9)
    return taken


def measure_numbers(result: Result, source: str, numbers: np.ndarray[Any, Any]) -> None:
    """Measure all kinds of a source's numbers."""
    for kind, shuffle, data in kinds_of(numbers):
        progress(f"{source}, {kind}: {len(data) >> 10} KiB")
        ways: dict[str, dict[str, Any]] = {
            "plain": {"level": 1},
            f"shuffle={shuffle[1]}": {"level": 1, "shuffle": int(shuffle[1])},
            f'shuffle="{shuffle}"': {"level": 1, "shuffle": shuffle},
        }
        labels: Labels = {"benchmark": "floats", "source": source, "kind": kind}
        result.add(labels, IDEAL, stored_in(0), [1 / bound(data, shuffle)])
        for name, options in ways.items():
            for size in PAGE_SIZES:
                result.add(labels, name, stored_in(size), [1 / ratio_of(data, size, **options)])
        for name, (there, back) in speeds_of(data, ways, result.settings["rounds"]).items():
            result.add(labels, name, COMPRESS, there)
            result.add(labels, name, RESTORE, back)


IDEAL = "ideal"
COMPRESS, RESTORE = "compress, ns per byte", "restore, ns per byte"


def stored_in(size: int) -> str:
    """Return the quantity of bytes stored per byte, in pages of a size, or without pages."""
    return f"stored ÷ size, {size >> 10} KiB" if size else "stored ÷ size"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--rounds", type=int, default=3)


def measure(options: argparse.Namespace) -> Result:
    """Measure with the given options."""
    result = Result({"algorithm": "zstd 1", "rounds": options.rounds}, {"floats": "plain"})
    sources = {"normal": normal(), **{path.name: weights_of(path) for path in options.files}}
    for name, numbers in sources.items():
        measure_numbers(result, name, numbers)
    return result


def tables(result: Result) -> Iterator[Table]:
    """Yield a table with a row per way of each kind of numbers."""
    table = Table("times smaller, in pages of 4, 16 and 64 KiB; MB/s in pages of 64 KiB")
    table.add_column("numbers")
    table.add_column("engine", left=True)
    for name in ("4 KiB", "16 KiB", "64 KiB", "ideal", "compress, MB/s", "restore, MB/s"):
        table.add_column(name)
    for source in result.names("source"):
        for kind in result.names("kind", source=source):
            of = {(one.contender, one.quantity): one for one in result.of(source=source, kind=kind)}
            best = 1 / of.pop((IDEAL, stored_in(0))).median
            for name in dict.fromkeys(name for name, _ in of):
                table.add_row(
                    f"{source}, {kind}",
                    name,
                    *(f"{1 / of[name, stored_in(size)].median:.2f}" for size in PAGE_SIZES),
                    f"{best:.2f}",
                    *(f"{1e3 / of[name, what].median:,.0f}" for what in (COMPRESS, RESTORE)),
                )
            table.add_section()
    yield table


SCRIPT = Script(__doc__, add_options, measure, tables)

if __name__ == "__main__":
    SCRIPT.main()
