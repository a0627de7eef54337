"""What the usage samples say is so."""

import numpy as np
from usage_samples import by_name, keep_and_give_back, read_errors

from batchzip import Engine, SwapStore


def test_the_samples_do_what_they_say() -> None:
    pages = np.arange(4 * 4096, dtype=np.uint16).astype(np.uint8).reshape(4, 4096)
    assert keep_and_give_back(pages) == pages[0].tobytes()
    with Engine("lz4", backend="sequential") as engine, SwapStore(engine) as store:
        assert read_errors(store) == f"{1 << 40} is not there"
        assert by_name(store) == 16
