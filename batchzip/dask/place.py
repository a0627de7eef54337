"""Place: where one shard is, whether it is still there, and asking it.

Dask's own call of an actor's method waits for ever where the worker dies at the wrong moment, or hangs.
So the worker is asked directly, and while it is silent the scheduler's word on it is looked at: it
learns of a death by the connection that breaks. A worker that answers nothing for the time that is
allowed is given up, too.

Once given up, a place stays so, whatever becomes of the worker: a shard that came back would have missed
what was stored and invalidated meanwhile.

Thread-safe: what changes is one reference, once.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from concurrent.futures import Future as Answer
from typing import TYPE_CHECKING, Any

from distributed.protocol import to_serialize

from batchzip.dask.shard import Failed, Shard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distributed import Client, Future

_LOOK_S = 0.2
"""Seconds between two looks at what the scheduler knows of a worker that has not answered yet."""

_POLL_S = 0.02
"""Seconds between two looks at whether a new actor was made."""


class GoneError(Exception):
    """A shard cannot be reached any more; its text says why."""


class Place:
    """A shard on the worker at `address`."""

    def __init__(self, client: Client, address: str, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        """Seconds it has for an answer."""
        self.pid = 0
        self.lost: str | None = None
        """Why it was given up."""
        self._client = client
        self._future: Future[Any] = client.submit(
            Shard, actor=True, workers=[address], allow_other_workers=False, pure=False
        )

    def ask(self, method: str, *arguments: object) -> Answer[Any]:
        """Begin a call of a method of the shard; `answer` waits for it."""
        loop: Any = self._client.loop
        asking = self._ask(method, arguments)
        try:
            return asyncio.run_coroutine_threadsafe(asking, loop.asyncio_loop)
        except RuntimeError:  # the loop is closed
            asking.close()
            refused: Answer[Any] = Answer()
            refused.set_exception(GoneError("the client is closed"))
            return refused

    def answer(self, asked: Answer[Any], left_s: float) -> Any:
        """Wait for an answer, and give it; a `Failed` is one, too.

        Raises GoneError, and gives the place up, where there is none in the `left_s` seconds that are left
        of its time, or can be none any more.
        """
        try:
            return asked.result(left_s)
        except GoneError as gone:
            self.lost = self.lost or str(gone)
        except TimeoutError:
            asked.cancel()
            self.lost = self.lost or f"no answer in {self.timeout_s:g} s"
        except CancelledError:
            self.lost = self.lost or "the client was closed"
        raise GoneError(self.lost)

    async def _ask(self, method: str, arguments: Sequence[object]) -> object:
        if self.lost is not None:
            raise GoneError(self.lost)
        call = asyncio.ensure_future(self._call(method, arguments))
        try:
            while not (await asyncio.wait({call}, timeout=_LOOK_S))[0]:
                self._check()
            return call.result()
        except GoneError:
            raise
        except Exception as error:  # whatever it is, there will be no answer
            raise GoneError(f"{type(error).__name__}: {error}") from error
        finally:
            call.cancel()

    def _check(self) -> None:
        if self._client.status != "running":
            raise GoneError("the scheduler is gone")
        if self._future.status not in ("pending", "finished"):
            raise GoneError("the worker was lost")

    async def _call(self, method: str, arguments: Sequence[object]) -> object:
        while self._future.status == "pending":  # noqa: ASYNC110 - Dask has no event for it
            await asyncio.sleep(_POLL_S)
        worker: Any = self._client.rpc(self.address)
        message = await worker.actor_execute(
            actor=self._future.key,
            function=method,
            args=[to_serialize(argument) for argument in arguments],
        )
        return message["result"] if message["status"] == "OK" else Failed(message["exception"])

    def release(self) -> None:
        """Let go of the shard: its worker forgets it."""
        self._future.release()


__all__ = ["Failed", "GoneError", "Place"]
