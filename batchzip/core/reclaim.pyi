"""Reclaim: which pages leave memory. All of it is called by the core (core/pager.pyx)."""
