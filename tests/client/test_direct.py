"""Reads from the database file: as fresh, as safe and as typed as those through the socket."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.blocking import make_runner
from tests.support.children import in_child
from tests.support.daemon import Daemon, child_environ
from toondb_client import AsyncIpcClient, IpcClient
from toondb_protocol.errors import ConfigurationError, DatabaseClosedError, SnapshotExpiredError

from .conftest import open_fds

pytestmark = pytest.mark.usefixtures("no_leftovers")

ROOT = Path(__file__).parents[2]


def test_an_acknowledged_write_is_seen(server: Daemon) -> None:
    with IpcClient.connect(server.socket, direct_reads=True) as reader, IpcClient.connect(server.socket) as writer:
        for n in range(300):
            value = b"%d" % n
            (writer if n % 2 else reader).put("k", value)
            assert reader.get("k") == value
            assert reader.get_many(["k"]) == {"k": value}
            assert next(reader.scan("k")).value == value
            assert reader.exists("k")
            with reader.transaction() as transaction:
                transaction.delete("k")
            assert reader.get("k") is None
            assert not reader.exists("k")


def test_a_write_of_another_process_is_seen(server: Daemon) -> None:
    code = """
import sys
from toondb_client import IpcClient
with IpcClient.connect(sys.argv[1]) as client:
    for line in sys.stdin:
        client.put("k", line.strip().encode())
        print("done", flush=True)
"""
    environ = child_environ({"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protocol'}"})
    with (
        IpcClient.connect(server.socket, direct_reads=True) as reader,
        subprocess.Popen(
            [sys.executable, "-W", "error", "-X", "dev", "-c", code, str(server.socket)],
            env=environ,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        for n in range(200):
            child.stdin.write(f"{n}\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
            assert reader.get("k") == b"%d" % n
        child.stdin.close()
        assert child.wait(30) == 0


def test_threads_and_several_clients(server: Daemon) -> None:
    failures: list[BaseException] = []
    stop = threading.Event()
    clients = [IpcClient.connect(server.socket, direct_reads=True) for _ in range(3)]
    # Both keys always change together: no read may see one without the other.
    clients[0].put_many({"x/a": b"0", "x/b": b"0"})

    def read(client: IpcClient) -> None:
        try:
            while not stop.is_set():
                found = client.get_many(["x/a", "x/b"])
                assert found["x/a"] == found["x/b"]
                rows = list(client.scan("x/"))
                assert [row.key for row in rows] == [b"x/a", b"x/b"]
                assert rows[0].value == rows[1].value
                assert client.get("x/a") is not None
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(clients[n % 3],)) for n in range(6)]
    for thread in threads:
        thread.start()
    for n in range(200):
        clients[n % 3].put_many({"x/a": b"%d" % n, "x/b": b"%d" % n})
    stop.set()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert failures == []


def test_closing_beside_others(server: Daemon) -> None:
    fds = open_fds()
    first, second = (IpcClient.connect(server.socket, direct_reads=True) for _ in range(2))
    first.put_many({f"{n:04}": b"x" * 100 for n in range(1000)})
    rows, other = first.scan(), second.scan()
    next(rows)
    next(other)
    first.close()
    for call in (lambda: first.get("a"), lambda: first.exists("a"), lambda: first.get_many(["a"])):
        with pytest.raises(DatabaseClosedError):
            call()
    with pytest.raises(DatabaseClosedError):
        next(first.scan())
    assert len(list(rows)) == 999  # a scan that was under way comes to its end
    third = IpcClient.connect(server.socket, direct_reads=True)
    assert second.get("0001") == third.get("0001") == b"x" * 100
    assert len(list(other)) == 999
    second.close()
    third.close()
    assert open_fds() == fds


def test_closing_while_threads_read(server: Daemon) -> None:
    for _ in range(10):
        client = IpcClient.connect(server.socket, direct_reads=True)
        client.put_many({f"{n:04}": b"x" for n in range(500)})
        results: list[BaseException] = []
        barrier = threading.Barrier(5)

        def read(client: IpcClient = client, results: list[BaseException] = results, barrier: Any = barrier) -> None:
            barrier.wait()
            try:
                while True:
                    assert client.get("0001") == b"x"
                    assert len(list(client.scan())) == 500
            except BaseException as failure:
                results.append(failure)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        barrier.wait()
        client.close()
        for thread in threads:
            thread.join()
        assert {type(error) for error in results} == {DatabaseClosedError}, results


def test_reads_go_on_while_the_daemon_is_stopped(tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon:
        client = IpcClient.connect(daemon.socket, direct_reads=True, reconnect_timeout=0.05)
        client.put("a", b"1")
    assert client.get("a") == b"1"
    assert list(client.scan()) == [(b"a", b"1")]
    with Daemon(tmp_db):
        client.put("a", b"2")
        assert client.get("a") == b"2"
    client.close()


def replace_files(folder: Path) -> None:
    """What restore and compact do: the lock file goes, a copy takes the place of the data file."""
    shutil.copy(folder / "data.mdb", folder / "data.mdb.new")
    (folder / "lock.mdb").unlink()
    (folder / "data.mdb.new").rename(folder / "data.mdb")


def test_reads_follow_replaced_files(tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon:
        client = IpcClient.connect(daemon.socket, direct_reads=True)
        client.put_many({f"{n:04}": b"old" for n in range(1000)})
        rows = client.scan()
        next(rows)
    for turn in range(3):
        replace_files(tmp_db)
        assert client.get("0001") is not None
        assert not (tmp_db / "lock.mdb").exists(), "a reader made a lock file in the middle of an exchange"
        with Daemon(tmp_db):
            client.put("0001", b"%d" % turn)
            assert client.get("0001") == b"%d" % turn
            assert next(client.scan("0001")).value == b"%d" % turn
            assert next(rows).value == b"old"  # its snapshot is of the file that was there when it began
    assert {row.value for row in rows} == {b"old"}
    del rows
    gc.collect()
    client.close()


@pytest.mark.daemon("--timeout-ms", "50")
def test_an_old_scan_is_given_up(daemon: Daemon) -> None:
    with IpcClient.connect(daemon.socket, direct_reads=True) as client:
        client.put_many({f"{n:04}": b"x" for n in range(2000)})
        rows = client.scan()
        next(rows)
        assert client._direct is not None
        client._direct._max_age = 0.0
        with pytest.raises(SnapshotExpiredError):
            list(client.scan())
        assert client.get("0001") == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_permission(tmp_db: Path) -> None:
    tmp_db.parent.chmod(0o755)
    with Daemon(tmp_db, "--socket-mode", "666") as daemon:
        tmp_db.chmod(0o755)
        cases = [(0o600, 0o600, "data.mdb"), (0o644, 0o600, "lock.mdb"), (0o644, 0o644, "lock.mdb")]

        def child() -> list[str]:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                IpcClient.connect(daemon.socket, direct_reads=True)
            except ConfigurationError as error:
                return [str(error)]
            return []

        import lmdb  # noqa: F401  (another user cannot read the installed packages)

        for data, lock, name in cases:
            (tmp_db / "data.mdb").chmod(data)
            (tmp_db / "lock.mdb").chmod(lock)
            (text,) = in_child(child)
            assert name in text
            assert "direct" in text
        (tmp_db / "data.mdb").chmod(0o644)
        (tmp_db / "lock.mdb").chmod(0o666)
        assert in_child(child) == []


def test_a_long_direct_scan_lets_other_tasks_run(server: Daemon) -> None:
    async def main() -> None:
        async with await AsyncIpcClient.connect(server.socket, direct_reads=True) as client:
            await client.put_many({f"{n:05}": b"x" for n in range(5000)})
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.ensure_future(other())
            assert len([row async for row in client.scan()]) == 5000
            task.cancel()
            assert turns >= 4

    errors: list[dict[str, Any]] = []
    with make_runner("asyncio", errors) as runner:
        runner.run(main())
    assert errors == []
