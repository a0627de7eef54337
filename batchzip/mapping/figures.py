"""Figures: the counters of a mapping, and its memory compared with a dict's."""

from __future__ import annotations

from dataclasses import dataclass

_OBJECT = 16
"""Bytes to a multiple of which malloc rounds up the size of an object."""
_BYTES_HEAD = 33
"""Bytes of a bytes object in addition to its contents."""
_STR_HEAD = 49
"""Bytes of an ASCII str in addition to its characters. Most keys are such str."""
_DICT_PLACE = 16
"""Bytes per entry of a dict whose keys are all str."""


@dataclass(frozen=True, slots=True)
class MappingStatistics:
    """Counters of a mapping's calls so far, and its current size.

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
    """Values that were removed to make room."""
    expirations: int
    """Values that were removed because their time to live was over."""
    nbytes: int
    """Bytes of all values, serialised and uncompressed."""
    pool_bytes: int
    """Bytes of compressed values in the pool."""
    file_bytes: int
    """Bytes of compressed values in the backing file."""
    index_bytes: int
    """Bytes of keys and of their index."""

    @property
    def hit_ratio(self) -> float:
        """The fraction of lookups that found a value. 0.0 if there were no lookups."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """The memory of a mapping in bytes, by part, and that of a dict with the same values.

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
    """Compressed values in the pool, including the allocator's headers and gaps."""
    tables: int
    """Entries in the store's table, and the pool's word for each object."""
    index: int
    """Keys and their index."""
    dictionaries: int
    """Dictionaries, with the codec's tables and contexts for them."""
    in_dict: int
    """Estimate for a dict of the serialised values as bytes, with str keys of the same length."""

    @property
    def total(self) -> int:
        """Bytes of all parts of the mapping together."""
        return self.values + self.tables + self.index + self.dictionaries


def dict_bytes(count: int, key_bytes: int, value_bytes: int) -> int:
    """Return an estimate of the bytes of a dict of `count` str keys and bytes values.

    The number of slots of a dict is a power of two. At most two thirds of them are used. A full
    dict doubles its slots.
    """
    if not count:
        return 64
    places = 8
    while places * 2 // 3 < count:
        places *= 2
    width = 1 if places < 1 << 8 else 2 if places < 1 << 16 else 4
    table = 96 + places * width + places * 2 // 3 * _DICT_PLACE
    # malloc rounds each of the two objects up, by half of _OBJECT on average.
    objects = count * (_BYTES_HEAD + _STR_HEAD + _OBJECT)
    return table + objects + key_bytes + value_bytes
