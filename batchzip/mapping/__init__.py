"""CompressedMapping: a dict or cache whose values are kept compressed."""

from batchzip.mapping.compressed import CompressedMapping
from batchzip.mapping.decorator import cached
from batchzip.mapping.figures import MappingStatistics, MemoryUsage

__all__ = ["CompressedMapping", "MappingStatistics", "MemoryUsage", "cached"]
