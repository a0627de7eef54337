"""The workers backend: long-lived processes take shares of a batch from shared-memory rings.

layout.py      what lies where in a ring's segment, and who writes it
ring.py        the owner's end: post a share, collect its outputs
posted.py      a share that a worker was given
worker.py      the worker's end: a process that takes descriptors until it is told to stop
placement.py   keeps a worker off its owner's CPU
balance.py     decides from measurements whether a share is worth handing over
launch.py      starts one worker's process
supervisor.py  starts the workers, notices deaths, starts them again, stops them
lane.py        the thread that does requests, for `submit`
division.py    divides one batch between the workers and the caller
backend.py     the backend itself
"""
