"""Compiler: a real C compiler at work, stopped when its memory is largest.

    with Compiler("-O2 module.c") as compiler:      # it is stopped and can be read
        compiler.pid

`cc` starts the compiler proper as a child, so the largest of its processes is meant. How large it
becomes is known only at its end. Therefore it runs twice, and the second run is stopped.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from batchzip.errors import BadArgument
from batchzip.system.lifetime import Closing
from batchzip.system.processes import process_stat

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEAR = 0.95
"""Share of the largest size at which the second run is stopped: sizes differ a little."""

_PERIOD_S = 0.005

_RESIDENT_PAGES = 21
"""Field of /proc/PID/stat, counted from the state on."""


class Compiler(Closing):
    """$CC or cc with the given arguments, and Python's headers. What it writes is dropped.

    Entering waits for two runs. It raises BadArgument if there is no compiler or if it fails.
    """

    def __init__(self, arguments: str) -> None:
        self._command = [*shlex.split(os.environ.get("CC", "cc")), "-w", "-S", "-o", "-"]
        self._command.append(f"-I{sysconfig.get_path('include')}")
        try:
            self._command += shlex.split(arguments)
        except ValueError as error:
            raise BadArgument(f"the compiler's arguments {arguments!r}: {error}") from None
        if shutil.which(self._command[0]) is None:
            raise BadArgument(f"there is no compiler {self._command[0]}: install one, or set CC")
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def __enter__(self) -> Self:
        try:
            self._stop_when_largest()
        except BaseException:
            self.close()
            raise
        return self

    def _stop_when_largest(self) -> None:
        largest = max((size for _, size in self._run()), default=0)
        for pid, size in self._run():
            if size >= _NEAR * largest:
                os.kill(pid, signal.SIGSTOP)
                self.pid = pid
                return
        raise BadArgument("the compiler did not become as large again: compile a larger file")

    def _run(self) -> Iterator[tuple[int, int]]:
        """Run to the end. Yield the pid and the resident bytes of its largest process."""
        self.close()
        with tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(  # noqa: S603 - what the user asked for
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                process_group=0,  # so that its children can be killed with it
            )
            while self._process.poll() is None:
                sizes = {pid: _resident_bytes(pid) for pid in _family(self._process.pid)}
                largest = max(sizes, key=lambda pid: sizes[pid])
                yield largest, sizes[largest]
                time.sleep(_PERIOD_S)
            if self._process.returncode:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                why = lines[-1] if lines else f"exit code {self._process.returncode}"
                raise BadArgument(f"{shlex.join(self._command)} failed: {why}")

    def close(self) -> None:
        """Kill the compiler and wait for its end."""
        process, self._process = self._process, None
        pid, self.pid = self.pid, 0
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)  # its parent waits for it, and ends
                else:
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):  # it has ended
            children = Path(f"/proc/{one}/task/{one}/children").read_text(encoding="ascii")
            found += map(int, children.split())
    return found


def _resident_bytes(pid: int) -> int:
    """Return the memory of a process, or 0 if it has ended."""
    try:
        return int(process_stat(pid)[1][_RESIDENT_PAGES]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0
