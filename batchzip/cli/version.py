"""`batchzip --version`: the version, the C libraries in use, and how the core was built."""

from __future__ import annotations

import argparse

import batchzip


def version_text() -> str:
    """Return the versions, one per line."""
    # Imported here, because finding the libraries opens and tests them, and --help must not wait.
    from batchzip.core import build  # noqa: PLC0415
    from batchzip.core.libraries import libraries  # noqa: PLC0415

    found = libraries()
    used = [f"{library.name} {library.version}" for library in found if library.problem is None]
    lines = [f"batchzip {batchzip.__version__}", f"C libraries: {', '.join(used) or 'none'}"]
    lines += [
        f"{library.name} {library.version or ''}".rstrip() + f" is not used: {library.problem}"
        for library in found
        if library.problem is not None
    ]
    lines.append(f"core: {build.PROFILE}, Cython {build.CYTHON}, {build.COMPILER}")
    return "\n".join(lines)


class ShowVersion(argparse.Action):
    """Prints the version and ends the command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version."""
        print(version_text())  # noqa: T201 - this is the command's output
        parser.exit()
