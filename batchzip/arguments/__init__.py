"""Checks of arguments from callers, made before anything else is done with them.

buffers.py   pages, sources and destinations as arrays of bytes
checks.py    numbers, durations, names: one function per kind of argument
"""
