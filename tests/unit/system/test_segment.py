"""Segment: it cannot leak, shrink or fault, and gives its memory back."""

import mmap
import os
import subprocess
import sys

import pytest

from batchzip.errors import BadArgument, ClosedError
from batchzip.system.segment import PAGE, Segment


def test_a_new_segment_holds_no_memory_and_reads_as_zero() -> None:
    with Segment(16 * PAGE) as segment:
        assert segment.size == len(segment.view) == 16 * PAGE
        assert segment.held_bytes() == 0
        assert bytes(segment.view[:PAGE]) == bytes(PAGE)


def test_reserve_and_release_move_memory_page_by_page() -> None:
    with Segment(16 * PAGE) as segment:
        segment.reserve(2 * PAGE, 3 * PAGE)
        assert segment.held_bytes() == 3 * PAGE
        segment.view[2 * PAGE : 5 * PAGE] = b"x" * (3 * PAGE)
        segment.release(3 * PAGE, PAGE)
        assert segment.held_bytes() == 2 * PAGE
        assert segment.view[3 * PAGE] == 0
        assert segment.view[3 * PAGE - 1] == segment.view[4 * PAGE] == ord("x")


def test_reserved_from_the_start() -> None:
    with Segment(4 * PAGE, reserve=True) as segment:
        assert segment.held_bytes() == 4 * PAGE


def test_the_file_cannot_be_shrunk_by_anyone() -> None:
    with Segment(4 * PAGE) as segment:
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, PAGE)
        with pytest.raises(BadArgument):
            segment.grow(PAGE)
        assert os.fstat(segment.fd).st_size == 4 * PAGE


def test_only_the_same_user_may_open_it() -> None:
    with Segment(PAGE) as segment:
        assert os.fstat(segment.fd).st_mode & 0o777 == 0o600


def test_the_descriptor_is_not_inherited_by_programs() -> None:
    with Segment(PAGE) as segment:
        assert not os.get_inheritable(segment.fd)


def test_growth_keeps_old_views_on_the_same_memory() -> None:
    with Segment(2 * PAGE) as segment:
        segment.reserve(0, PAGE)
        old = segment.view[:8]
        segment.grow(8 * PAGE)
        assert segment.size == len(segment.view) == 8 * PAGE
        segment.view[:8] = b"new view"
        assert bytes(old) == b"new view"
        old[:3] = b"old"
        assert bytes(segment.view[:8]) == b"old view"
        old.release()


def test_another_process_attaches_by_descriptor() -> None:
    program = (
        "import sys\n"
        "from batchzip.system.segment import Segment\n"
        "with Segment.attach(int(sys.argv[1])) as segment:\n"
        "    assert bytes(segment.view[:5]) == b'owner'\n"
        "    segment.view[:5] = b'child'\n"
    )
    with Segment(2 * PAGE) as segment:
        segment.reserve(0, PAGE)
        segment.view[:5] = b"owner"
        subprocess.run(
            [sys.executable, "-c", program, str(segment.fd)],
            pass_fds=[segment.fd],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
        )
        assert bytes(segment.view[:5]) == b"child"


def test_closed_is_closed_and_closing_twice_is_nothing() -> None:
    segment = Segment(PAGE)
    segment.close()
    segment.close()
    for use in (
        lambda: segment.fd,
        lambda: segment.reserve(0, PAGE),
        lambda: segment.grow(2 * PAGE),
        segment.held_bytes,
    ):
        with pytest.raises(ClosedError):
            use()


def test_a_view_outlives_the_segment() -> None:
    segment = Segment(PAGE, reserve=True)
    view = segment.view[:4]
    view[:] = b"kept"
    segment.close()
    assert bytes(view) == b"kept"
    view.release()


def test_no_memory_at_creation_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space"):
        Segment(PAGE, reserve=True)


@pytest.mark.parametrize("size", [0, -1])
def test_a_segment_has_bytes(size: int) -> None:
    with pytest.raises(BadArgument):
        Segment(size)


def test_the_grain_is_that_of_the_machine() -> None:
    assert mmap.PAGESIZE == PAGE
