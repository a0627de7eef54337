"""The workers backend: long-lived processes take shares of a batch from shared-memory rings.

layout.py      what lies where in a ring's segment, and who writes it
stage.py       writes a slot: inputs that are not in the arena, and the descriptor
ring.py        the owner's end: post a share, collect its outputs
posted.py      a share that a worker was given
worker.py      the worker's end: a process that takes descriptors until it is told to stop
runner.py      what a worker does with one: check it, run the codec, leave the results
placement.py   keeps a worker off its owner's CPU
balance.py     decides from measurements whether a share is worth handing over
launch.py      starts one worker's process
startup.py     what that process does before its work
pickled.py     a codec as bytes for a worker
place.py       one worker's place: who has it, how often starting one failed, what it did
supervisor.py  starts the workers, notices deaths, starts them again, stops them
queue.py       requests that wait, in a fair order and bounded
lane.py        the thread that does requests, for `submit`
division.py    divides one batch between the workers and the caller
under_way.py   the shares workers have, until each is done one way or another
failpoints.py  workers that fail on purpose, for tests
backend.py     the backend itself
"""
