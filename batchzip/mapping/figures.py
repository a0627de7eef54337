"""Figures: what a mapping did, and what it takes in memory beside a dict."""

from __future__ import annotations

from dataclasses import dataclass

_OBJECT = 16
"""Bytes that malloc rounds the size of a bytes object up to."""
_BYTES_HEAD = 33
"""Bytes of a bytes object beside its contents."""
_STR_HEAD = 49
"""Bytes of a str object of ASCII letters beside them: what most keys are."""
_DICT_PLACE = 16
"""Bytes of an entry of a dict whose keys are all str."""


@dataclass(frozen=True, slots=True)
class MappingStatistics:
    """What became of calls so far, and what the mapping has now.

    Examples:
        >>> import batchzip
        >>> with batchzip.CompressedMapping() as cache:
        ...     cache["a"] = b"value"
        ...     _ = cache.get("a"), cache.get("a"), cache.get("b")
        ...     statistics = cache.stats()
        >>> statistics.hits, statistics.misses, round(statistics.hit_ratio, 2)
        (2, 1, 0.67)
    """

    values: int
    hits: int
    misses: int
    evictions: int
    """Values that were forgotten to make room."""
    expirations: int
    """Values that were forgotten because their time was over."""
    nbytes: int
    """Bytes of all values as they were serialised."""
    pool_bytes: int
    """Bytes of compressed values in the pool."""
    file_bytes: int
    """Bytes of compressed values in the backing file."""
    index_bytes: int
    """Bytes of keys and of what finds them."""

    @property
    def hit_ratio(self) -> float:
        """The share of lookups that found a value; 0.0 if there were none."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Bytes of memory that a mapping takes, by part, and what a dict of the same values would.

    Examples:
        >>> import batchzip
        >>> with batchzip.CompressedMapping() as cache:
        ...     cache.update({str(n): b"a value that repeats itself, " * 40 for n in range(10_000)})
        ...     usage = cache.memory_usage()
        >>> usage.total == usage.values + usage.tables + usage.index + usage.dictionaries
        True
        >>> usage.in_dict > 4 * usage.total
        True
    """

    values: int
    """Compressed values in the pool, with what the allocator loses to headers and gaps."""
    tables: int
    """Entries of the store's table, and the pool's words."""
    index: int
    """Keys, and what finds them."""
    dictionaries: int
    """Dictionaries, with the codec's tables and contexts for them."""
    in_dict: int
    """What the values would take as bytes objects in a dict, with str keys as long as these."""

    @property
    def total(self) -> int:
        """Bytes that the mapping takes."""
        return self.values + self.tables + self.index + self.dictionaries


def dict_bytes(count: int, key_bytes: int, value_bytes: int) -> int:
    """Return the bytes of a dict of so many str keys and bytes values.

    A dict has a power of two of places, of which up to two thirds are used; it grows to twice as many.
    """
    if not count:
        return 64
    places = 8
    while places * 2 // 3 < count:
        places *= 2
    width = 1 if places < 1 << 8 else 2 if places < 1 << 16 else 4
    table = 96 + places * width + places * 2 // 3 * _DICT_PLACE
    objects = count * (_BYTES_HEAD + _STR_HEAD + _OBJECT)  # half a rounding for each of the two
    return table + objects + key_bytes + value_bytes
