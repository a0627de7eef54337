"""Smoke test of an installed wheel: the plug-ins are found, a page goes out and comes back."""

import platform
from pathlib import Path

import batchzip
from batchzip.core import build, staleness

assert batchzip.algorithms() == ["lz4", "lz4hc", "zstd"], batchzip.algorithms()
assert batchzip.backends() == ["dask", "sequential", "workers"], batchzip.backends()
assert (Path(batchzip.__file__).parent / "py.typed").exists()
assert build.PROFILE == "release", build.PROFILE
assert not staleness.is_stale()
page = bytes(range(256)) * 16
for algorithm in batchzip.algorithms():
    for backend in ("sequential", "workers")[: 2 if platform.machine() == "x86_64" else 1]:
        with batchzip.Engine(algorithm, backend=backend) as engine:
            assert engine.wait_ready()
            with batchzip.SwapStore(engine) as store:
                store.store(7, [page] * 100)
                assert store.load(42) == page
                assert store.load_many([7, 106]).tobytes() == page * 2
try:
    batchzip.Engine(backend="dask")
except batchzip.MissingExtra as error:
    assert error.command == "pip install 'batchzip[dask]'", error
else:
    raise AssertionError("the extra is not installed here")
print("smoke test: ok")
