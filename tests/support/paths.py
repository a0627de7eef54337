"""Where the checkout lies, and what processes of their own need to import from it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"


def python_path(*first: str) -> str:
    """Return a PYTHONPATH of `first`, the tests' helpers and the packages of this checkout."""
    return os.pathsep.join(filter(None, [*first, str(TESTS), str(ROOT), str(ROOT / "backends")]))
