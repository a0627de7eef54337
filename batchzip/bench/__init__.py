"""What `batchzip bench` and the scripts in examples/benchmarks/ measure with.

figure.py       Figure and Result: what was measured, where, as JSON
rounds.py       contenders in rounds, interleaved; medians and quartiles
algorithm.py    an algorithm as written on the command line
pages.py        what is compressed: a capture, a process, a file, or what is hard on purpose
compressors.py, peers.py    who compresses batches; compress.py measures them
limit.py        what as many cores as there are lanes give, with bare loops
lanes.py        what lanes cost: a hand-over, awake and asleep, and when there is nothing to do
stores.py, peer_stores.py   who keeps pages; swap.py measures them
held.py         what a store makes a fresh process grow by
zram.py         the kernel's own, where it can be had
compare.py      what got slower between two results
ahead.py        where somebody else is quicker than batchzip
table.py, plot.py           for people

Nothing else of the library imports this package.
"""
