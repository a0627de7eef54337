"""Option and Advice: what is found, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """One way to compress, and what it brought. Shares are of 1, times of one page.

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
    """Pages of one repeated word, which take no memory in the pool."""
    incompressible_share: float
    """Pages that do not get smaller and are kept raw."""
    ratio: float | None
    """Bytes of the pages ÷ compressed bytes, those of same-filled pages 0; None: all are."""
    saved_share: float
    """Memory saved: of the pool with its rounding, and of all tables."""
    saved_bytes: int
    """The same of all the data that the sample is of; the dictionary's own bytes are not counted."""
    store_us: float
    """Processor time of one core for a page, of folios of 64 KiB."""
    load_us: float
    """The same of a load, page by page in random order."""
    on_front: bool = False

    @property
    def name(self) -> str:
        """The algorithm with its parameters, for people."""
        words = [self.algorithm, *(f"{key} {value}" for key, value in self.parameters.items())]
        if self.shuffle is not None:
            words.append(f"shuffle {self.shuffle}")
        return " ".join([*words, "dictionary"] if self.dictionary else words)

    @property
    def call(self) -> str:
        """The engine that does this, as code."""
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
    """What `advise` found: every option, those with the smallest pages first.

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
    """None where compression is not worth it."""
    sentence: str
    """The recommendation, for people."""
    notes: tuple[str, ...]
    """What could not be tried, and why."""
