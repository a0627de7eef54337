"""Answers of the system and of file objects are passed on; impossible ones are BatchzipErrors."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any

import pytest
from support.backing import write

from batchzip import BadArgument
from batchzip.store.backing.backing_file import BackingFile

if TYPE_CHECKING:
    from pathlib import Path


def refuse(monkeypatch: pytest.MonkeyPatch, path: Path, code: int) -> None:
    """Have `open` fail for this path alone."""
    real = os.open

    def fail(name: Any, *arguments: Any, **more: Any) -> int:
        if os.fspath(name) == str(path):
            raise OSError(code, os.strerror(code))
        return real(name, *arguments, **more)

    monkeypatch.setattr(os, "open", fail)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO])
def test_an_error_keeps_its_number_and_names_the_path(
    monkeypatch: pytest.MonkeyPatch, path: Path, code: int
) -> None:
    refuse(monkeypatch, path, code)
    with pytest.raises(OSError, match=os.strerror(code)) as failed:
        BackingFile(path, page_size=4096)
    assert failed.value.errno == code
    assert failed.value.filename == str(path)


def test_a_device_that_is_busy_is_in_use(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    refuse(monkeypatch, path, errno.EBUSY)
    with pytest.raises(BadArgument, match="is in use: mounted"):
        BackingFile(path, page_size=4096)


@pytest.mark.parametrize("told", [-1, 1 << 31, True, "3", None])
def test_an_object_whose_descriptor_is_none_is_used_as_a_stream(told: object) -> None:
    class Odd(io.BytesIO):
        def fileno(self) -> Any:
            return told

    with BackingFile(Odd(), page_size=4096) as file:
        assert file.descriptor is None
        assert file.read(write(file, [b"an object"])) == [b"an object"]


@pytest.mark.parametrize(
    ("raised", "told"),
    [(1, 1), (4095, 4095), (4096, errno.EIO), (0, errno.EIO), (-5, errno.EIO), ("5", errno.EIO)],
)
def test_numbers_that_the_system_has_are_kept_and_others_are_not(raised: Any, told: int) -> None:
    class Failing(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            error = OSError("it failed")
            error.errno = raised
            raise error

    with BackingFile(Failing(), page_size=4096) as file:
        position = write(file, [b"an object"])
        with pytest.raises(OSError, match=r"failed|raised OSError") as failed:
            file.read(position)
        assert failed.value.errno == told
