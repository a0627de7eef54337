"""Values to be advised on, and advice that is quick."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from typing import Any

from batchzip.advice.holder import Holder
from batchzip.advice.weighing import Held


def record(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    return {
        "id": number,
        "name": f"user-{rng.randrange(10**6)}",
        "city": rng.choice(["Lisbon", "Osaka", "Quito"]),
        "balances": [round(rng.gauss(1000, 300), 2) for _ in range(60)],
    }


RECORDS = [record(number) for number in range(8000)]

LINES = [json.dumps(each).encode() for each in RECORDS]


def dicts_of(serializer: str) -> list[Holder]:
    return [Holder("dict", serializer), Holder("lz4.block", serializer)]


def run_code(code: str, value: object) -> None:
    """Paste the code in a fresh interpreter, and put a value in and get it."""
    script = f"""
import sys, pickle, numpy
{code}
value = pickle.load(sys.stdin.buffer)
if "put" not in globals():
    put, get = cache.__setitem__, cache.__getitem__
for number in range(3):
    put(str(number), value)
assert len(cache) == 3 and numpy.array_equal(get("2"), value)
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        input=pickle.dumps(value),
        timeout=60,
        check=True,
    )


def held(name: str, size: int, cost: float = 1.0, *, of: int = 100 << 20) -> Held:
    kinds = {each: Holder(each) for each in ("dict", "parsed", "pickles", "lz4.block")}
    holder = kinds.get(name, Holder("mapping", algorithm=name))
    return Held(holder, size << 20, size << 20, cost, cost, (size << 20) / of)
