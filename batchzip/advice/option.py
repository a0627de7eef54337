"""Option and Advice: the results of `advise`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """One setting for compression, and its results. Shares are fractions of 1. Times are per page.

    Examples:
        >>> import batchzip.advice
        >>> advice = batchzip.advice.advise((b"some text " * 60_000)[: 8 << 16], algorithms=["lz4"])
        >>> option = advice.options[0]
        >>> option.name, option.page_size
        ('lz4', 4096)
        >>> option.store_us > 0 and option.load_us > 0
        True
    """

    algorithm: str
    parameters: dict[str, Any]
    page_size: int
    shuffle: int | str | None
    dictionary: bool
    same_filled_share: float
    """Share of pages that repeat one word. They take no memory in the pool."""
    incompressible_share: float
    """Share of pages that do not get smaller. They are stored raw."""
    ratio: float | None
    """Bytes of all pages ÷ compressed bytes. None if all pages are same-filled, which take none."""
    saved_share: float
    """Share of memory saved, with the pool's rounding and all tables taken into account."""
    saved_bytes: int
    """Memory saved for all data. The bytes of a dictionary are not subtracted."""
    store_us: float
    """Processor time to store a page, in microseconds. Pages are stored as folios of 64 KiB."""
    load_us: float
    """Processor time to load a page, in microseconds. Pages are loaded singly in random order."""
    on_front: bool = False

    @property
    def name(self) -> str:
        """The algorithm with its parameters, as text for people."""
        words = [self.algorithm, *(f"{key} {value}" for key, value in self.parameters.items())]
        if self.shuffle is not None:
            words.append(f"shuffle {self.shuffle}")
        return " ".join([*words, "dictionary"] if self.dictionary else words)

    @property
    def call(self) -> str:
        """Python code that makes the engine."""
        arguments = [repr(self.algorithm)]
        arguments += [f"{key}={value!r}" for key, value in self.parameters.items()]
        arguments.append(f"page_size={self.page_size}")
        if self.shuffle is not None:
            arguments.append(f"shuffle={self.shuffle!r}")
        if self.dictionary:
            training = [f"{key}={value!r}" for key, value in self.parameters.items()]
            if self.shuffle is not None:
                training.append(f"shuffle={self.shuffle!r}")
            trained = ", ".join(["pages", *training])
            arguments.append(f"dictionary=batchzip.train_dictionary({trained})")
        return f"batchzip.Engine({', '.join(arguments)})"


@dataclass(frozen=True, slots=True)
class Advice:
    """The result of `advise`: all options, smallest pages first, and a recommendation.

    Examples:
        >>> import batchzip.advice
        >>> advice = batchzip.advice.advise((b"some text " * 60_000)[: 8 << 16], algorithms=["lz4"])
        >>> advice.sample_bytes, len(advice.options) > 2
        (524288, True)
        >>> print(advice.sentence)
        Use ...
    """

    total_bytes: int
    sample_bytes: int
    """Bytes that were stored and loaded with each option."""
    options: tuple[Option, ...]
    recommended: Option | None
    """The recommended option. None if compression does not pay."""
    sentence: str
    """The recommendation as a sentence."""
    notes: tuple[str, ...]
    """Settings that could not be tried, with the reasons."""
