"""What callers hand over, checked before anything else is done with it.

buffers.py   pages, sources and destinations as arrays of bytes
checks.py    numbers, durations, names: one function per kind of argument
wording.py   how values look in error messages
options.py   the keyword arguments of Engine, for type checkers
"""
