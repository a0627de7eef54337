"""Answers: what the owner of a store tells its readers. One function for each thing they ask for.

A request is a dict of plain values from another process of the same user: whatever is in it, it ends in
an answer or in an error for the reader.

Locks: the store's, within the calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batchzip.arguments.checks import as_index
from batchzip.arguments.wording import shown
from batchzip.errors import BadArgument
from batchzip.store.arguments import MAX_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable

    from batchzip.store.group import Group
    from batchzip.store.swap_store import SwapStore

    Request = dict[str, Any]
    Descriptors = list[int]


def answer(store: SwapStore, request: Request, descriptors: Descriptors) -> object:
    """Answer a request; descriptors that go with the answer are appended, and are the caller's."""
    what = request.get("what")
    function = _ANSWERS.get(what) if isinstance(what, str) else None
    if function is None:
        raise BadArgument(f"a reader asked for {shown(request)}")
    return function(store, request, descriptors)


def _group(store: SwapStore, request: Request) -> Group:
    name = request.get("group", "")
    group = store if name == "" else store.groups.get(str(name))
    if group is None:
        raise BadArgument(f"this store has no group {shown(name)}")
    return group


def _attach(store: SwapStore, request: Request, descriptors: Descriptors) -> object:
    codecs = _codecs(store, request, descriptors)
    descriptors += store._home.descriptors()  # noqa: SLF001 - a part of the store, as below
    descriptors.append(store._share_table())  # noqa: SLF001
    return {"page_size": store.page_size, "codecs": codecs}


def _table(store: SwapStore, request: Request, descriptors: Descriptors) -> object:
    descriptors.append(_group(store, request)._share_table())  # noqa: SLF001
    return None


def _codecs(store: SwapStore, _: Request, __: Descriptors) -> object:
    objects = store._home.objects  # noqa: SLF001
    given = objects.given  # before they are listed: a reader that has too few asks again
    return given, {number: codec for number, codec in enumerate(objects.numbered()) if number}


def _stored(store: SwapStore, request: Request, _: Descriptors) -> object:
    index = as_index(request.get("index", -1))
    group = _group(store, request)
    return group._stored(index) if 0 <= index <= MAX_INDEX else None  # noqa: SLF001


_ANSWERS: dict[str, Callable[[SwapStore, Request, Descriptors], object]] = {
    "attach": _attach,
    "table": _table,
    "codecs": _codecs,
    "stored": _stored,
    "counters": lambda store, request, _: _group(store, request).counters,
    "classes": lambda store, _, __: store.classes(),
    "status": lambda store, _, __: store.status(),
}
