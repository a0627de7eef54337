"""Connect: a Dask client of one's own, for an address; and errors of ours where there can be none."""

from __future__ import annotations

from typing import Any

from distributed import Client

from batchzip.errors import ClusterLost


class OwnClient(Client):
    """A client that leaves no thread behind where it cannot connect."""

    def __init__(self, address: str, **options: Any) -> None:
        try:
            super().__init__(address, set_as_default=False, **options)  # type: ignore[no-untyped-call] # theirs
        except BaseException:
            self.close()  # type: ignore[no-untyped-call] # nothing, where Dask gave it up by itself
            self._loop_runner.stop()
            raise


def connect(address: str, timeout_s: float) -> Client:
    """Return a client. Raise ClusterLost where none can be: no scheduler, no certificate, another version."""
    try:
        return OwnClient(address, timeout=timeout_s)
    except Exception as error:  # noqa: BLE001 - Dask raises all kinds
        raise _no_scheduler(address, error) from None


async def aconnect(address: str, timeout_s: float) -> Client:
    """Return an asynchronous client, as `connect`."""
    try:
        client = OwnClient(address, timeout=timeout_s, asynchronous=True)
        try:
            await client
        except BaseException:
            await client.close()  # type: ignore[no-untyped-call]
            raise
    except Exception as error:  # noqa: BLE001 - Dask raises all kinds
        raise _no_scheduler(address, error) from None
    return client


def _no_scheduler(address: str, error: Exception) -> ClusterLost:
    return ClusterLost(f"no scheduler at {address}: {error}")
