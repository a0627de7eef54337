"""The workers backend: lanes that are long-lived worker processes.

launch.py       starts a worker's process
startup.py      prepares that process for its work
pickled.py      a codec as bytes for a worker
worker.py       a worker's work: the core's loop over one ring
ring.py         one worker's ring, in memory that it shares with its owner
worker_slot.py  one slot: its current worker, failed starts, figures
supervisor.py   starts workers, notices deaths, replaces workers, stops them
failpoints.py   makes workers fail on purpose, for tests
backend.py      the backend itself
"""
