"""What the system says of a file that cannot be opened is told as it is; a busy device is in use."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "swap"
    found.touch()
    return found


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
