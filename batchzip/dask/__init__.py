"""batchzip in Dask (extra `dask`): a store whose pages are spread over workers, and workers' own data.

sharded_store.py   ShardedStore: pages by index, in the workers' memory; its face
session.py         Session: one client's use of it; place.py: asking one shard; record.py: what is stored
directory.py       Directory: which shards there are, and where pages are; in the scheduler
service.py         ShardService: a worker's shards; shard.py: one of them
members.py         Members: which shard has which stripe; wire.py: the form of messages
probe.py           whether batchzip is on the workers; shard_limits.py: how much a shard may have
worker_data.py     WorkerData: a worker's data, compressed in RAM before anything spills to disk
compressed_values.py, memory_limits.py   its values that are not live; how much of each kind there may be
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
