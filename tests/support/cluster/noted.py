"""A call of a sharded store, written to the log of what was done."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any

from support.cluster.history import Log, Watch, version_of

from batchzip.errors import ClusterLost, PageNotStored, PagesLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

_ALLOWED = (PagesLost, PageNotStored, ClusterLost)


class NotedCall:
    """One call: noted when it begins, and what came of it."""

    def __init__(self, log: Log, watch: Watch, key: int, kind: str) -> None:
        self.only: int | None = None
        """The index that it asks for, if it is one. An error with others means it is absent."""
        self.told: Callable[[BaseException], None] | None = None
        """Is called with the error, if there is one."""
        self._log = log
        self._watch = watch
        self._key = key
        self._kind = kind
        self._change: int | None = None
        self._begin = 0

    def changes(self, first: int, count: int, version: int) -> None:
        self._change = self._log.begin(self._kind, first, count, version)

    def run(self, ask: Callable[[], Any], note: Callable[[Any], None]) -> Any:
        """Ask, and give what came of it: "ok", or the error's name; for coroutines, later."""
        self._begin = self._watch.begin(self._key, self._kind)
        try:
            answer = ask()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is noted
            return self._failed(error)
        if asyncio.iscoroutine(answer):
            return self._later(answer, note)
        return self._ended(answer, note)

    async def _later(self, answer: Awaitable[Any], note: Callable[[Any], None]) -> str:
        try:
            found = await answer
        except BaseException as error:  # noqa: BLE001 - as above
            return self._failed(error)
        return self._ended(found, note)

    def _ended(self, answer: Any, note: Callable[[Any], None]) -> str:
        if self._change is not None:
            self._log.end(self._change, True)
        note(answer)
        return self._over("ok")

    def _failed(self, error: BaseException) -> str:
        if self._change is not None:
            self._log.end(self._change, False)
        kind = type(error).__name__
        if self.told is not None:
            self.told(error)
        if isinstance(error, PagesLost):
            self._log.named(self._begin, error.indices, recovered=False)
            if self.only is not None and not any(self.only in part for part in error.indices):
                self.saw([(self.only, None)])
        elif isinstance(error, PageNotStored):
            self.saw([(error.index, None)])
        if not isinstance(error, _ALLOWED):
            told = "".join(traceback.format_exception(error))
            self._log.wrong(f"{self._kind} raised {kind}: {error}\n{told}")
        return self._over(kind)

    def _over(self, outcome: str) -> str:
        self._watch.end(self._key)
        self._log.call(self._kind, self._begin, outcome)
        return outcome

    def read(self, pages: Iterable[tuple[int, bytes]]) -> None:
        found: list[tuple[int, int | None]] = []
        for index, page in pages:
            version = version_of(page, index)
            if version is None:
                self._log.wrong(
                    f"{self._kind} gave no page {index}, but {page[:32].hex()}…{page[-32:].hex()}"
                )
            else:
                found.append((index, version))
        self.saw(found)

    def saw(self, found: Sequence[tuple[int, int | None]]) -> None:
        self._log.read(self._begin, found)

    def name(self, ranges: Iterable[range], *, recovered: bool) -> None:
        self._log.named(self._begin, ranges, recovered=recovered)

    def check(self, condition: bool, text: str) -> None:
        if not condition:
            self._log.wrong(text)
