"""Types, names, representations and imports of the clients."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import toondb_client
from tests.server.raw import Raw, settled
from tests.support.blocking import LOOPS, make_runner
from tests.support.daemon import Daemon, child_environ
from toondb_client import AsyncIpcClient, AsyncTransaction, IpcClient, Row, Transaction

ROOT = Path(__file__).parents[2]


def run(code: str, *args: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code, *args],
        env=child_environ({"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protocol'}"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_type_checker_accepts_what_users_write() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(Path(__file__).with_name("typed_usage.py"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def _parameters(owner: type, name: str) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(getattr(owner, name)).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


@pytest.mark.parametrize(("sync", "twin"), [(IpcClient, AsyncIpcClient), (Transaction, AsyncTransaction)])
def test_both_clients_have_the_same_methods(sync: type, twin: type) -> None:
    def names(owner: type) -> set[str]:
        return {name for name in dir(owner) if not name.startswith("_")}

    assert names(sync) == names(twin)
    for name in names(sync):
        if callable(getattr(sync, name)):
            assert _parameters(sync, name) == _parameters(twin, name), name
        assert inspect.getdoc(getattr(sync, name)), name


def test_rows_are_tuples() -> None:
    row = Row((b"k", b"v"))
    for twin in (pickle.loads(pickle.dumps(row)), copy.copy(row), copy.deepcopy(row)):
        assert type(twin) is Row
        assert twin == row == (b"k", b"v")
    assert repr(row) == "(b'k', b'v')"
    assert hash(row) == hash((b"k", b"v"))
    wrong: Any
    for wrong in ("other", 2, b"key"):
        with pytest.raises((IndexError, TypeError)):
            row[wrong]


def test_representations_and_pickling(server: Daemon) -> None:
    with IpcClient.connect(server.socket) as client:
        assert repr(client) == f"<IpcClient {server.socket}>"
        transaction = client.begin_transaction()
        assert repr(transaction) == f"<Transaction {transaction.id} active>"
        transaction.abort()
        assert repr(transaction) == f"<Transaction {transaction.id} aborted>"
        for item in (client, transaction):
            for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError):
                    attempt(item)
        with pytest.raises(TypeError, match="socket path"):
            copy.copy(client)
    assert repr(client) == f"<IpcClient {server.socket} closed>"


def test_the_package_is_lazy() -> None:
    assert dir(toondb_client) == sorted(set(dir(toondb_client)))
    assert set(toondb_client.__all__) <= set(dir(toondb_client))
    with pytest.raises(AttributeError, match="nothing"):
        toondb_client.nothing  # noqa: B018
    found = run(
        "import sys\n"
        "from toondb_client import IpcClient\n"
        "heavy = {'lmdb', 'asyncio', 'uvloop', 'multiprocessing', 'ctypes', 'toondb', 'toondb_server'}\n"
        "print(sorted(heavy & set(sys.modules)))",
    )
    assert found.stdout == "[]\n", found


LEAK_CHECK = """
import asyncio, gc, os, sys, tracemalloc
from toondb_client import AsyncIpcClient, IpcClient

def once(direct):
    with IpcClient.connect(sys.argv[1], direct_reads=direct) as client:
        client.put("a", b"1")
        list(client.scan())
        with client.transaction() as transaction:
            transaction.put("b", b"1")
        client.pipeline().get("a").execute()
        str(client.query("a"))

async def async_once(direct):
    async with await AsyncIpcClient.connect(sys.argv[1], direct_reads=direct) as client:
        await client.put("a", b"1")
        [row async for row in client.scan()]
        async with client.transaction() as transaction:
            await transaction.put("b", b"1")
        await client.pipeline().get("a").execute()
        await client.query("a").execute()

def count():
    gc.collect()
    return len(gc.get_objects()), len(os.listdir("/proc/self/fd"))

def measure():
    for turn in range(100):
        once(turn % 2 == 1)
async def async_measure():
    for turn in range(100):
        await async_once(turn % 2 == 1)

measure(); asyncio.run(async_measure())
before = count()
measure()
middle = count()
asyncio.run(async_measure())
after = count()
assert middle[1] == before[1] == after[1], (before, middle, after)
assert middle[0] - before[0] < 50 and after[0] - middle[0] < 50, (before, middle, after)
print("clean")
"""


def test_many_connects_leave_no_object_and_no_descriptor(server: Daemon) -> None:
    found = run(LEAK_CHECK, str(server.socket), options=("-W", "error", "-X", "dev"))
    assert (found.stdout, found.stderr) == ("clean\n", ""), found.stderr
    with Raw(server.socket) as observer:
        settled(observer)


@pytest.mark.parametrize("kind", LOOPS)
def test_an_abandoned_async_client_is_quiet(server: Daemon, kind: str) -> None:
    errors: list[dict[str, Any]] = []

    async def main() -> None:
        client = await AsyncIpcClient.connect(server.socket)
        transaction = await client.begin_transaction()
        with pytest.warns(ResourceWarning, match="neither committed nor aborted"):
            del transaction
        assert await client.get("a") is None
        await client.close()

    with make_runner(kind, errors) as runner:
        runner.run(main())
    assert errors == []
    with Raw(server.socket) as observer:
        settled(observer)
