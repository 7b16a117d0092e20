"""Memory and start-up time: rows that look at fresh server processes instead of driving load.

Memory operations are ``rss`` and ``pss``, with a number of open connections. Start operations are
``empty`` (a new folder) and ``loaded`` (a folder that already holds the records).
"""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.children import Child, ChildError
from benchmarks.crew import Crew, CrewError
from benchmarks.drivers import ping_frame
from benchmarks.report import CellResult
from benchmarks.rows import Cell
from benchmarks.servers import Servers, memory_mb, missing
from benchmarks.timing import Samples, turns

__all__ = ["measure_memory", "measure_start", "raise_descriptor_limit"]


def raise_descriptor_limit(wanted: int = 4096) -> None:
    """Allow this process, and the servers it starts, that many open descriptors where the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _connect(stack: contextlib.ExitStack, address: str, count: int, request: bytes) -> None:
    """Open connections that stay open with ``stack``; each has had one answer, so it is fully set up."""
    channels = []
    for _ in range(count):
        channel = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        # Kernel-side timeouts keep the socket blocking: a non-blocking connect() to a Unix socket whose
        # backlog is full fails at once with EAGAIN instead of waiting for the server to accept.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            channel.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 30, 0))
        channel.connect(address)
        channel.sendall(request)
        channels.append(channel)
    for number, channel in enumerate(channels):
        answer = channel.recv(4096)
        if not answer or answer[:1] in (b"\x81", b"-"):
            raise ChildError(f"connection {number + 1} of {count} was refused: {answer[:200]!r}")


def measure_memory(cells: Sequence[Cell], servers: Servers, rounds: int) -> list[CellResult]:
    """Start each server in a new folder and read its memory, idle and with open connections."""
    values: dict[str, list[float]] = defaultdict(list)
    failures: dict[str, str] = {}
    kinds = list(dict.fromkeys(cell.server for cell in cells))
    for kind in kinds:
        if missing(kind):
            failures[kind] = "not installed"
    for _, kind in turns([kind for kind in kinds if kind not in failures], rounds):
        request = b"PING\r\n" if kind == "redis" else ping_frame()
        try:
            child, address = servers.start(kind)
            assert child is not None
            for count in sorted({cell.processes for cell in cells if cell.server == kind}):
                with contextlib.ExitStack() as stack:
                    _connect(stack, address, count, request)
                    used = memory_mb(child.pid)
                for cell in cells:
                    if cell.server == kind and cell.processes == count and cell.operation in used:
                        values[cell.label].append(used[cell.operation])
            servers.stop(child)
        except (ChildError, OSError) as error:
            failures[kind] = f"failed: {error}"
    return [
        CellResult(cell.label, status=failures[cell.server])
        if cell.server in failures
        else CellResult(cell.label, Samples(tuple(values[cell.label])))
        if values[cell.label]
        else CellResult(cell.label, status="not reported by this kernel")
        for cell in cells
    ]


def measure_start(cells: Sequence[Cell], servers: Servers, crew: Crew, rounds: int) -> list[CellResult]:
    """Start each server again and again, and take the time until it says READY=1."""
    values: dict[str, list[float]] = defaultdict(list)
    failures: dict[str, str] = {cell.label: "not installed" for cell in cells if missing(cell.server)}
    folders = {}
    for cell in cells:
        if cell.operation == "loaded" and cell.label not in failures:
            try:
                folders[cell.label] = servers.loaded_folder(cell.server, crew)
            except (ChildError, CrewError) as error:
                failures[cell.label] = f"failed: {error}"
    for _, cell in turns([cell for cell in cells if cell.label not in failures], rounds):
        try:
            child: Child | None
            child, _ = servers.start(cell.server, folders.get(cell.label))
            assert child is not None
            values[cell.label].append(child.ready_seconds)
            servers.stop(child)
        except ChildError as error:
            failures[cell.label] = f"failed: {error}"
    return [
        CellResult(cell.label, status=failures[cell.label])
        if cell.label in failures
        else CellResult(cell.label, Samples(tuple(values[cell.label])))
        for cell in cells
    ]
