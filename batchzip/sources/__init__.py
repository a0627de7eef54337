"""Where the command line and the benchmarks get pages and values from.

process_memory.py   the anonymous memory of another process
file_pages.py       a file of any size, as pages
sampling.py         samples of either, without reading all of it
workload.py         a small program in a process of its own, to take memory from
value_files.py      values in JSON, CSV and other files
"""
