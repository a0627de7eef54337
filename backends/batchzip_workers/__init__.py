"""The workers backend: lanes that are long-lived worker processes.

launch.py      starts one worker's process
startup.py     what that process does before its work
pickled.py     a codec as bytes for a worker
worker.py      what a worker does: the core's loop over one ring
ring.py        one worker's ring, in memory that it shares with its owner
place.py       one worker's place: who has it, how often starting one failed, what it did
supervisor.py  starts the workers, notices deaths, starts them again, stops them
failpoints.py  workers that fail on purpose, for tests
backend.py     the backend itself
"""
