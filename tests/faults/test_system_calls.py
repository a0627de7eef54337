"""Filters that forbid a system call, as containers have them: the error names the call."""

from __future__ import annotations

import errno
import re
import warnings
from typing import TYPE_CHECKING

import pytest
from support.forked import in_forked_child
from support.system_calls import forbid, needs_filters

from batchzip import CompressBatch, CompressedMapping, Engine, LimitReached, WorkerWarning

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = needs_filters

CODES = [errno.EPERM, errno.ENOSYS]
PAGES = [bytes([n]) * 4000 + bytes(96) for n in range(64)]


def a_mapping() -> None:
    with CompressedMapping():
        pass


def workers() -> None:
    with Engine("lz4", backend="workers", workers=1):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("make", [a_mapping, workers])
def test_shared_memory_that_is_forbidden_is_named(make: Callable[[], None], code: int) -> None:
    def work() -> None:
        forbid("memfd_create", code)
        with pytest.raises(LimitReached, match=r"the system call memfd_create.*seccomp") as error:
            make()
        assert error.value.errno == code

    in_forked_child(work)


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_without_pidfds_the_caller_does_the_work_and_the_warning_names_the_call(code: int) -> None:
    def work() -> None:
        forbid("pidfd_open", code)
        with (
            warnings.catch_warnings(record=True) as told,
            Engine("lz4", backend="workers", workers=1) as engine,
        ):
            warnings.simplefilter("always")
            assert not engine.wait_ready()
            batch = CompressBatch(PAGES)
            engine.compress(batch)
        assert not batch.errors.any()
        said = [str(each.message) for each in told if each.category is WorkerWarning]
        assert len(said) == 1, told
        assert re.search("the system call pidfd_open.*the caller does the work", said[0]), said

    in_forked_child(work)
