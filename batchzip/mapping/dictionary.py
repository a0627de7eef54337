"""Dictionary: what small values have in common, learnt from the first of them.

    values ─▶ samples: the first thousand or so ─▶ trained ─▶ the codec of what comes
           ─▶ a window of values compressed worse than the first one was ─▶ samples again ─▶ trained again

A value of 300 bytes alone has little that repeats itself: zstd makes JSON of this length two times
smaller, and five times with a dictionary. What is stored stays as it is, and readable: each value's entry
names the codec, and with it the dictionary, that made it.

Training takes some 100 ms, in the call that puts the last sample in. Rejected: a thread for it, which
would have to be stopped, and forked around, for something that happens once.

A new dictionary is taken only if it makes samples that it was not trained with smaller by _WORTH than what
there is.

Locks: none. One thread takes the samples, by one step; others put values in meanwhile, with the codec there is.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from batchzip.codecs.dictionary import train_dictionary
from batchzip.core.coder import Coders
from batchzip.errors import BadArgument

if TYPE_CHECKING:
    from batchzip.arguments.buffers import Flat
    from batchzip.codecs import Codec
    from batchzip.core.records import Records
    from batchzip.store.resources import Resources

_SAMPLES = 1024
"""Values that a dictionary is trained with, at least 64 bytes each."""
_LEAST_BYTES = 64
_MOST_BYTES = 1 << 20
"""Bytes of samples that are enough."""
_SHARE = 16
"""A dictionary has one byte for so many of the samples; at most _MOST_SIZE."""
_MOST_SIZE = 16 << 10
_WORTH = 0.95
"""Share of the bytes that a new dictionary may leave, of what samples take without it."""
_TRIED = 4
"""One sample in so many tells whether a dictionary pays."""
_WINDOW = 4096
"""Values after which the ratio is looked at."""
_FALLEN = 0.8
"""Share of the first window's ratio below which a dictionary is trained again."""
_WAIT = 16
"""Windows until it is tried again, where it brought nothing."""


class Trainer:
    """Finds dictionaries for the values of one mapping."""

    def __init__(
        self, resources: Resources, records: Records, codec: Codec, held: list[int]
    ) -> None:
        self._resources = resources
        self._records = records
        with_dictionary(codec, None)  # refuses codecs that have none
        self._plain = codec
        self._samples: list[bytes] | None = []
        self._sampled = 0
        self._seen = 0
        self._window = _WINDOW
        self._first_ratio = 0.0
        self._before = (0, 0)
        self.coders: Coders | None = None
        self._held = held
        """Numbers of codecs that are held for the mapping."""
        self.dictionary_bytes = 0

    @property
    def takes_samples(self) -> bool:
        """Whether values are kept until there are enough to learn from."""
        return self._samples is not None

    def note(self, value: Flat) -> None:
        """Look at a value that was just put in."""
        samples = self._samples
        if samples is not None:
            if len(value) >= _LEAST_BYTES:
                samples.append(bytes(value))
                self._sampled += len(value)
                if len(samples) >= _SAMPLES or self._sampled >= _MOST_BYTES:
                    self._samples = None
                    self._sampled = 0
                    self._train(samples)
            return
        self._seen += 1
        if self._seen >= self._window:
            self._seen = 0
            self._look()

    def _look(self) -> None:
        """Compare the ratio of the last window with that of the first."""
        if self.coders is None:
            self._samples = []
            return
        totals = self.coders.totals(0)
        now = totals["bytes_in"], totals["bytes_out"]
        got, made = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now
        ratio = got / made if made else 0.0
        if not self._first_ratio:
            self._first_ratio = ratio
        elif ratio < self._first_ratio * _FALLEN:
            self._samples = []

    def _train(self, samples: list[bytes]) -> None:
        size = min(_MOST_SIZE, sum(map(len, samples)) // _SHARE)
        self._window = _WINDOW * _WAIT
        level: Any = getattr(innermost(self._plain), "level", None)
        learnt = [sample for at, sample in enumerate(samples) if at % _TRIED]
        try:
            dictionary = train_dictionary(learnt, size=size, level=level)
        except BadArgument:  # too much alike, or noise
            return
        self.use(dictionary, samples[::_TRIED])

    def use(self, dictionary: bytes, samples: list[bytes] | None = None) -> bool:
        """Compress what comes with a dictionary; where samples are given, only if that pays."""
        codec = with_dictionary(self._plain, dictionary)
        coders = Coders(codec, self._resources.page_size, names_dictionary=False)
        if samples is not None:
            present = self.coders or Coders(self._plain, self._resources.page_size)
            if coders.size_of(samples) > _WORTH * present.size_of(samples):
                return False
        number = self._resources.objects.add_codec(codec)
        self._held.append(number)
        self._resources.objects.set_coders(number, coders)
        self.coders = coders
        self.dictionary_bytes += len(dictionary)
        self._first_ratio, self._before, self._window = 0.0, (0, 0), _WINDOW
        self._records.use_codec(number, coders)
        return True


def innermost(codec: Codec) -> Codec:
    """Return the codec that others wrap: `Shuffled` and `Verified` have one."""
    inner = getattr(codec, "codec", None)
    return codec if inner is None else innermost(inner)


def with_dictionary(codec: Codec, dictionary: bytes | None) -> Codec:
    """Return a codec of the same parameters with a dictionary. Raise BadArgument for codecs that have none."""
    inner = getattr(codec, "codec", None)
    if inner is not None:
        return dataclasses.replace(codec, codec=with_dictionary(inner, dictionary))  # type: ignore[type-var] # codecs are dataclasses
    if not any(field.name == "dictionary" for field in dataclasses.fields(codec)):  # type: ignore[arg-type]
        raise BadArgument(
            f"{codec.algorithm} has no dictionaries: give the mapping a store with Engine('zstd', level=1)"
        )
    return dataclasses.replace(codec, dictionary=dictionary)  # type: ignore[type-var]
