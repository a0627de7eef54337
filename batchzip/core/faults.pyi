"""Faults: touches of pages that are not mapped. All of it is called by the core (core/pager.pyx)."""
