"""Dictionary: train a dictionary from the first small values of a mapping.

    values ─▶ samples: about the first thousand ─▶ training ─▶ the codec of new values
           ─▶ a window whose ratio is worse than the first one's ─▶ new samples ─▶ training

A single value of 300 bytes repeats little of itself: zstd halves JSON of this length, and shrinks
it five times with a dictionary. Values that were stored before stay unchanged and readable, because
each entry names the codec, and with it the dictionary, that compressed it.

Training takes about 100 ms, in the call that stores the last sample. A thread was rejected: it
would have to be stopped, and handled in forks, for something that happens once.

A new dictionary is used only if it shrinks samples that it was not trained with to less than _WORTH
of their present size.

Locks: none. One thread takes the list of samples, in one atomic step, and trains. Other threads
meanwhile store values with the present codec.
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
"""Number of values after which a dictionary is trained."""
_LEAST_BYTES = 64
"""Bytes of the smallest value that is a sample."""
_MOST_BYTES = 1 << 20
"""Bytes of samples after which a dictionary is trained, even from fewer values."""
_SHARE = 16
"""Bytes of samples per byte of the dictionary."""
_MOST_SIZE = 16 << 10
"""Bytes of the largest dictionary."""
_WORTH = 0.95
"""Compressed size with a new dictionary, relative to that without, above which it is rejected."""
_TRIED = 4
"""One in this many samples is kept out of the training and measures the dictionary."""
_WINDOW = 4096
"""Number of values after which the ratio is compared with the first window's."""
_FALLEN = 0.8
"""Fraction of the first window's ratio below which a dictionary is trained again."""
_WAIT = 16
"""Windows until the next attempt if a training brought nothing."""


class Trainer:
    """Trains dictionaries for the values of one mapping."""

    def __init__(
        self, resources: Resources, records: Records, codec: Codec, held: list[int]
    ) -> None:
        self._resources = resources
        self._records = records
        with_dictionary(codec, None)  # raises for codecs without dictionaries
        self._plain = codec
        self._samples: list[bytes] | None = []
        self._sampled = 0
        self._seen = 0
        self._begin_windows()
        self.coders: Coders | None = None
        self._held = held
        """Numbers of the codecs on which the mapping holds a reference."""
        self.dictionary_bytes = 0

    @property
    def takes_samples(self) -> bool:
        """Whether the trainer is collecting samples."""
        return self._samples is not None

    def note(self, value: Flat) -> None:
        """Take a value that was just stored as a sample, or count it for the window."""
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

    def _begin_windows(self) -> None:
        self._window = _WINDOW
        self._first_ratio = 0.0
        self._before = (0, 0)

    def _look(self) -> None:
        """Compare the last window's ratio with the first one's. Sample again if it is worse."""
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
        if not learnt:  # one large sample
            return
        try:
            dictionary = train_dictionary(learnt, size=size, level=level)
        except BadArgument:  # the samples are too similar, or noise
            return
        self.use(dictionary, samples[::_TRIED])

    def use(self, dictionary: bytes, samples: list[bytes] | None = None) -> bool:
        """Compress new values with a dictionary. Return whether it is used.

        If `samples` are given, the dictionary is used only if it makes them smaller.
        """
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
        self._begin_windows()
        self._records.use_codec(number, coders)
        return True


def innermost(codec: Codec) -> Codec:
    """Return the codec inside wrappers such as `Shuffled` and `Verified`."""
    inner = getattr(codec, "codec", None)
    return codec if inner is None else innermost(inner)


def with_dictionary(codec: Codec, dictionary: bytes | None) -> Codec:
    """Return a codec with the same parameters and a dictionary.

    Raise BadArgument for algorithms without dictionaries.
    """
    inner = getattr(codec, "codec", None)
    if inner is not None:
        with_it = with_dictionary(inner, dictionary)
        return dataclasses.replace(codec, codec=with_it)  # type: ignore[type-var] # a dataclass
    fields = dataclasses.fields(codec)  # type: ignore[arg-type]
    if not any(field.name == "dictionary" for field in fields):
        raise BadArgument(
            f"{codec.algorithm} has no dictionaries: "
            "give the mapping a store with Engine('zstd', level=1)"
        )
    return dataclasses.replace(codec, dictionary=dictionary)  # type: ignore[type-var]
