"""Reclaim: which pages leave memory. Only the core calls its functions (core/pager.pyx)."""
