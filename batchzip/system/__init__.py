"""What the operating system and the interpreter provide, and how this process uses it.

cpus.py, control_groups.py   CPUs and control groups of this process
limits.py        errors that name the system's limit that was reached; threads that may not start
descriptors.py   file descriptors above the standard streams
lifetime.py      open, closed, or inherited by a forked child
segment.py       shared memory that cannot leak, shrink or fault
arena.py         arrays in shared memory that worker processes see
interpreter.py   how to start another Python
"""
