"""Probe: whether workers have a batchzip that understands this one's messages.

The question is text that a function of the standard library evaluates. So it needs nothing of
batchzip where it arrives, and works with any version of Python. It runs in a thread, so that the
worker's event loop is free while batchzip is imported, and it never raises. A worker without
batchzip therefore answers, too, and keeps its tasks and futures.

    probe           asks workers by RPC, from a client or from the scheduler's process
    check_workers   asks them through the scheduler, and raises
    check_scheduler asks the scheduler itself, and raises
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypedDict, cast

from distributed import Client
from distributed.protocol import Serialize, Serialized, deserialize, pickle

from batchzip import __version__
from batchzip.arguments.checks import as_seconds, check_kind
from batchzip.errors import BackendUnavailable, BadArgument, ClusterLost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping


PROTOCOL = 1
"""Version of the messages between client, scheduler and workers. It changes with their format."""

TIMEOUT_S = 20.0
"""Seconds that a worker has to answer. A cold import of batchzip takes a second of an idle CPU."""

_AT_ONCE = 64
"""Workers that are asked at the same time."""

SILENT = "no answer"

_QUESTION = """
import importlib, sys
answer = {
    "python": "%d.%d.%d" % sys.version_info[:3], "executable": sys.executable,
    "version": None, "protocol": None, "error": None,
}
try:
    importlib.invalidate_caches()  # batchzip may have been installed a moment ago
    import batchzip
    if batchzip.__spec__ is not None and batchzip.__spec__.origin is None:
        raise ImportError("only a folder of that name exists: %s" % list(batchzip.__path__))
    answer["version"] = str(batchzip.__version__)
    from batchzip.dask.probe import PROTOCOL
    answer["protocol"] = int(PROTOCOL)
except BaseException as error:
    answer["error"] = "%s: %s" % (type(error).__name__, error)
"""


class Answer(TypedDict):
    """What a process reports about itself."""

    python: str
    executable: str
    version: str | None
    protocol: int | None
    error: str | None


def question() -> dict[str, bytes]:
    """Return the question as arguments of a worker's `run` or the scheduler's `run_function`."""
    expression = f"(lambda space: exec({_QUESTION!r}, space) or space['answer'])({{}})"
    return {
        "function": pickle.dumps(asyncio.to_thread),
        "args": pickle.dumps((eval, expression)),
    }


def why_unfit(answer: Answer) -> str | None:
    """Return why a process with this answer cannot be used, or None if it can."""
    version, needed = answer["version"], ".".join(_series(__version__))
    if version is None:
        reason = f"batchzip cannot be imported ({answer['error']})"
    elif _series(version) != _series(__version__):
        reason = f"it has batchzip {version}, but {needed} is needed"
    elif answer["protocol"] is None:
        reason = f"its batchzip {version} cannot be used ({answer['error']})"
    elif answer["protocol"] != PROTOCOL:
        reason = (
            f"its batchzip {version} speaks protocol {answer['protocol']}, but {PROTOCOL} is needed"
        )
    else:
        return None
    return f"{reason}; Python {answer['python']}, {answer['executable']}"


def _series(version: str) -> tuple[str, ...]:
    """Return the part of a version that compatible versions share."""
    parts = version.split(".")
    return tuple(parts[:2] if parts[0] == "0" else parts[:1])


def unavailable(
    reasons: Mapping[str, str], names: Mapping[str, object] | None = None
) -> BackendUnavailable:
    """Return an error that names each process of `reasons`, and says what would help."""
    lines = [
        f"{address}{_named(address, names or {})}: {reason}" for address, reason in reasons.items()
    ]
    return BackendUnavailable(
        f"batchzip {__version__} cannot work with {len(lines)} of the cluster's processes. Install "
        f"it in their environment: pip install 'batchzip[dask]=={__version__}'\n  "
        + "\n  ".join(lines)
    )


def _named(address: str, names: Mapping[str, object]) -> str:
    name = names.get(address, address)
    return "" if name == address else f" (named {name})"


async def probe(
    rpc: Callable[[str], Any], addresses: Iterable[str], timeout_s: float = TIMEOUT_S
) -> dict[str, str]:
    """Ask workers. Return by address why workers cannot be used. Usable workers are left out.

    `rpc(address)` returns an object with the coroutine `run`, as `scheduler.rpc` and `client.rpc`
    do. Await this in their event loop. A worker that is gone, or does not answer in time, cannot be
    used.
    """
    room = asyncio.Semaphore(_AT_ONCE)

    async def ask(address: str) -> str | None:
        async with room:
            return await _reason(rpc(address).run(**question()), timeout_s)

    asked = list(dict.fromkeys(addresses))
    reasons = await asyncio.gather(*map(ask, asked))
    return {address: reason for address, reason in zip(asked, reasons, strict=True) if reason}


async def _reason(asking: Coroutine[Any, Any, Any], timeout_s: float) -> str | None:
    """Wait for an answer. Return why its sender cannot be used, or None if it can."""
    try:
        reply = await asyncio.wait_for(asking, timeout_s)
    except TimeoutError:
        return f"{SILENT} in {timeout_s:g} s"
    except Exception as error:  # noqa: BLE001 - of the network, or of the worker
        return f"{SILENT} ({type(error).__name__}: {error})"
    return _reason_of(reply)


def _reason_of(reply: Mapping[str, Any]) -> str | None:
    if reply["status"] != "OK":
        return f"it cannot be asked ({reply.get('exception_text') or reply['status']})"
    answer = reply["result"]
    if isinstance(answer, Serialized):  # the scheduler does not deserialize by itself
        answer = deserialize(answer.header, answer.frames)
    elif isinstance(answer, Serialize):  # a worker in this process does not serialize
        answer = answer.data
    return why_unfit(cast("Answer", answer))


def check_workers(
    client: Client,
    addresses: Iterable[str] | None = None,
    timeout_s: float = TIMEOUT_S,
    *,
    must_answer: bool = True,
) -> None:
    """Raise BackendUnavailable if any of these workers (by default: all) cannot be used.

    They are asked through the scheduler. Raise ClusterLost if it does not answer. Without
    `must_answer`, a worker that does not answer in time passes: it may be busy with other tasks.
    """
    _wait(client, _check_workers, _listed(addresses), timeout_s, must_answer)


async def acheck_workers(
    client: Client,
    addresses: Iterable[str] | None = None,
    timeout_s: float = TIMEOUT_S,
    *,
    must_answer: bool = True,
) -> None:
    """Do what `check_workers` does, from any event loop, with any client."""
    await _wait_async(client, _check_workers, _listed(addresses), timeout_s, must_answer)


def check_scheduler(client: Client, timeout_s: float = TIMEOUT_S) -> None:
    """Raise BackendUnavailable if the scheduler's process cannot be used."""
    _wait(client, _check_scheduler, timeout_s)


async def acheck_scheduler(client: Client, timeout_s: float = TIMEOUT_S) -> None:
    """Do what `check_scheduler` does, from any event loop, with any client."""
    await _wait_async(client, _check_scheduler, timeout_s)


def _listed(addresses: Iterable[str] | None) -> list[str] | None:
    if isinstance(addresses, str):
        raise BadArgument(f"addresses must be a list of addresses, not one text: {addresses!r}")
    return None if addresses is None else list(addresses)


class _ThroughScheduler:
    """The RPC of a worker that the client may not reach directly."""

    def __init__(self, scheduler: Any, address: str) -> None:
        self._scheduler = scheduler
        self._address = address

    async def run(self, **arguments: object) -> Any:
        """Run a function on the worker."""
        return await self._scheduler.proxy(worker=self._address, msg={"op": "run", **arguments})


async def _check_workers(
    client: Client, addresses: list[str] | None, timeout_s: float, must_answer: bool
) -> None:
    timeout_s = as_seconds(timeout_s, "timeout_s")
    scheduler: Any = client.scheduler  # it makes its methods on access
    known = (await _answered(client, scheduler.identity(), timeout_s))["workers"]
    asked = list(known) if addresses is None else addresses
    reasons = {one: "the scheduler knows no such worker" for one in asked if one not in known}
    reasons |= await probe(
        lambda address: _ThroughScheduler(scheduler, address),
        [one for one in asked if one in known],
        timeout_s,
    )
    if not must_answer:
        reasons = {one: why for one, why in reasons.items() if not why.startswith(SILENT)}
    if reasons:
        raise unavailable(reasons, {address: one["name"] for address, one in known.items()})


async def _check_scheduler(client: Client, timeout_s: float) -> None:
    timeout_s = as_seconds(timeout_s, "timeout_s")
    scheduler: Any = client.scheduler
    asking = scheduler.run_function(**question())
    reason = _reason_of(await _answered(client, asking, timeout_s))
    if reason:
        raise unavailable({f"the scheduler at {scheduler.address}": reason})


async def _answered(client: Client, asking: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
    """Return the scheduler's answer. Raise ClusterLost without one."""
    try:
        return await asyncio.wait_for(asking, timeout_s)
    except TimeoutError:
        why = f"no answer in {timeout_s:g} s"
    except (OSError, RuntimeError) as error:  # RuntimeError: the client was closed meanwhile
        why = f"{type(error).__name__}: {error}"
    address = client.scheduler and client.scheduler.address
    raise ClusterLost(f"the Dask scheduler at {address} does not answer ({why})")


def _begin(client: Client, *, waits: bool) -> asyncio.AbstractEventLoop:
    """Return a client's event loop. Raise BadArgument for other objects, ClusterLost if closed."""
    check_kind(client, "client", Client)
    if waits and client.asynchronous:
        raise BadArgument(
            "an asynchronous Client cannot be used here: await acheck_workers or acheck_scheduler"
        )
    if client.status != "running" or client.loop is None:
        raise ClusterLost(
            f"the client is not connected to a Dask scheduler (it is {client.status})"
        )
    return client.loop.asyncio_loop  # type: ignore[attr-defined, no-any-return] # tornado's


def _wait(client: Client, ask: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    _begin(client, waits=True)
    client.sync(ask, client, *arguments)


async def _wait_async(
    client: Client, ask: Callable[..., Coroutine[Any, Any, None]], *arguments: Any
) -> None:
    loop = _begin(client, waits=False)
    asking = ask(client, *arguments)
    if loop is asyncio.get_running_loop():
        await asking
    else:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asking, loop))
