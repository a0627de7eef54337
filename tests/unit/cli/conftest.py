"""A file of some pages, and what one run says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.command import document, some_pages

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run with some pages says, for the tests that look at it."""
    path = tmp_path_factory.mktemp("swap") / "pages.bin"
    path.write_bytes(some_pages().tobytes())
    return document("--file", path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pages.bin"
    path.write_bytes(some_pages().tobytes())
    return path
