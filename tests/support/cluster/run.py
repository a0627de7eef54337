"""A run: machines, clients of one store, faults, and the verdict on what the clients saw."""

from __future__ import annotations

import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from support.cluster.history import Log, Verdict, check
from support.cluster.load import Options
from support.cluster.machines import Machines
from support.paths import SUPPORT, python_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAULTS = (
    "kill a worker",
    "terminate a worker",
    "stop a worker",
    "stop a worker for long",
    "kill a nanny",
    "terminate a nanny",
    "retire a worker",
    "restart a worker",
    "add a worker",
    "scheduler killed",
    "scheduler terminated",
    "kill a client",
)
ELASTIC = ("terminate a nanny", "retire a worker", "add a worker")
"""What a cluster does by itself, and what loses nothing."""

_ANSWER_S = 240.0


class Process:
    """One client, as its process is told what to do."""

    def __init__(self, folder: Path, mend: Callable[[], None], **options: Any) -> None:
        self._mend = mend
        self.number = options["number"]
        name = f"client-{self.number}"
        self.log = folder / f"{name}.jsonl"
        self.output = folder / f"{name}.txt"
        with self.output.open("ab") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-X", "faulthandler", str(SUPPORT / "cluster" / "load.py")),
                    json.dumps({**options, "log": str(self.log)}),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": python_path()},
            )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self._lines.put("")

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Wait for a line, and mend the machines: a client may need workers to answer."""
        end = time.monotonic() + _ANSWER_S
        while time.monotonic() < end:
            with suppress(queue.Empty):
                return self._lines.get(timeout=0.2)
            self._mend()
        return f"no answer in {_ANSWER_S:g} s"

    def ask(self, line: str) -> None:
        """Say something, and take no answer but "ok"."""
        self.say(line)
        answer = self.answer()
        assert answer == "ok", f"client {self.number}, {line}: {answer or self.output.read_text()}"

    def address(self) -> str:
        """Give the address of the store, once the client has it."""
        answer = self.answer()
        what, _, address = answer.partition(" ")
        assert what == "address", f"client {self.number}: {answer or self.output.read_text()}"
        return address

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> int:
        """Wait for its end, which it has been told of, or force it; its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(6)  # faulthandler tells where it is
            code = self.process.wait(60)
        self._reader.join()
        self.process.stdin.close()
        self.process.stdout.close()
        return code


class Run:
    """Machines with clients, of whom the first makes the store, and the others attach to it."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 2,
        clients: int = 2,
        seed: int = 0,
        attached: bool = True,
        memory_limit: str = "512MiB",
        **options: Any,
    ) -> None:
        self.folder = folder
        self.wanted = workers
        self.machines = Machines(workers, folder, memory_limit=memory_limit, seed=seed)
        self._rng = random.Random(seed)
        self._log = Log(folder / "faults.jsonl")
        self._options = options
        self._attached = attached
        self._address: str | None = None
        self._numbers = 0
        self.logs = [folder / "faults.jsonl"]
        self.clients: list[Process] = []
        self.limit_s = Options("", "", **options).limit_s
        try:
            for _ in range(clients):
                self._add_client()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _add_client(self) -> Process:
        self._numbers += 1
        client = Process(
            self.folder,
            self.machines.mend,
            scheduler=self.machines.address,
            number=self._numbers,
            address=self._address,
            **self._options,
        )
        self.clients.append(client)
        self.logs.append(client.log)
        address = client.address()
        if self._attached:
            self._address = address
        return client

    def begin(self) -> None:
        for client in self.clients:
            client.ask(f"run {self._rng.randrange(1 << 20)}")

    def inflict(self, fault: str) -> None:
        """Do one thing of FAULTS."""
        machines, between = self.machines, self._rng.uniform
        self._log.fault(fault)
        {
            "kill a worker": machines.kill_worker,
            "terminate a worker": machines.terminate_worker,
            "stop a worker": lambda: machines.stop_worker(between(0.2, 3)),
            "stop a worker for long": lambda: machines.stop_worker(between(5, 30)),
            "kill a nanny": machines.kill_nanny,
            "terminate a nanny": machines.terminate_nanny,
            "retire a worker": lambda: self._to_worker("retire"),
            "restart a worker": lambda: self._to_worker("restart"),
            "add a worker": machines.add_worker,
            "scheduler killed": lambda: machines.restart_scheduler(kill=True),
            "scheduler terminated": lambda: machines.restart_scheduler(kill=False),
            "kill a client": self._replace_client,
        }[fault]()

    def _to_worker(self, what: str) -> None:
        address = self.machines.worker_address()
        if address:
            self.clients[0].ask(f"{what} {address}")

    def _replace_client(self) -> None:
        # The first one stays: it does what the others are asked for.
        client = self.clients.pop()
        client.kill()
        self._log.write("killed", client.number)
        self._add_client().ask(f"run {self._rng.randrange(1 << 20)}")

    def go_on(self, seconds: float) -> None:
        """Let so much time pass; what has ended is started again."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
            self.machines.mend()
            for client in self.clients:
                assert client.process.poll() is None, client.output.read_text()

    def settle(self) -> None:
        """Wait until every worker that is wanted has its part."""
        self._log.fault("(settled)")
        self.clients[0].say(f"settle {len(self.machines.workers)}")
        answer = self.clients[0].answer()
        assert answer == "ok", answer or self.clients[0].output.read_text()

    def pause(self) -> None:
        for client in self.clients:
            client.say("pause")
        for client in self.clients:
            answer = client.answer()
            assert answer == "ok", f"{answer}\n{client.output.read_text()}"

    def end(self, *, losses: bool = True) -> Verdict:
        """Let all go on, read and renew everything. Return the verdict on what the clients saw."""
        self.machines.go_on()
        self.go_on(1.0)
        self.pause()
        for what in ("recover", "read", "renew", "read"):
            for client in self.clients:
                client.say(what)
                answer = client.answer()
                if answer != "ok":
                    self._log.wrong(f"client {client.number}, at the end, {what}: {answer}")
        for client in self.clients:
            client.say("close")
            client.answer()
            code = client.end()
            if code:
                text = client.output.read_text()
                self._log.wrong(f"client {client.number} ended with {code}: {text}")
        self.clients = []
        return self.verdict(losses=losses)

    def verdict(self, *, losses: bool = True) -> Verdict:
        return check(self.logs, losses=losses, limit_s=self.limit_s)

    def close(self) -> None:
        for client in self.clients:
            client.kill()
        self.clients = []
        self._log.close()
        self.machines.close()
