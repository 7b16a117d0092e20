"""The device fails under a daemon: nobody is lied to, reads go on, a restart finds what was acknowledged."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Faults
from tests.support.daemon import SECONDS, Daemon, child_environ
from toondb.engine.file_check import check_file
from toondb_client import IpcClient
from toondb_protocol.errors import StorageError, StorageFullError, ToonDBError

LARGE = bytes(200_000)


def fails(client: IpcClient, expected: type[ToonDBError] = StorageError) -> str:
    """A write of every kind is refused with exactly this class."""
    with pytest.raises(expected) as caught:
        client.put("refused", b"x")
    assert type(caught.value) is expected
    with pytest.raises(expected):
        with client.transaction() as txn:
            txn.put("refused-1", b"x")
            txn.put("refused-2", b"x")
    with pytest.raises(expected):
        client.delete("kept")
    return caught.value.message


def reads_go_on(client: IpcClient) -> None:
    assert client.get("kept") == b"1"
    assert client.get("refused") is None
    assert [row["key"] for row in client.scan("refused")] == []
    with client.transaction("serializable", read_only=True) as txn:
        assert txn.get("kept") == b"1"
        assert [key for key, _ in txn.scan("k")] == [b"kept"]
    assert client.query("k").count() == 1


def after_restart(db: Path, **rows: bytes) -> None:
    assert check_file(db / "data.mdb").damages == []
    with Daemon(db) as daemon, IpcClient.connect(daemon.socket) as client:
        assert {key.decode(): value for key, value in client.scan("")} == rows
        assert client.stats()["storage_failed"] is None
        client.put("again", b"1")


@pytest.mark.parametrize("sync_mode", ["full", "normal"])
@pytest.mark.parametrize(
    ("calls", "text"),
    [("s", "Input/output error"), ("w", "Input/output error"), ("m", "root page")],
    ids=["fdatasync", "write", "root page"],
)
def test_a_failed_device_stops_writes_until_a_restart(
    tmp_db: Path, faults: Faults, calls: str, text: str, sync_mode: str
) -> None:
    with Daemon(tmp_db, "--sync-mode", sync_mode, env=faults.env) as daemon:
        with IpcClient.connect(daemon.socket) as client, IpcClient.connect(daemon.socket) as other:
            client.put("kept", b"1")
            before = other.begin_transaction()
            assert before.get("kept") == b"1"
            faults.begin(calls, errno.EIO)
            assert text in fails(client)
            reads_go_on(client)
            assert before.get("kept") == b"1"
            assert before.get("refused") is None
            before.put("late", b"1")
            with pytest.raises(StorageError):
                before.commit()
            # A device that works again proves nothing about what it lost meanwhile.
            faults.end()
            fails(other)
            reads_go_on(other)
            stats: dict[str, Any] = client.stats()
            assert text in stats["storage_failed"]
            assert (stats["lsn"], stats["keys_count"]) == (1, 1)
    after_restart(tmp_db, kept=b"1")


def test_a_full_disk_refuses_only_what_does_not_fit(tmp_db: Path, faults: Faults) -> None:
    with Daemon(tmp_db, env=faults.env) as daemon, IpcClient.connect(daemon.socket) as client:
        client.put("kept", b"1")
        faults.begin("w", errno.ENOSPC, at_least=100_000)
        with pytest.raises(StorageFullError, match="disk is full"):
            client.put("large", LARGE)
        client.put("small", b"2")
        # One batch for the writer.
        pipeline = client.pipeline()
        for n in range(3):
            pipeline.put(f"p{n}", LARGE if n == 1 else b"3")
        replies = pipeline.execute(raise_on_error=False)
        assert [type(reply) for reply in replies] == [type(None), StorageFullError, type(None)]
        reads_go_on(client)
        faults.end()
        client.put("large", LARGE)
        assert client.stats()["storage_failed"] is None
    after_restart(tmp_db, kept=b"1", small=b"2", large=LARGE, p0=b"3", p2=b"3")


def test_a_full_disk_refuses_all_until_there_is_room(tmp_db: Path, faults: Faults) -> None:
    with Daemon(tmp_db, env=faults.env) as daemon, IpcClient.connect(daemon.socket) as client:
        client.put("kept", b"1")
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            faults.begin("w", number)
            fails(client, StorageFullError)
            reads_go_on(client)
            faults.end()
            client.put("between", b"2")
    after_restart(tmp_db, kept=b"1", between=b"2")


def test_a_full_disk_at_the_root_page_stops_writes(tmp_db: Path, faults: Faults) -> None:
    with Daemon(tmp_db, env=faults.env) as daemon, IpcClient.connect(daemon.socket) as client:
        client.put("kept", b"1")
        faults.begin("m", errno.ENOSPC)
        assert "root page" in fails(client)
        faults.end()
        fails(client)
        reads_go_on(client)
    after_restart(tmp_db, kept=b"1")


def test_a_failed_checkpoint_keeps_the_commit_and_says_so(tmp_db: Path, faults: Faults) -> None:
    daemon = Daemon(tmp_db, "--sync-mode", "off", env=faults.env)
    try:
        with IpcClient.connect(daemon.socket) as client:
            client.put("kept", b"1")
            faults.begin("s", errno.EIO)
            with pytest.raises(StorageError, match="while syncing"):
                client.checkpoint()
            assert "while syncing" in fails(client)
            reads_go_on(client)
        # What was acknowledged in a lazy mode may be lost with the power: the exit status must not say all is well.
        assert daemon.stop() == 1
        assert "may not survive" in daemon.log
        assert "Traceback" not in daemon.log
    finally:
        daemon.kill()
    after_restart(tmp_db, kept=b"1")


def test_a_lazy_mode_syncs_by_itself_also_when_it_is_never_idle(tmp_db: Path, faults: Faults) -> None:
    daemon = Daemon(tmp_db, "--sync-mode", "off", env=faults.env)
    try:
        with IpcClient.connect(daemon.socket) as client:
            faults.begin("s", errno.EIO)
            # The failure of a sync that nobody asked for is not swallowed: it ends this loop, a second later.
            with pytest.raises(StorageError, match="while syncing"):
                for n in range(10_000_000):
                    client.put("busy", b"%d" % n)
            assert (client.get("busy") or b"").isdigit()
        assert daemon.stop() == 1
    finally:
        daemon.kill()


CHECKPOINT_IN_A_BATCH = """
import os, sys
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions
from toondb.engine.writer import Checkpoint
from toondb_protocol.errors import StorageError

engine = Engine(sys.argv[1], EngineOptions(sync_mode="off"))
engine.put(b"n", b"0")
txn = engine.begin()
txn.put(b"n", b"1")
txn.start_commit()
with open(os.environ["TOONDB_FAULT_CONTROL"], "w") as file:
    file.write("s 28")
first, second, third = engine.write([(b"one", b"1"), txn, Checkpoint()])
assert (first, second, type(third)) == (2, 3, StorageError), (first, second, third)
engine.settle(txn, second)
assert (engine.get(b"one"), engine.get(b"n"), engine.stats()["lsn"]) == (b"1", b"1", 3)
try:
    engine.close()
except StorageError:
    print("told")
"""


def test_a_commit_beside_a_failed_checkpoint_is_applied_once(tmp_path: Path, faults: Faults) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHECKPOINT_IN_A_BATCH, str(tmp_path / "db")],
        env=child_environ(faults.env),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("told\n", "")
