"""Share: the address at which other processes of the same user can read a store.

    owner                                     any process of the same user
    store.share() ─▶ Share(address) ─────────▶ share.attach(), batchzip.attach(address)
    ShareServer  ◀── Unix socket ──▶ StoreView
       descriptors, read-only: table, objects, words, file      once, at the start
       counters, status, classes, codecs                        on request
                                loads: from shared memory, by the reader alone (core/view.pyx)

The address is the path of a descriptor, /proc/<pid>/fd/<n>. The descriptor is of a socket that was
unlinked as soon as it was bound. So nothing is left behind however the owner ends, and nobody can
guess or take a name. The socket's mode is 0600, and each side asks the kernel who the other one is.
`str()` of a Share has a random token after the path. Each reply begins with the token, and the
reader checks it before it reads anything else. So a process that later gets the same process ID and
descriptor number is not mistaken for the store.

docs/threat-model.md says who trusts whom, and with what.

Rejected: serving loads over the connection. It would cost 30 µs per load, and time of the owner's
interpreter.

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
    """The address at which a store can be read. It can be pickled, or sent as text with `str()`.

    It is valid while the store is open, for processes of the same user on the same machine and in
    the same PID namespace. `address` without the token works, too, but another store may get the
    same address once the owner has ended.

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
    """Distinguishes the store from any later one with the same address."""

    def attach(self) -> StoreView:
        """Open the store for reading, as `batchzip.attach` does."""
        return attach(self)

    def __str__(self) -> str:
        return f"{self.address}#{self.token}" if self.token else self.address


def attach(address: str | os.PathLike[str] | Share) -> StoreView:
    """Open another process's store for reading. `address` is what its `share()` returned, or text.

    Any process of the same user may do so. A forked child of the owner must use the address, too,
    not the owner's own objects. Raise FileNotFoundError or ConnectionRefusedError if there is no
    store at the address, PermissionError if it is another user's, ClosedError if another store has
    taken the address, BadArgument if `address` is not an address or another program answers there,
    and LimitReached if this process or the owner has run out of descriptors or memory.

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
    """Return a Share from a Share or an address. Raise BadArgument if it is neither."""
    text = str(where) if isinstance(where, Share) else where
    if not isinstance(text, (str, os.PathLike)):
        raise BadArgument(f"an address must be a path, like str(store.share()), not {shown(where)}")
    found = _ADDRESS.fullmatch(os.fsdecode(text))
    if found is None:
        raise BadArgument(
            "an address must look like /proc/<pid>/fd/<n>#<token>, as str(store.share()) does, "
            f"not {shown(text)}"
        )
    return Share(found[1], found[2] or "")
