"""Staleness: compare the compiled core with its sources.

A wheel contains no sources, so nothing is compared there. hatch_build.py loads this file by its
path before the core exists. Do not import batchzip at module level here.
"""

import hashlib
from pathlib import Path

__all__ = ["REBUILD", "is_stale", "source_digest"]

REBUILD = "python hatch_build.py"
SOURCES = ("*.pyx", "*.pxd", "*.h")


def source_digest(folder: Path = Path(__file__).parent) -> str | None:
    """Return the SHA-256 of the names and contents of the core's sources; None without sources."""
    sources = sorted(path for pattern in SOURCES for path in folder.glob(pattern))
    if not sources:
        return None
    digest = hashlib.sha256()
    for path in sources:
        contents = path.read_bytes()
        digest.update(f"{path.name} {len(contents)}\n".encode())
        digest.update(contents)
    return digest.hexdigest()


def is_stale() -> bool:
    """Return whether the core was built from sources other than those beside it."""
    from batchzip.core import build  # noqa: PLC0415 - hatch_build.py runs before the core exists

    return source_digest() not in {None, build.SOURCE_DIGEST}
