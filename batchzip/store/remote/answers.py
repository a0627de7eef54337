"""Answers: the owner's reply to each kind of request from a reader, one function per kind.

A request is a dict of plain values from another process of the same user. Any content leads to an
answer, or to an error for the reader.

Locks: none here; those of the core within the calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from batchzip.arguments.checks import as_index
from batchzip.errors import BadArgument
from batchzip.store.arguments import MAX_INDEX
from batchzip.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batchzip.pool.class_use import ClassUse
    from batchzip.store.counters import Counters
    from batchzip.store.resources import Resources

    Request = dict[str, Any]
    Descriptors = list[int]


class SharedGroup(Protocol):
    """The methods of a group that answer readers."""

    page_size: int
    _resources: Resources

    @property
    def counters(self) -> Counters:
        """Return the group's counters."""

    def _share_table(self) -> int:
        """Return a descriptor of the group's table."""

    def _stored(self, index: int) -> bytes | None:
        """Return the stored bytes of a page in the backing file."""


class SharedStore(SharedGroup, Protocol):
    """The methods of a store that answer readers. A store is also the group without a name."""

    @property
    def groups(self) -> Mapping[str, SharedGroup]:
        """Return the other groups by name."""

    def classes(self) -> list[ClassUse]:
        """Return the pool's size classes."""

    def status(self) -> dict[str, Any]:
        """Return the store's status."""


def answer(store: SharedStore, request: Request, descriptors: Descriptors) -> object:
    """Return the answer to a request. Append the descriptors sent with it, which the caller owns.

    Raise BadArgument for a request of an unknown kind.
    """
    what = request.get("what")
    function = _ANSWERS.get(what) if isinstance(what, str) else None
    if function is None:
        raise BadArgument(f"a reader asked for {shown(request)}")
    return function(store, request, descriptors)


def _group(store: SharedStore, request: Request) -> SharedGroup:
    name = request.get("group", "")
    group = store if name == "" else store.groups.get(str(name))
    if group is None:
        raise BadArgument(f"this store has no group {shown(name)}")
    return group


def _attach(store: SharedStore, request: Request, descriptors: Descriptors) -> object:
    codecs = _codecs(store, request, descriptors)
    descriptors += store._resources.descriptors()  # noqa: SLF001 - a part of the store, as below
    descriptors.append(store._share_table())  # noqa: SLF001
    return {"page_size": store.page_size, "codecs": codecs}


def _table(store: SharedStore, request: Request, descriptors: Descriptors) -> object:
    descriptors.append(_group(store, request)._share_table())  # noqa: SLF001
    return None


def _codecs(store: SharedStore, _: Request, __: Descriptors) -> object:
    objects = store._resources.objects  # noqa: SLF001
    given = objects.given  # read before listing them: a reader that has too few asks again
    return given, {number: codec for number, codec in enumerate(objects.numbered()) if number}


def _stored(store: SharedStore, request: Request, _: Descriptors) -> object:
    index = as_index(request.get("index", -1))
    group = _group(store, request)
    return group._stored(index) if 0 <= index <= MAX_INDEX else None  # noqa: SLF001


_ANSWERS: dict[str, Callable[[SharedStore, Request, Descriptors], object]] = {
    "attach": _attach,
    "table": _table,
    "codecs": _codecs,
    "stored": _stored,
    "counters": lambda store, request, _: _group(store, request).counters,
    "classes": lambda store, _, __: store.classes(),
    "status": lambda store, _, __: store.status(),
}
