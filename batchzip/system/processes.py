"""What the kernel tells of a process in /proc."""

from __future__ import annotations

from pathlib import Path


def process_stat(pid: int) -> tuple[str, list[str]]:
    """Return the name of a process, and its fields from the state on: proc_pid_stat(5).

    The state is field 3 there and number 0 here. Raise OSError if there is no such process.
    """
    text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    head, _, tail = text.rpartition(")")  # the name may contain blanks and parentheses
    return head.partition("(")[2], tail.split()
