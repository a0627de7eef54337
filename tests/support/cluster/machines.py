"""A Dask cluster as in production: a scheduler and workers, each a command that faults can hit.

    with Machines(3, folder) as machines:
        machines.kill_worker(); machines.restart_scheduler(); machines.mend()

A worker is one process under a nanny, which restarts it. `mend` restarts what has ended for good,
as the machines' supervisor would. Commands end with the thread that started them, so start them in
a thread that stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from support.paths import python_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PR_SET_PDEATHSIG = 1


class Machines:
    """The commands, and what can be done to them."""

    def __init__(
        self,
        workers: int,
        folder: Path,
        *,
        memory_limit: str = "512MiB",
        seed: int = 0,
        worker_options: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.wanted = workers
        self.workers: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self._environment = environment
        self._rng = random.Random(seed)
        self._options = ["--nthreads", "1", "--memory-limit", memory_limit, *worker_options]
        self._started = 0
        self._stopped: list[tuple[float, int]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self._port}"
        self.scheduler = self._start_scheduler()
        self.mend()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Starting.

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, __file__, str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "PYTHONPATH": python_path(), **self._environment},
            )

    def _start_scheduler(self) -> subprocess.Popen[bytes]:
        return self._start(
            "scheduler",
            "scheduler",
            *("--host", "127.0.0.1", "--port", str(self._port)),
            *("--dashboard-address", "127.0.0.1:0", "--no-dashboard"),
        )

    def add_worker(self) -> None:
        """Start one more worker than there are, but not ever more; it is there seconds later."""
        if len(self.workers) < 2 * self.wanted:
            self._start_worker()

    def _start_worker(self) -> None:
        self._started += 1
        name = f"worker-{self._started}"
        folder = self._folder / name
        folder.mkdir()
        self.workers.append(
            self._start(
                name,
                "worker",
                self.address,
                *("--host", "127.0.0.1", "--name", name, "--no-dashboard"),
                *("--local-directory", str(folder), "--death-timeout", "60"),
                *self._options,
            )
        )

    def mend(self) -> None:
        """Start anew what has ended, up to the number of workers that is wanted."""
        if self.scheduler.poll() is not None:
            self.scheduler = self._start_scheduler()
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < self.wanted:
            self._start_worker()
        for until, pid in self._stopped[:]:
            if time.monotonic() > until:
                self._stopped.remove((until, pid))
                _send(pid, signal.SIGCONT)

    # Faults.

    def processes(self) -> list[int]:
        """Give the processes under the nannies that run now."""
        return [pid for nanny in self.workers for pid in _workers_of(nanny.pid)]

    def _one(self) -> int | None:
        pids = self.processes()
        return self._rng.choice(pids) if pids else None

    def kill_worker(self) -> None:
        """Kill a worker; its nanny starts another one."""
        _send(self._one(), signal.SIGKILL)

    def terminate_worker(self) -> None:
        """Send SIGTERM to a worker's own process, as who looks for the largest one would."""
        _send(self._one(), signal.SIGTERM)

    def stop_worker(self, seconds: float) -> None:
        """Stop a worker; `mend` lets it go on when the time is over."""
        pid = self._one()
        if pid is not None:
            _send(pid, signal.SIGSTOP)
            self._stopped.append((time.monotonic() + seconds, pid))

    def terminate_nanny(self) -> None:
        """End one worker's command as a system does that shuts down: SIGTERM."""
        self._rng.choice(self.workers).terminate()

    def kill_nanny(self) -> None:
        """Kill one worker's command, as a machine that goes away."""
        self._rng.choice(self.workers).kill()

    def restart_scheduler(self, *, kill: bool) -> None:
        """End the scheduler, and start it again, which takes seconds."""
        (self.scheduler.kill if kill else self.scheduler.terminate)()
        self.scheduler.wait(60)
        self.mend()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            time.sleep(0.2)
        raise TimeoutError("the scheduler does not start again")

    def worker_address(self) -> str | None:
        """Give the address of one worker, if there is one."""
        found = list(self.addresses().values())
        return self._rng.choice(found) if found else None

    def addresses(self) -> dict[int, str]:
        """Give the addresses where the workers listen, by their nannies' process ids."""
        found = {}
        for nanny in self.workers:
            folder = next(
                argument
                for argument in map(str, nanny.args)  # type: ignore[arg-type]
                if argument.startswith(str(self._folder))
            )
            text = Path(f"{folder}.log").read_text(errors="replace")
            starts = re.findall(r"Start worker at:\s+(tcp://\S+)", text)
            if starts:
                found[nanny.pid] = starts[-1]
        return found

    def go_on(self) -> None:
        """Let all that are stopped go on."""
        for _, pid in self._stopped:
            _send(pid, signal.SIGCONT)
        self._stopped = []

    def close(self) -> None:
        """End all commands; nothing is left."""
        self.go_on()
        left = {pid for nanny in self.workers for pid in _descendants(nanny.pid)}
        commands = [*self.workers, self.scheduler]
        for command in commands:
            command.terminate()
        end = time.monotonic() + 15
        for command in commands:
            try:
                command.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                command.kill()
                command.wait()
        while left := {pid for pid in left if _is_python(pid)}:
            if time.monotonic() > end:
                for pid in left:
                    _send(pid, signal.SIGKILL)
            time.sleep(0.05)


def _send(pid: int | None, number: int) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _workers_of(nanny: int) -> list[int]:
    return [pid for pid in _children(nanny) if b"spawn_main" in _command_line(pid)]


def _is_python(pid: int) -> bool:
    """Return whether it still runs: a zombie has no command line."""
    return b"python" in _command_line(pid)


def main() -> None:
    parent, kind, *arguments = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the process that started this is gone")
    sys.argv = [f"dask {kind}", *arguments]
    if kind == "scheduler":
        from distributed.cli.dask_scheduler import main as command  # noqa: PLC0415 - one of them
    else:
        from distributed.cli.dask_worker import main as command  # noqa: PLC0415 - as above
    command()


if __name__ == "__main__":
    main()
