"""The floor: the least that a uvloop server can do for a request.

It answers whatever arrives with a constant of ``REPLY_SIZE`` bytes: no framing, no lookup, no storage.
Run as ``python -m benchmarks.echo SOCKET REPLY_SIZE``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import cast

import uvloop


class Echo(asyncio.Protocol):
    """One connection. Requests must not be pipelined: two in one read would get one answer."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:
        self._write(self._reply)


async def serve(path: str, reply_size: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reply = b"e" * reply_size
    server = await loop.create_unix_server(lambda: Echo(reply), path, backlog=1024)
    notify = os.environ.get("NOTIFY_SOCKET")
    if notify:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(b"READY=1", notify)
    await stop.wait()
    server.close()


def main() -> None:
    uvloop.run(serve(sys.argv[1], int(sys.argv[2])))


if __name__ == "__main__":
    main()
