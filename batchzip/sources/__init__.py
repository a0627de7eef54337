"""Sources: pages and values for the command line and the benchmarks.

process_memory.py   the anonymous memory of another process
file_pages.py       a file of any size, as pages
sampling.py         samples of either, without reading all of it
workload.py         a child process with typical data, whose memory can be read
value_files.py      values in JSON lines, pickles, folders and SQLite files
"""
