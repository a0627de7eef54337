"""Whether the compiled core is what its sources say; in a wheel there are no sources to ask.

hatch_build.py loads this file by its path, before there is a core: import nothing of batchzip's here.
"""

import hashlib
from pathlib import Path

__all__ = ["REBUILD", "is_stale", "source_digest"]

REBUILD = "python hatch_build.py"
SOURCES = ("*.pyx", "*.pxd", "*.h")


def source_digest(folder: Path = Path(__file__).parent) -> str | None:
    """Return the SHA-256 of the core's sources, names and contents; None where there are none."""
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
    """Return whether the core was built from other sources than those beside it."""
    from batchzip.core import build  # noqa: PLC0415 - not needed where there is no core yet

    return source_digest() not in {None, build.SOURCE_DIGEST}
