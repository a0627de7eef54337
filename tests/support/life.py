"""A short program under a limit of the system. Whatever step fails, nothing that was kept is lost.

Under the limit, each step succeeds or raises an error of batchzip, and acknowledged pages come
back. Without it all works again, and `close` leaves nothing.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

from batchzip import (
    BatchzipError,
    CompressBatch,
    CompressedMapping,
    DecompressBatch,
    Engine,
    Group,
    SwapStore,
    WorkerWarning,
    attach,
)
from batchzip.store.remote import view as view_module
from batchzip.testing import LeakCheck
from batchzip.testing.plain import SLACK_S, make_pages

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

_FIRSTS = 0, 100, 513 * 5
"""Where folios are stored."""


def live(
    backend: str,
    folder: Path,
    limit: AbstractContextManager[object],
    *,
    may_fail: tuple[type[Exception], ...] = (BatchzipError,),
    patience_s: float = view_module._ANSWER_S,
) -> list[str]:
    """Live under a limit, then without it. Return what the limit made fail.

    `patience_s` is how long readers wait for an owner without descriptors; both are this process.
    Raise whatever else is raised, and AssertionError where a page is wrong or something is left.
    """
    with LeakCheck(), warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore", WorkerWarning)
        life = _Life(backend, folder / "backing", may_fail)
        patch.setattr(view_module, "_ANSWER_S", patience_s)
        with limit:
            life.do_all()
        patch.undo()
        life.may_fail = ()
        life.do_all()
        life.close()
    assert not list(folder.iterdir())
    return life.failed


class _Life:
    def __init__(self, backend: str, path: Path, may_fail: tuple[type[Exception], ...]) -> None:
        self.may_fail = may_fail
        self.failed: list[str] = []
        self._workers = {} if backend == "sequential" else {"workers": 1}
        self._backend = backend
        self._path = path
        self._pages = make_pages(24, seed=3)
        self._engine: Engine | None = None
        self._stores: dict[str, SwapStore] = {}
        self._kept: dict[Group, dict[int, bytes]] = {}

    def _try(self, step: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return step(*arguments, **named)
        except self.may_fail as error:
            self.failed.append(f"{step.__name__}: {type(error).__name__}: {error}")
            return None

    def do_all(self) -> None:
        """Use everything; make what there is not yet."""
        if self._engine is None:
            self._engine = self._try(Engine, "lz4", backend=self._backend, **self._workers)
        if self._engine is None:
            return
        for step in (self._do_batches, self._submit, self._use_the_arena):
            self._try(step, self._engine)
        backing = {"max_pool_bytes": 1 << 16, "backing": self._path}
        for name, options in (("plain", {}), ("with a file", backing)):
            if name not in self._stores:
                store = self._try(SwapStore, self._engine, **options)
                if store is not None:
                    self._stores[name] = store
        for store in self._stores.values():
            self._use(store)

    def _do_batches(self, engine: Engine) -> None:
        batch = CompressBatch(self._pages)
        engine.compress(batch)
        assert not batch.has_errors
        back = DecompressBatch(batch.outputs())
        engine.decompress(back)
        assert (back.pages == self._pages).all()

    def _submit(self, engine: Engine) -> None:
        requests = [engine.submit(CompressBatch(self._pages)) for _ in range(3)]
        assert not any(request.wait(SLACK_S).has_errors for request in requests)

    def _use_the_arena(self, engine: Engine) -> None:
        pages = engine.arena(*self._pages.shape)
        pages[:] = self._pages
        batch = CompressBatch(pages)
        engine.compress(batch)
        assert not batch.has_errors

    def _use(self, store: SwapStore) -> None:
        self._keep(store)
        group = self._try(store.group, "tiles")
        if group is not None:
            self._keep(group)
        for step in (self._read_elsewhere, self._use_a_mapping):
            self._try(step, store)
        if store is self._stores.get("with a file"):
            self._try(store.shrink)
            self._try(store.writeback, 5)
        self._try(store.compact)
        self._try(store.status)
        self._try(store.check_invariants)
        report = self._try(store.check)
        assert report is None or report.ok

    def _keep(self, group: Group) -> None:
        kept = self._kept.setdefault(group, {})
        for first in _FIRSTS:
            indices = range(first, first + len(self._pages))
            for index in indices:
                kept.pop(index, None)
            self._try(self._store, group, first)
        for index, page in kept.items():
            assert self._try(group.load, index) in (page, None)
        found = self._try(group.load_many, list(kept))
        assert found is None or found.tobytes() == b"".join(kept.values())

    def _store(self, group: Group, first: int) -> None:
        group.store(first, self._pages)
        self._kept[group].update({first + n: page.tobytes() for n, page in enumerate(self._pages)})

    def _read_elsewhere(self, store: SwapStore) -> None:
        with attach(store.share()) as view:
            for index, page in self._kept[store].items():
                assert view.load(index) == page
            assert view.counters.stored_pages >= 0

    def _use_a_mapping(self, store: SwapStore) -> None:
        with CompressedMapping(store) as mapping:
            mapping["key"] = b"value" * 2000
            assert mapping["key"] == b"value" * 2000

    def close(self) -> None:
        """Close everything, once."""
        for store in self._stores.values():
            store.close()
        if self._engine is not None:
            self._engine.close()
