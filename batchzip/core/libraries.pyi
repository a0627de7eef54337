from typing import NamedTuple

from batchzip.buffers import Buffer

class Library(NamedTuple):
    name: str
    version: str | None
    path: str | None
    problem: str | None

def libraries() -> tuple[Library, ...]: ...
def xxh3_64(data: Buffer) -> int: ...
