"""Share: where a store can be read from by other processes of the same user.

    owner                                     any process of the same user
    store.share() ─▶ Share(address) ─────────▶ share.attach(), batchzip.attach(address)
    ShareServer  ◀── Unix socket ──▶ StoreView
       descriptors, read-only: table, objects, words, file      once, at the start
       counters, status, classes, codecs                        when asked for
                                loads: from shared memory, by the reader alone (core/view.pyx)

The address is the path of a descriptor, /proc/<pid>/fd/<n>, of a socket that was unlinked as soon as it
was bound: nothing is left behind however the owner ends, and no name is there to be guessed or taken.
Its mode is 0600, and each side asks the kernel who the other one is. `str()` of a Share has a random token
behind the path. Each reply begins with it, and nothing else of a reply is looked at before the token is:
what has the process id and the descriptor's number by now is not taken for the store.

docs/threat-model.md says who trusts whom, and with what.

Rejected: serving loads over the connection, at 30 µs each and the cost of the owner's interpreter.

Locks: none.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchzip.errors import BadArgument
from batchzip.wording import shown

if TYPE_CHECKING:
    from batchzip.store.remote.view import StoreView

_ADDRESS = re.compile(r"(/proc/[1-9][0-9]*/fd/[0-9]+)(?:#([0-9a-f]{16}))?")


@dataclass(frozen=True, slots=True)
class Share:
    """Where a store can be read from. Picklable, and `str()` of it says the same.

    Good while the store is open, in processes of the same user on the same machine (and the same PID
    namespace). `address` alone serves, too; but once the owner is gone another store may come to have it.

    Examples:
        >>> import batchzip
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.store(7, [b"x" * 4096])
        ...     share = store.share()  # picklable: send it to another process
        ...     with share.attach() as view:
        ...         view.load(7)[:3]
        b'xxx'
    """

    address: str
    token: str = ""
    """What tells the store from any other that has the same address later."""

    def attach(self) -> StoreView:
        """Open the store for reading, as `batchzip.attach`."""
        return attach(self)

    def __str__(self) -> str:
        return f"{self.address}#{self.token}" if self.token else self.address


def attach(address: str | os.PathLike[str] | Share) -> StoreView:
    """Open another process's store for reading: `address` is what its `share()` gave, or its address.

    Any process of the same user may; not a forked child of the owner with the owner's own objects, but
    with the address. Raises FileNotFoundError or ConnectionRefusedError where no store is there,
    PermissionError where it is another user's, ClosedError where another store is in its place,
    BadArgument for what is no address, or where what answers is no store, and LimitReached where this
    process or the owner has no descriptors or memory for it.

    Examples:
        >>> import subprocess, sys
        >>> import batchzip
        >>> reader = '''
        ... import sys, batchzip
        ... with batchzip.attach(sys.argv[1]) as view:
        ...     print(view.load(0)[:3])
        ... '''
        >>> with batchzip.Engine("lz4") as engine, batchzip.SwapStore(engine) as store:
        ...     store.store(0, [b"abc" + bytes(4093)])
        ...     command = [sys.executable, "-c", reader, str(store.share())]
        ...     print(subprocess.run(command, capture_output=True, text=True).stdout.strip())
        b'abc'
    """
    from batchzip.store.remote.view import StoreView  # noqa: PLC0415 - the owner needs no view

    share = as_share(address)
    return StoreView(share.address, share.token)


def as_share(where: object) -> Share:
    """Make a Share of what a caller gave. Raises BadArgument."""
    text = str(where) if isinstance(where, Share) else where
    if not isinstance(text, (str, os.PathLike)):
        raise BadArgument(f"an address is a path, as str(store.share()), not {shown(where)}")
    found = _ADDRESS.fullmatch(os.fsdecode(text))
    if found is None:
        raise BadArgument(
            f"an address is like /proc/<pid>/fd/<n>#<token>, as str(store.share()): {shown(text)} is not"
        )
    return Share(found[1], found[2] or "")
