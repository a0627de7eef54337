"""Run a target of the coverage-guided fuzzer: libFuzzer, by atheris, over a core with counters.

    .ci/with_core.sh fuzz tests/fuzz/run.py restore --seconds 60
    .ci/with_core.sh fuzz tests/fuzz/run.py restore --input build/fuzz/restore/crash-…

The core is built by clang with AddressSanitizer. The compression libraries are those of the wheels:
they have no counters, and the sanitizer sees of them only what they copy and allocate. What an
input must hold is in the target's docstring. The corpus in --corpus grows from run to run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import atheris

# The socket's protocol is in Python, so there Python has counters. They make other targets slow.
IN_PYTHON = {"requests", "replies"}
with (
    atheris.instrument_imports(include=["batchzip"])
    if IN_PYTHON & set(sys.argv)
    else contextlib.nullcontext()
):
    from fuzz import targets

if TYPE_CHECKING:
    from support.fuzzing import Target

ROOT = Path(__file__).resolve().parents[2]


def fuzz(target: Target, options: argparse.Namespace) -> None:
    """Run libFuzzer, which ends the process."""
    corpus: Path = options.corpus / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = [
        f"-artifact_prefix={corpus}/",
        f"-max_len={options.longest}",
        f"-timeout={targets.HANG_S}",
        f"-rss_limit_mb={targets.MOST_MIB}",
        "-print_final_stats=1",
        f"-seed={options.seed}",
        f"-runs={options.runs}",
        f"-max_total_time={options.seconds}",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], target)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", choices=targets.TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="0: no limit")
    parser.add_argument("--runs", type=int, default=-1, help="executions; -1: no limit")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)) or 1)
    parser.add_argument("--corpus", type=Path, default=ROOT / "build/fuzz")
    parser.add_argument("--longest", type=int, default=None, help="bytes of an input")
    parser.add_argument("--input", type=Path, help="run this input once instead")
    options = parser.parse_args()
    target = targets.TARGETS[options.target]()
    if options.input:
        target(options.input.read_bytes())
        target.close()
        return
    if options.longest is None:
        options.longest = targets.LONGEST[options.target]
    fuzz(target, options)


if __name__ == "__main__":
    main()
