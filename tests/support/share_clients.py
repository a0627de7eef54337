"""Clients that speak to the server of a shared store by hand."""

import socket

from batchzip import (
    SwapStore,
)


def connect(store: SwapStore) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(store.share().address)
    return connection
