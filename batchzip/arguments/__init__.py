"""What callers hand over, checked before anything else is done with it.

buffers.py   pages, sources and destinations as arrays of bytes
checks.py    numbers, durations, names: one function per kind of argument
"""
