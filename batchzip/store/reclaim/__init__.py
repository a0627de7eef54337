"""How a store makes room: cold pages go to the backing file or become smaller.

shrinker.py    Shrinker: keeps the pool below its limits, in the background
writeback.py   pages from the pool to the backing file
cleaning.py    objects of sparse zones of the file move, so that whole zones become free
recompress.py  idle or large pages are compressed again with a stronger algorithm
"""
