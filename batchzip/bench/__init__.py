"""What batchzip costs beside what would be used instead; `batchzip bench` and examples/benchmarks/ run it.

rounds.py    contenders take turns in one run; medians and spread
inputs.py    pages: of a process, a file, a workload, or made to be hard
peers.py     what else compresses pages: a loop, threads, loky, zstandard, blosc2
zram.py      the kernel's
compress.py  all of them side by side, at each size of batch
working_set.py   a whole working set in a store, and in what else could hold it
result.py    figures with their machine, as a document; two of them compared
tables.py    figures for people
pictures.py  figures as pictures

Figures are ratios of one run. A machine's absolute times mean nothing on another.
"""
