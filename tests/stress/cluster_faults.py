"""A long run with faults: clients use a sharded store, and every few seconds something fails.

    python tests/stress/cluster_faults.py [--minutes 20] [--every 10] [--workers 3] [--clients 2]
                                          [--replicas 1] [--seed 1] [--without "FAULT,…"]
                                          [--folder FOLDER]

Print how many pages were stored, lost and named, lost and unnamed (0) and wrong (0), and the
longest calls. The exit code tells whether all is well. Logs of clients, workers and scheduler stay
in --folder.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.cluster.run import FAULTS, Run


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between faults")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without", default="", help="faults that do not happen, with commas")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if fault not in options.without.split(",")]
    rng = random.Random(options.seed)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="cluster-faults-"))
    folder.mkdir(exist_ok=True)
    tell(f"{options.workers} workers, {options.clients} clients, logs in {folder}")
    made = {"replicas": options.replicas, "engine": {"algorithm": "lz4"}, "timeout_s": 30.0}
    begun = time.monotonic()
    with Run(
        folder,
        workers=options.workers,
        clients=options.clients,
        seed=options.seed,
        pause_s=0.02,
        options=made,
    ) as run:
        run.begin()
        due: list[str] = []
        while (passed := time.monotonic() - begun) < 60 * options.minutes:
            due = due or rng.sample(faults, len(faults))  # each as often as any other
            fault = due.pop()
            tell(f"{passed:6.0f} s  {fault}; {len(run.machines.processes())} workers are there")
            run.inflict(fault)
            run.go_on(options.every)
        verdict = run.end()
    tell(str(verdict))
    return bool(verdict.wrong or verdict.unnamed)


if __name__ == "__main__":
    sys.exit(main())
