"""Measurements for `batchzip bench` and the scripts in examples/benchmarks/.

figure.py       Figure and Result: the results, with the machine and all rounds, as JSON
spread.py       medians and quartiles
rounds.py       contenders in interleaved rounds
script.py       the command line of all benchmarks
algorithm.py    an algorithm as written on the command line
pages.py        the data: pages of a workload, a process, a compiler or a file, or synthetic pages
compiler.py     a C compiler at work, stopped when it is largest
compressors.py, peers.py    contenders that compress batches, measured by compress.py
limit.py        the limit of the cores: bare loops in as many processes as there are lanes
lanes.py        the cost of lanes: handing over a batch, awake and asleep, and idling
stores.py, peer_stores.py, file_stores.py
                contenders that store pages, measured by swap.py
held.py         the growth of a fresh process that holds a store
zram.py, kernel_swap.py     the kernel's zram, and swap on it, if available
memory_group.py a cgroup with a memory limit
compare.py      the figures that became slower or faster between two results
ahead.py        the cases in which a peer is faster than batchzip
table.py, plot.py, style.py output for people

Only the command line imports this package.
"""
