"""Reclaim: a store frees memory by moving cold pages to the backing file or recompressing them.

shrinker.py    Shrinker: keeps the pool below its limits, in the background
writeback.py   moves pages from the pool to the backing file
cleaning.py    moves objects out of sparse zones of the file, so that whole zones become free
recompress.py  recompresses idle or large pages with a stronger algorithm
"""
