"""Clients that speak to the server of a shared store by hand."""

import socket
import time
from collections.abc import Callable

from batchzip import (
    SwapStore,
)


def connect(store: SwapStore) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(store.share().address)
    return connection


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
