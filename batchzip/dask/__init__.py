"""batchzip in Dask (extra `dask`): a store spread over workers, and compressed worker data.

sharded_store.py      ShardedStore: pages by index, each in one or more shards
session.py            Session: one client's use of a store
shard_client.py       ShardClient: sends requests to one shard
connect.py            makes a client for a scheduler's address
directory.py          Directory: the scheduler plugin that knows the shards and where pages are
stripe_map.py         StripeMap: what the directory knows of one store
service.py            ShardService: the shards of one worker
shard.py              Shard: one of them
shard_limits.py       how much memory a shard's pool may use
members.py            Members: which shards own which stripe
record.py             Record: which indices are stored
wire.py               the format of messages
probe.py              whether workers have a matching batchzip
survey.py             Survey: figures of all stores
page.py               the survey as a page of Dask's dashboard
worker_data.py        WorkerData: a worker's data, compressed in RAM before it spills to disk
compressed_values.py  CompressedValues: the values of a WorkerData that are not live
whole_values.py       serialisation of values that Dask's own would change
sampling.py           Sampler: the best codec for a buffer
raw_files.py          RawFiles: buffers that do not compress
memory_limits.py      MemoryLimits: bytes of live, compressed and spilled values
preload.py            WorkerData for the workers of `dask worker`
worker_end.py         closes shards and data with their worker

Engines use a cluster through `backend=batchzip_dask.DaskBackend(…)`, which is separate from this.
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
