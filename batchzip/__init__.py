"""batchzip: many page-sized buffers compressed in RAM, any of them back in microseconds."""

__version__ = "0.1.0"
