"""A real uvicorn with our protocol, and clients that speak to it byte by byte."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from service.app import create_app
from service.model.holder import ModelHolder
from service.server.protocol import ConnectionLimits, StrictProtocol
from service.settings import Settings


@contextmanager
def serving(holder: ModelHolder, limits: ConnectionLimits, **settings: Any) -> Iterator[tuple[int, uvicorn.Server]]:
    class Protocol(StrictProtocol):
        pass

    Protocol.limits = limits
    app = create_app(Settings(**settings), holder.current)
    with serving_app(app, Protocol) as running:
        yield running


@contextmanager
def serving_app(app: ASGIApp, protocol: type[StrictProtocol]) -> Iterator[tuple[int, uvicorn.Server]]:
    # With a WebSocket implementation, as in the service.
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, ws="wsproto", timeout_keep_alive=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()[1], server
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def answer(connection: socket.socket) -> tuple[int, bytes, bytes]:
    """Read until the connection closes; return the status, headers and body of the only response."""
    connection.settimeout(10)
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head.lower(), body


def exchange(port: int, *packets: bytes, pause: float = 0.1) -> bytes:
    """Send packets one by one and return all that the server sends until it closes."""
    received = b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        for packet in packets:
            try:
                connection.sendall(packet)
            except OSError:
                break
            time.sleep(pause)
        with suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
    return received
