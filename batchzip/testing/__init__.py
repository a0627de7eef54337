"""Test tools for authors of backends, and for batchzip itself. They need pytest (extra `test`).

    from batchzip.testing import BackendContract

    class TestMyBackend(BackendContract):
        @classmethod
        def make_backend(cls) -> MyBackend:
            return MyBackend()

`BackendContract` tests every promise of a backend. `LeakCheck` detects what a piece of code leaves
behind: child processes, descriptors, threads, shared memory.
"""

from __future__ import annotations

import pytest

# Before the modules are imported, so that failed assertions show the compared values.
pytest.register_assert_rewrite(
    "batchzip.testing.contract",
    "batchzip.testing.engine_contract",
    "batchzip.testing.plain",
    "batchzip.testing.request_contract",
)

from batchzip.testing.contract import BackendContract  # noqa: E402 - rewriting comes first
from batchzip.testing.leaks import LeakCheck, start_resource_trackers  # noqa: E402

__all__ = ["BackendContract", "LeakCheck", "start_resource_trackers"]
