from typing import Any

from batchzip.arguments.buffers import Bytes, Flat
from batchzip.core.batch import Pointers
from batchzip.core.coder import Coders
from batchzip.core.entries import Entries
from batchzip.core.zones import ZoneReservation

class Folio:
    def __init__(self, page_size: int) -> None: ...
    def __len__(self) -> int: ...
    def clear(self) -> list[Any]: ...
    def take_matrix(self, pages: Bytes) -> None: ...
    def take_list(self, pages: list[Flat]) -> int: ...
    def compress(
        self, coders: Coders, number: int, *, keep_poor: bool, keep_failed: bool
    ) -> int: ...
    def store(
        self,
        coders: Coders,
        number: int,
        entries: Entries,
        first: int,
        *,
        keep_poor: bool,
        may_go_elsewhere: bool,
        limit: int | None,
    ) -> int: ...
    def sort_out(self) -> int: ...
    def lend(self, first: int, most: int, pointers: Pointers) -> list[int]: ...
    def page(self, number: int) -> bytes: ...
    def absorb(
        self,
        pages: list[int],
        batch: object,
        pointers: Pointers,
        number: int,
        *,
        keep_poor: bool,
        keep_failed: bool,
    ) -> int: ...
    def errors(self) -> list[int]: ...
    def objects(self) -> list[bytes]: ...
    def publish(
        self,
        entries: Entries,
        first: int,
        where: ZoneReservation | None = None,
        *,
        may_go_elsewhere: bool = False,
        limit: int | None = None,
    ) -> int: ...
