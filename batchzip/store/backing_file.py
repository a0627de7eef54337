import os, threading, tempfile
import numpy as np
class BackingFile:  # a shim while the real one is written
    def __init__(self, target, *, page_size, max_bytes=None):
        self.data = {}; self.at = 0; self.lock = threading.Lock(); self.max_bytes = max_bytes
    def write(self, buffers):
        with self.lock:
            out = []
            for b in buffers:
                b = bytes(b); self.at += len(b)
                p = (self.at << 21) | (len(b) - 1); self.data[p] = b; out.append(p)
            return np.array(out, np.uint64)
    def read(self, positions):
        with self.lock:
            return [self.data.get(int(p), b"") for p in positions]
    def free(self, positions):
        with self.lock:
            for p in positions: del self.data[int(p)]
    def recount(self, live):
        with self.lock:
            live = set(map(int, live)); self.data = {p: b for p, b in self.data.items() if p in live}
    @property
    def held_bytes(self): return sum(map(len, self.data.values()))
    def check_invariants(self, live): assert sorted(map(int, live)) == sorted(self.data)
    def close(self): self.data = {}
