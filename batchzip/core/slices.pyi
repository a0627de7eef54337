"""Slices: values whose bytes take more than a page, compressed. They have no interface for Python."""
