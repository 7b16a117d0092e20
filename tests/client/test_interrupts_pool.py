"""Ctrl-C anywhere in a call of the sync client: no connection of the pool is lost, and nobody waits for ever for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.raw import Raw, settled
from tests.support.ctrl_c import cut_at_every_step, nothing_reported
from tests.support.daemon import SECONDS, Daemon, child_environ
from toondb_client import IpcClient
from toondb_protocol.errors import PoolTimeoutError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with nothing_reported():
        yield


@pytest.fixture(autouse=True)
def nothing_left(server: Daemon) -> Iterator[None]:
    """The daemon has no connection, cursor or transaction of those who are gone."""
    yield
    with Raw(server.socket) as observer:
        settled(observer)


def outcome(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, in a thread of its own: this one must not wait for ever."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert results, "it failed, or waits for ever"
    return results[0]


def _transaction(client: IpcClient) -> None:
    with client.transaction() as transaction:
        transaction.get("a")


def _scans_given_up(client: IpcClient) -> None:
    next(iter(client.scan("n/")))
    with client.transaction() as transaction:
        next(iter(transaction.scan("n/")))
        transaction.get("a")


OPERATIONS: dict[str, Callable[[IpcClient], object]] = {
    "get": lambda client: client.get("a"),
    "put_many": lambda client: client.put_many({"b": b"2"}),
    "pipeline": lambda client: client.pipeline().get("a").execute(),
    "scan": lambda client: list(client.scan()),
    "transaction": _transaction,
    "scans_given_up": _scans_given_up,
}


@pytest.mark.parametrize("fresh", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_ctrl_c_at_every_step_of_a_call(server: Daemon, name: str, fresh: bool) -> None:
    with IpcClient.connect(server.socket, max_connections=1, timeout=SECONDS / 2) as client:
        client.put("a", b"1")
        client.put_many({f"n/{number}": bytes(1000) for number in range(100)})  # more than the first window of a scan

        def work() -> None:
            if fresh:
                client._pool.drop_idle()
            OPERATIONS[name](client)

        steps = 0
        for steps in cut_at_every_step(work):
            # The only connection is there, and its replies are this call's own.
            assert outcome(lambda: (client.get("a"), client.get("missing"))) == (b"1", None), steps
        assert steps > 30


def test_ctrl_c_at_every_step_of_waiting_for_a_connection(server: Daemon) -> None:
    with IpcClient.connect(server.socket, max_connections=1, timeout=0.001) as impatient:
        pool = impatient._pool
        held = pool.acquire(0)

        def wait() -> None:
            with contextlib.suppress(PoolTimeoutError):
                impatient.get("a")

        def give_and_take() -> bool:
            pool.release(held)
            return pool.acquire(0) is held

        steps = 0
        for steps in cut_at_every_step(wait):
            assert outcome(give_and_take), steps
        assert steps > 20
        pool.release(held)


def test_a_connection_that_nobody_has_is_given_to_who_waits(server: Daemon) -> None:
    """Nobody says that it is gone: whoever was cut could not."""
    with IpcClient.connect(server.socket, max_connections=1, timeout=SECONDS) as client:
        held = [client._pool.acquire(0)]
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(client.get("missing")))
        thread.start()
        while not client._pool._waiting:
            assert thread.is_alive()
        held.clear()
        thread.join(SECONDS)
        assert results == [None]


STORM = """
import threading, warnings
from tests.support.ctrl_c import reported, storm
from toondb_client import IpcClient

warnings.simplefilter("ignore", ResourceWarning)
client = IpcClient.connect({path!r}, max_connections=3, timeout={seconds})
client.put("a", b"1")
ended = False

def others():
    while not ended:
        assert client.get("a") == b"1"

def work():
    while True:
        client.get("a")
        client.put_many({{"b": b"2"}})
        with client.transaction() as transaction:
            transaction.get("a")
        client._pool.drop_idle()
        list(client.scan())

threads = [threading.Thread(target=others) for _ in range(3)]
for thread in threads:
    thread.start()
with reported() as errors:
    storm(work, {cuts}, 0.002, 5)
ended = True
for thread in threads:
    thread.join()
held = [client.begin_transaction() for _ in range(3)]
print([transaction.get("a") for transaction in held], errors)
for transaction in held:
    transaction.abort()
client.close()
"""


def test_a_storm_of_ctrl_c(server: Daemon) -> None:
    code = textwrap.dedent(STORM.format(path=os.fspath(server.socket), seconds=SECONDS / 3, cuts=1000))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=ROOT,
        env=child_environ(),
    )
    assert (done.stdout, done.stderr) == (f"{[b'1'] * 3} []\n", "")
