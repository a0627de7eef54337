"""The targets of the fuzzer by name, and the limits of their inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz import arguments, codec_inputs, readers, ring_words, stores

if TYPE_CHECKING:
    from support.fuzzing import Target

TARGETS: dict[str, type[Target]] = {
    **codec_inputs.TARGETS,
    **stores.TARGETS,
    **ring_words.TARGETS,
    **readers.TARGETS,
    **arguments.TARGETS,
}

LONGEST = {
    "restore": 8192, "compress": 4097, "store": 64, "values": 96, "file": 64, "worker": 2048,
    "owner": 64, "view": 1200, "requests": 600, "replies": 600, "arguments": 24,
}  # fmt: skip
"""The longest inputs in bytes. Long programs of calls find no more and take longer."""

HANG_S = 60
"""An input that takes longer hangs. Most take microseconds."""

MOST_MIB = 4096
"""Memory that the process may take. Atheris, the sanitizer and the corpora take a tenth of it."""
