"""Holders: the containers for values, each measured in a fresh process.

    weigh ─▶ read a few values ─▶ memory before ─▶ put each value, timed ─▶ memory after
          ─▶ get a few thousand values, timed ─▶ one line of JSON

The memory is that of the whole process. It includes objects, tables, and the allocators' rounding
and unreturned memory.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lz4.block
import numpy as np

from batchzip.advice.spool import read, read_keys
from batchzip.engine import Engine
from batchzip.errors import BatchzipError
from batchzip.mapping import CompressedMapping
from batchzip.store import SwapStore
from batchzip.system.interpreter import command_for

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

_PASSING = 64
"""Before memory is measured first, one value in 64, at most 64, is read: memory that reading
itself takes must not be counted."""

_MOST_GETS = 5000
_GET_S = 2.0
"""Maximum seconds for timing gets. The median is precise enough by then."""

_PR_SET_PDEATHSIG = 1

_READY = "batchzip weighed: "


@dataclass(frozen=True, slots=True)
class Holder:
    """A container for values: a dict, with or without serializing or compressing, or a mapping."""

    kind: str
    """
    dict       a dict of the values themselves
    parsed     a dict of the objects that the values contain as JSON
    pickles    a dict of pickles
    lz4.block  a dict of values compressed by lz4.block
    mapping    a CompressedMapping
    """
    serializer: str = "bytes"
    """The serializer of the values. "bytes" if they are bytes."""
    algorithm: str = ""
    level: int | None = None
    dictionary: bool = False

    @property
    def name(self) -> str:
        """The name of the container for people."""
        has_objects = self.serializer != "bytes"
        if self.kind != "mapping":
            return {
                "dict": "dict of objects" if has_objects else "dict",
                "parsed": "dict of objects",
                "pickles": "dict of pickles",
                "lz4.block": "dict of lz4.block",
            }[self.kind]
        words = [self.algorithm if self.level is None else f"{self.algorithm} {self.level}"]
        words += [self.serializer] * has_objects
        if self.dictionary:
            words.append("dictionary")
        return ", ".join(words)

    @property
    def code(self) -> str:
        """Python code that makes `cache`, and `put` and `get` if a dict needs them."""
        if self.kind in ("dict", "parsed"):
            return "cache = {}"
        if self.kind != "mapping":
            return self._dict_code()
        engine = [f'"{self.algorithm}"']
        engine += [f"{key}={value}" for key, value in self._parameters().items()]
        mapping = ["store"]
        mapping += [f'{key}="{value}"' for key, value in self._options().items()]
        return "\n".join(
            [
                "import batchzip",
                "",
                "engine = batchzip.Engine(",
                f"    {', '.join(engine)}",
                ")",
                "store = batchzip.SwapStore(engine)",
                "cache = batchzip.CompressedMapping(",
                *(f"    {argument}," for argument in mapping),
                ")",
            ]
        )

    def _dict_code(self) -> str:
        """Return the code of a dict of pickles, or of values compressed by lz4.block."""
        is_pickled, is_compressed = self.serializer != "bytes", self.kind == "lz4.block"
        lines = ["import lz4.block"] * is_compressed + ["import pickle"] * is_pickled
        lines += ["", "cache = {}", "", "def put(key, value):"]
        lines += ["    value = pickle.dumps(value)"] * is_pickled
        lines += ["    value = lz4.block.compress(value)"] * is_compressed
        lines += ["    cache[key] = value", "", "def get(key):", "    value = cache[key]"]
        lines += ["    value = lz4.block.decompress(value)"] * is_compressed
        lines += ["    value = pickle.loads(value)"] * is_pickled
        return "\n".join([*lines, "    return value"])

    def _parameters(self) -> dict[str, Any]:
        return {} if self.level is None else {"level": self.level}

    def _options(self) -> dict[str, Any]:
        options = {} if self.serializer == "bytes" else {"serializer": self.serializer}
        return {**options, "dictionary": "auto"} if self.dictionary else options

    def make(self) -> MutableMapping[Any, Any]:
        """Make an empty container."""
        if self.kind in ("dict", "parsed"):
            return {}
        if self.kind != "mapping":
            return _DictOfBytes(self.serializer != "bytes", self.kind == "lz4.block")
        engine = Engine(self.algorithm, **self._parameters())
        return CompressedMapping(SwapStore(engine), **self._options())


class _DictOfBytes(dict[Any, Any]):
    """A dict that pickles values, compresses them, or both, as hand-written code does."""

    def __init__(self, is_pickled: bool, is_compressed: bool) -> None:
        super().__init__()
        self._is_pickled = is_pickled
        self._is_compressed = is_compressed

    def __setitem__(self, key: Any, value: Any) -> None:
        if self._is_pickled:
            value = pickle.dumps(value)
        super().__setitem__(key, lz4.block.compress(value) if self._is_compressed else value)

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if self._is_compressed:
            value = lz4.block.decompress(value)
        return pickle.loads(value) if self._is_pickled else value


@dataclass(frozen=True, slots=True)
class Weight:
    """The memory and times of a holder in a process of its own."""

    bytes: int
    """Growth of the process's memory."""
    put_us: float
    get_us: float
    dictionary_bytes: int
    """Bytes of trained dictionaries, with the codec's tables for them."""
    measure: str
    """PSS, or RSS if the kernel does not report the PSS."""


def weigh(holder: Holder, spool_fd: int, values: int) -> Weight:
    """Measure a holder with the spooled values in a fresh process.

    That process is killed when this one ends. Raise BatchzipError if the measurement fails.
    """
    # Values may be instances of classes from any module that is imported here.
    start = f"from {__name__} import main; main()"
    command = command_for(start, "what measures values", [*sys.modules])
    arguments = json.dumps({**asdict(holder), "values": values})
    done = subprocess.run(  # noqa: S603 - our own module in our own interpreter
        [*command, arguments, str(spool_fd), str(os.getpid())],
        pass_fds=[spool_fd],
        process_group=0,  # Ctrl-C reaches only the parent, which ends the child
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    _, found, line = done.stdout.rpartition(_READY)
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines()
        why = lines[-1] if lines else f"its process ended with {done.returncode}"
        raise BatchzipError(f"{holder.name} could not be measured: {why}")
    answer = json.loads(line)
    if "unreadable" in answer:
        raise BatchzipError(
            f"a fresh process cannot restore the values: {answer['unreadable']}; "
            "the classes of values must be in importable modules"
        )
    return Weight(**answer)


def process_memory() -> tuple[str, int]:
    """Return "PSS" or "RSS", and the bytes of this process by this measure, swap included.

    Mapped files are left out of the PSS: the share of a library's pages changes as other processes
    start and end. Old kernels do not tell them apart.
    """
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # an old kernel or a sandbox
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    if "Pss" in sizes:
        files = int(sizes.get("Pss_File", 0))
        return "PSS", (int(sizes["Pss"]) - files + int(sizes.get("SwapPss", 0))) << 10
    return "RSS", (int(sizes["VmRSS"]) + int(sizes.get("VmSwap", 0))) << 10


def _give_back() -> None:
    """Return free memory to the system. Values placed in it would not be counted."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


class _Unreadable(Exception):
    """A value cannot be restored here."""


def _restored(holder: Holder, path: Path) -> Iterator[tuple[Any, Any]]:
    values = read(path)
    while True:
        try:
            key, value = next(values)
        except StopIteration:
            return
        except Exception as error:  # unpickling may raise anything
            raise _Unreadable(f"{type(error).__name__}: {error}") from error
        yield key, json.loads(value) if holder.kind == "parsed" else value
        del key, value


def _measure(holder: Holder, path: Path, values: int) -> Weight:
    clock = time.perf_counter_ns
    put_ns = np.ones(values, np.int64)
    made = holder.make()
    passing = min(_PASSING, 1 + values // _PASSING)
    for number, (key, value) in enumerate(islice(_restored(holder, path), passing)):
        if not number:  # one-time allocations of the first put are not memory of values
            made[key] = value
    key = value = None
    gc.collect()
    _give_back()
    measure, before = process_memory()
    for number, (key, value) in enumerate(_restored(holder, path)):
        start = clock()
        made[key] = value
        put_ns[number] = clock() - start
    key = value = None
    gc.collect()
    grown = process_memory()[1] - before
    learnt = made.memory_usage().dictionaries if isinstance(made, CompressedMapping) else 0
    keys = list(islice(read_keys(path), 0, None, 1 + values // _MOST_GETS))
    random.Random(0).shuffle(keys)  # noqa: S311 - an order
    get_ns = []
    end = clock() + int(_GET_S * 1e9)
    for key in keys:
        start = clock()
        made[key]
        now = clock()
        get_ns.append(now - start)
        if now > end:
            break
    return Weight(
        bytes=max(grown, 0),
        put_us=float(np.median(put_ns)) / 1e3,
        get_us=float(np.median(get_ns)) / 1e3,
        dictionary_bytes=learnt,
        measure=measure,
    )


def main() -> None:
    """Measure one holder in this process and write the result to stdout."""
    options = json.loads(sys.argv[1])
    values = options.pop("values")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[3]):
        return  # the parent ended before the signal was set
    path = Path(f"/proc/self/fd/{sys.argv[2]}")
    answer: dict[str, Any]
    try:
        answer = asdict(_measure(Holder(**options), path, values))
    except _Unreadable as error:
        answer = {"unreadable": str(error)}
    except BatchzipError as error:
        raise SystemExit(f"{error}") from None
    sys.stdout.write(f"\n{_READY}{json.dumps(answer)}\n")
