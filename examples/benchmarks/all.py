"""Measure everything: run all benchmarks in order, each in full, and keep their results.

    python examples/benchmarks/all.py [--to build/results] [--only swap,peers] [--short]

A result that is in the folder is not measured again, so that an interrupted run goes on where it
ended. To measure one again, remove its file. Use a quiet machine. As root, zram and the kernel's
swap are measured, too. The results that the documentation quotes are in examples/benchmarks/results
(`16-cores` in it is of another machine); copy them there, and run render.py.

--short uses few pages and one round, to see that everything can be measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from batchzip.bench.figure import load
from batchzip.bench.script import chosen

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BATCHZIP = Path(sys.executable).with_name("batchzip")

HARD = ("random", "zeros", "alternating")
_HARD_PEERS = "--pages 1024 --rounds 5 --batches 8,256 --algorithms lz4,zstd:1"


@dataclass(frozen=True)
class Run:
    """The options of a benchmark, in full and in short."""

    full: str = ""
    short: str = ""


RUNS = {
    "bench": Run("--rounds 7 --pages 1024", "--rounds 1 --pages 512 --algorithms lz4"),
    "compress": Run("", "--rounds 1 --pages 512 --batches 8,256"),
    "peers": Run("", "--rounds 1 --pages 512 --batches 8,256 --algorithms lz4,zstd:1"),
    "swap": Run("", "--rounds 1 --pages 1024 --algorithms lz4"),
    **{
        f"peers-{kind}": Run(
            f"--workload {kind} {_HARD_PEERS}",
            f"--workload {kind} --rounds 1 --pages 256 --batches 8 --algorithms lz4",
        )
        for kind in HARD
    },
    **{
        f"swap-{kind}": Run(
            f"--workload {kind} --pages 8192 --algorithms lz4",
            f"--workload {kind} --rounds 1 --pages 512 --algorithms lz4",
        )
        for kind in HARD
    },
    "usemem": Run("", "--rounds 1 --mib 1 --clients 4 --algorithms lz4"),
    "usemem-compile": Run("", "--rounds 1 --mib 1 --clients 4 --algorithms lz4"),
    "growth": Run("--largest 10000000", "--rounds 1 --largest 10000"),
    **{
        f"scaling-{batch}": Run(
            f"--batch {batch}",
            f"--batch {min(batch, 256)} --rounds 1 --pages 256 --algorithms lz4",
        )
        for batch in (8, 64, 256, 1024)
    },
    "pool": Run("", "--rounds 1 --pages 512 --largest 10000"),
    "store": Run("", "--rounds 1 --pages 512 --algorithms lz4"),
    "store-clients-16": Run(
        "--parts clients --threads 16 --algorithms lz4",
        "--parts clients --threads 16 --rounds 1 --pages 512 --algorithms lz4",
    ),
    "steps": Run("", "--rounds 1 --pages 512"),
    "values": Run("", "--rounds 1 --values 500 --timed 128"),
    "floats": Run("", "--rounds 1"),
    "paged": Run("", "--rounds 1 --mib 48 --workload-mib 48 --works touches,group-by"),
    "fault_threads": Run("", "--rounds 1 --mib 48 --fault-threads 1,2 --readers 1,4"),
    "cluster-latency": Run("--parts latency", "--parts latency --rounds 1 --seconds 0.2"),
    "cluster-throughput": Run(
        "--parts throughput",
        "--parts throughput --rounds 1 --seconds 0.2 --workers 2 --clients 1",
    ),
    "cluster-cases": Run("--parts cases", "--parts cases --cases retire_workers"),
    "worker_data-persist": Run(
        "--works persist-frame,persist-array,persist-noise --rounds 2 --limit-mib 512 --mib 768",
        "--works persist-frame --rounds 1 --mib 64 --data dask,batchzip",
    ),
    "worker_data-move": Run(
        "--works shuffle-tasks,shuffle-p2p,rechunk-tasks --data dask,dask-plain,batchzip "
        "--rounds 2 --limit-mib 512 --mib 384 --timeout-s 60",
        "--works rechunk-tasks --rounds 1 --mib 64 --data dask,batchzip",
    ),
    "worker_data-256": Run(
        "--works persist-array,persist-noise --data dask,batchzip "
        "--rounds 2 --limit-mib 256 --mib 416 --timeout-s 60",
        "--works persist-array --rounds 1 --mib 64 --data batchzip",
    ),
    "dask_backlog": Run("", "--rounds 1 --batches 500"),
    "dask_hosts": Run("", "--hosts 1 --algorithms lz4 --batches 16 --seconds 0.5 --cpu 50"),
}
"""By result. The part of a name before a hyphen is the script; `bench` is of the command."""

NEED_ROOT = ("dask_hosts",)

COMPILED = "records.c"
"""What the compiler of usemem-compile compiles: the largest file that Cython makes of the core."""

MODELS = (
    ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"),
    ("silero_vad", "data/silero_vad_16k.safetensors"),
)
"""Weights for floats.py, if these packages are installed."""


def compiled() -> Path | None:
    """Return the file to compile, which building the core has left, or None."""
    tag = sys.implementation.cache_tag
    return next((ROOT / "build/core/release").glob(f"{tag}-*/{COMPILED}"), None)


def missing(name: str) -> str | None:
    """Return what a benchmark needs and is not here, or None."""
    if name in NEED_ROOT and os.geteuid():
        return "root"
    if name.endswith("-compile") and compiled() is None:
        return f"{COMPILED}, which hatch_build.py makes, and a C compiler"
    return None


def command_of(name: str, *, short: bool) -> list[str]:
    """Return the command that measures a result, without the file to write."""
    run = RUNS[name]
    words = (run.short if short else run.full).split()
    if name.endswith("-compile") and (source := compiled()) is not None:
        words += ["--compile", f"-O2 -Ibatchzip/core {source.relative_to(ROOT)}"]
    if name == "floats" and not short:
        for package, path in MODELS:
            spec = importlib.util.find_spec(package)
            if spec is not None and spec.origin is not None:
                words.append(os.path.relpath(Path(spec.origin).parent / path))
    script = name.partition("-")[0]
    if script == "bench":
        return [str(BATCHZIP), "bench", *words]
    return [sys.executable, str(HERE / f"{script}.py"), *words]


def main() -> int:
    """Run from the command line. Return 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=ROOT / "build/results", metavar="DIR")
    parser.add_argument("--only", type=chosen(RUNS), default=list(RUNS), metavar="LIST")
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.only:
        path = options.to / f"{name}.json"
        if path.exists():
            print(f"{name}: there already", flush=True)
            continue
        if needed := missing(name):
            print(f"{name}: needs {needed}", flush=True)
            continue
        began = time.monotonic()
        log = options.to / f"{name}.log"
        with log.open("w", encoding="utf-8") as out:
            # Only a whole result gets its name.
            part = path.with_suffix(".part")
            command = [*command_of(name, short=options.short), "--json", str(part)]
            done = subprocess.run(command, check=False, stdout=out, stderr=out, cwd=ROOT)
        took = f"{time.monotonic() - began:.0f} s"
        if done.returncode:
            failed.append(name)
            print(f"{name}: failed after {took}, see {log}", flush=True)
        else:
            result = load(part)
            part.rename(path)
            print(f"{name}: {len(result.figures)} figures, {took}", flush=True)
    shown = options.to / "batchzip-swap.txt"
    if not shown.exists():
        size = ["--workload-mib", "8"] if options.short else []
        printed = subprocess.run([BATCHZIP, "swap", *size], stdout=subprocess.PIPE, check=True)
        shown.write_bytes(printed.stdout)
        print("batchzip-swap.txt: what the README shows of `batchzip swap`")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
