"""Interfaces to the operating system and the interpreter.

cpus.py, control_groups.py   CPUs and control groups of this process
processes.py     what /proc tells of a process
limits.py        errors that name the system limit that was reached; starts threads
descriptors.py   file descriptors above the standard streams
lifetime.py      objects that are open, closed, or inherited by a forked child
segment.py       shared memory that cannot leak, shrink or fault
arena.py         arrays in shared memory that worker processes see
interpreter.py   the command that starts another Python
"""
