"""A codec that cannot be unpickled, with an error that has no text. Workers import it by name."""

from __future__ import annotations

import os

from support.codecs.slow import SlowCodec


class UnshowableError(Exception):
    """Its `repr` fails in the process `owner`."""

    def __init__(self, owner: int) -> None:
        super().__init__(owner)
        self.owner = owner

    def __repr__(self) -> str:
        if os.getpid() == self.owner:
            raise RuntimeError("this error cannot be shown")
        return "UnshowableError"

    __str__ = __repr__


def refuse(owner: int) -> None:
    raise UnshowableError(owner)


class UnshowableCodec(SlowCodec):
    """Cannot be unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return refuse, (os.getpid(),)
