"""If a file object fails while the owner reads for a reader, the reader gets the error."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from support.faulty_file import FaultyFile
from support.store_pages import noise

from batchzip import Engine, PageError, StoreView, SwapStore, attach

if TYPE_CHECKING:
    from collections.abc import Iterator


class Failing(FaultyFile):
    """Raises `error` from the next read."""

    error: BaseException | None = None

    def pread(self, length: int, offset: int) -> bytes:
        error, self.error = self.error, None
        if error is not None:
            raise error
        return super().pread(length, offset)


@pytest.fixture
def file() -> Failing:
    return Failing()


@pytest.fixture
def view(engine: Engine, file: Failing) -> Iterator[StoreView]:
    with SwapStore(engine, backing=file) as store:
        store.store(0, noise(0))
        assert store.writeback(1) == 1
        with attach(store.share()) as view:
            yield view


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENODEV, "no such device"), -errno.ENODEV),
        (OSError("without a code"), -errno.EIO),
        (ValueError("not even an OSError"), -errno.EIO),
        (SystemExit(1), -errno.EIO),
        (KeyboardInterrupt(), -errno.EIO),
    ],
    ids=["a code", "no code", "ValueError", "SystemExit", "KeyboardInterrupt"],
)
def test_the_reader_gets_the_code_of_the_failure(
    view: StoreView, file: Failing, error: BaseException, code: int
) -> None:
    file.error = error
    with pytest.raises(PageError) as failed:
        view.load(0)
    assert failed.value.errno == code
    assert view.load(0) == noise(0)
