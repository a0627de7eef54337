"""batchzip in Dask (extra `dask`): a store whose pages are spread over workers, and workers' own data.

sharded_store.py   ShardedStore: pages by index, each in one of several shards
shard.py           Shard: one of them, an actor in a worker
place.py           Place: where a shard is, whether it is still there, and asking it
record.py          Record: which indices were stored, to say what is lost
worker_data.py     WorkerData: a worker's data, compressed in RAM before anything spills to disk
compressed_values.py  its values that are not live; sampling.py, raw_files.py: how each is kept
memory_limits.py   how much of each kind there may be
preload.py         WorkerData for the workers of `dask worker`
worker_end.py      what is closed with a worker

(Batches of an engine go to a cluster by `backend=batchzip_dask.DaskBackend(…)`, which is another thing.)
"""

from __future__ import annotations

from batchzip.errors import MissingExtra

try:
    import distributed as _distributed
except ModuleNotFoundError:
    raise MissingExtra("batchzip.dask", "distributed", "dask") from None
else:
    del _distributed

from batchzip.dask.sharded_store import ShardedStore, ShardStatus
from batchzip.dask.worker_data import WorkerData

__all__ = ["ShardStatus", "ShardedStore", "WorkerData"]
