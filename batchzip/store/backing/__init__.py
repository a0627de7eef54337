"""The backing file: where a store writes compressed pages that are rarely used.

backing_file.py   BackingFile: space in the file, reads and writes of objects
file_io.py        the descriptor, file object or stream that the I/O goes through
claims.py         one store per file at a time
positions.py      positions of objects in the file
"""
