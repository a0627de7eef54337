"""Clients that speak to the server of a shared store by hand, and the pages that are shared."""

import json
import socket
from pathlib import Path

from support.store_pages import ZEROS, noise, text, word

from batchzip import SwapStore

PAGES = [text(0), noise(1), ZEROS, word(3), text(4)]


def connect(store: SwapStore) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect(store.share().address)
    return connection


def ask(connection: socket.socket, **request: object) -> None:
    data = json.dumps(request).encode()
    connection.sendall(len(data).to_bytes(4, "little") + data)


def descriptors() -> set[str]:
    """Return the numbers of the descriptors that this process has."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}
