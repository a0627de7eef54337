"""A storage object in memory one of whose calls raises, or writes short, once."""

from __future__ import annotations

from typing import Any

from faulty_file import FaultyFile

CALLS = ("pread", "pwrite", "sync", "discard", "truncate")


class FaultyObject(FaultyFile):
    """Raises `fault` in the `at`-th call of `method` from now, before or after its work."""

    fault: BaseException | None = None
    method = ""
    at = 0
    after = False
    raised = 0

    def fail(self, method: str, at: int, fault: BaseException, *, after: bool) -> None:
        self.fault, self.method, self.at, self.after = fault, method, at, after

    def mend(self) -> None:
        self.fault = None
        self.faults.clear()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in CALLS or self.fault is None or name != self.method:
            return value

        def call(*arguments: Any) -> Any:
            self.at -= 1
            fault = self.fault
            if self.at or fault is None:
                return value(*arguments)
            self.fault = None
            self.raised += 1
            if self.after:
                value(*arguments)
            raise fault

        return call
