"""Slices: values that take more than a page when compressed. Only the core uses them."""
