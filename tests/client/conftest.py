"""Fixtures of the client tests: one daemon for those that do not harm it, and checks that nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.blocking import LOOPS, blocking_client, make_runner
from tests.support.daemon import Daemon
from tests.support.proxy import Proxy
from toondb_client import IpcClient

Connect = Callable[..., Any]


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[Daemon]:
    """A daemon for all tests that leave it usable."""
    parent = Path(tempfile.mkdtemp(prefix="toondb-"))
    try:
        with Daemon(parent / "db", "--max-clients", "200") as daemon:
            yield daemon
    finally:
        shutil.rmtree(parent)


@pytest.fixture
def server(shared_daemon: Daemon) -> Daemon:
    """The shared daemon with no keys in it."""
    with IpcClient.connect(shared_daemon.socket) as client:
        client.delete_many([key for key, _ in client.scan()])
    return shared_daemon


@pytest.fixture
def proxy(server: Daemon) -> Iterator[Proxy]:
    """A proxy before the shared daemon."""
    with Proxy(server.socket) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def warmed_up() -> None:
    """What libuv opens once for the whole process must not look like a leak."""
    with make_runner("uvloop", []) as runner:
        runner.run(asyncio.sleep(0))


@pytest.fixture
def no_leftovers(warmed_up: None) -> Iterator[None]:
    """Fails when the test leaves descriptors or threads."""
    gc.collect()
    fds, threads = open_fds(), threading.active_count()
    yield
    gc.collect()
    assert open_fds() == fds
    assert threading.active_count() <= threads  # one of a test before may have ended meanwhile


@pytest.fixture(params=["sync", *LOOPS])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Connects either client; what it gives behaves as the sync one. Closes all at the end."""
    clients: list[Any] = []
    errors: list[dict[str, Any]] = []
    if request.param == "sync":

        def connect(target: Any, **options: Any) -> Any:
            clients.append(IpcClient.connect(target, **options))
            return clients[-1]

        yield connect
        for client in clients:
            client.close()
        return
    with make_runner(request.param, errors) as runner:

        def connect(target: Any, **options: Any) -> Any:
            clients.append(blocking_client(runner, target, **options))
            return clients[-1]

        yield connect
        for client in clients:
            client.close()
        gc.collect()
    assert errors == []
