"""Make a Dask client for a scheduler's address, with batchzip's own errors."""

from __future__ import annotations

from typing import Any

from distributed import Client

from batchzip.errors import ClusterLost


class OwnClient(Client):
    """A client that leaves no thread behind if it cannot connect."""

    def __init__(self, address: str, **options: Any) -> None:
        try:
            options["set_as_default"] = False
            super().__init__(address, **options)  # type: ignore[no-untyped-call]
        except BaseException:
            self.close()  # type: ignore[no-untyped-call] # does nothing if Dask closed it already
            self._loop_runner.stop()
            raise


def connect(address: str, timeout_s: float) -> Client:
    """Return a client. Raise ClusterLost if no scheduler accepts it."""
    try:
        return OwnClient(address, timeout=timeout_s)
    except Exception as error:  # noqa: BLE001 - Dask raises all kinds
        raise _no_scheduler(address, error) from None


async def aconnect(address: str, timeout_s: float) -> Client:
    """Do what `connect` does, for an asynchronous client."""
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
