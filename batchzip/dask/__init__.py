"""batchzip in Dask (extra `dask`): a store whose pages are spread over workers, and workers' own data.

sharded_store.py   ShardedStore: pages by index, each in one of several shards, or in more
session.py         Session: a store as one client has it; shard_client.py: asking one shard; connect.py: a client of one's own
directory.py       Directory: which shards there are, and where pages are; a plugin of the scheduler
service.py         ShardService: the shards of one worker; shard.py: one of them; shard_limits.py: its memory
members.py         Members: who has which stripe; record.py: which indices were stored; wire.py: messages
probe.py           whether workers have batchzip, before anything is placed on them
survey.py          Survey: how all stores stand; page.py: as a page of Dask's dashboard
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
