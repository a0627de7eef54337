"""Usage as a user's type checker sees it. mypy --strict checks it, and a test runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

import batchzip

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def keep_and_give_back(pages: NDArray[np.uint8]) -> bytes:
    with batchzip.Engine("lz4", backend="sequential") as engine:
        batch = batchzip.CompressBatch(pages)
        engine.compress(batch)
        assert_type(batch.output(0), memoryview)
        with batchzip.SwapStore(engine, max_pool_bytes=1 << 24) as store:
            store.store(0, pages)
            assert_type(store.load(0), bytes)
            room = bytearray(4096)
            store.load(0, out=room)
            assert_type(store.counters, batchzip.Counters)
            assert_type(store.counters.stored_pages, int)
            group = store.group("tiles", max_bytes=1 << 20)
            assert_type(group, batchzip.Group)
            group.store(0, [bytes(page) for page in pages])
            assert_type(store.recompress("zstd", level=3), batchzip.Recompression)
            assert_type(store.check(), batchzip.StoreReport)
            with batchzip.attach(store.share()) as view:
                assert_type(view, batchzip.StoreView)
                return view.load(0)


def read_errors(store: batchzip.SwapStore) -> str:
    try:
        store.load(1 << 40)
    except batchzip.PageNotStored as missing:
        return f"{missing.index} is not there"
    except batchzip.CorruptPage as damage:
        return f"{damage.index} is damaged"
    return "it is there"


def by_name(store: batchzip.SwapStore) -> int:
    with batchzip.CompressedMapping(store) as mapping:
        mapping["a"] = b"some bytes"
        mapping["b", 2] = memoryview(b"others")
        return sum(len(value) for value in mapping.values())


def each_algorithm_has_parameters_of_its_own(name: str) -> None:
    batchzip.Engine().close()
    batchzip.Engine("zstd", level=1, dictionary=None, workers=2, backend="threads").close()
    batchzip.Engine("lz4", acceleration=2).close()
    batchzip.Engine("lz4", high_compression=3, shuffle=4).close()
    batchzip.Engine("lz4hc", level=3, page_size=8192).close()
    batchzip.Engine("snappy", verify=True).close()
    batchzip.Engine(name).close()
    batchzip.Engine("of-a-plug-in", strength=7)
    batchzip.Engine("zstd", level="three")  # type: ignore[call-overload]
    batchzip.Engine("lz4", acceleration=1.5)  # type: ignore[call-overload]
    batchzip.Engine("lz4", page_size="4096")  # type: ignore[call-overload]
    batchzip.Engine(4)  # type: ignore[call-overload]


def parts_are_there() -> None:
    batchzip.metrics.collector  # noqa: B018 - that it is known
    batchzip.dask.WorkerData  # noqa: B018
    batchzip.advice.advise  # noqa: B018


def what_to_keep_values_in(cache: dict[str, bytes]) -> str:
    advice = batchzip.advise_values(cache, sample_bytes=1 << 20)
    batchzip.advise_values([1, "two", None])
    batchzip.advise_values(5)  # type: ignore[arg-type]
    return advice.code if advice.recommended.of_dict < 0.5 else advice.sentence
