"""Check, backup, restore and compact as commands, with a real daemon under load."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.daemon import SECONDS, Daemon, child_environ, run_server, server_command
from toondb.engine.engine import Engine
from toondb_client import IpcClient

WRITERS = 3
ACCOUNTS = 8
TOTAL = ACCOUNTS * 100


def ok(*args: str | Path) -> str:
    """Run a command that must succeed; its output."""
    result = run_server(*args)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def refused(*args: str | Path) -> str:
    """Run a command that must fail clearly; its message."""
    result = run_server(*args)
    assert result.returncode == 1, result.stdout
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def db(tmp_db: Path) -> Path:
    """A closed store, mostly free pages."""
    with Engine(tmp_db) as engine:
        engine.write([(b"gone/%05d" % number, bytes(1000)) for number in range(2000)])
        engine.write([(b"gone/%05d" % number, None) for number in range(2000)])
        engine.write([(b"kept/%d" % number, b"value %d" % number) for number in range(100)])
    return tmp_db


def kept(folder: Path) -> bool:
    with Engine(folder) as engine:
        found = [engine.get(b"kept/%d" % number) for number in range(100)]
    return found == [b"value %d" % number for number in range(100)]


# A load with invariants


@dataclass
class Load:
    """Writers that move money between accounts, and count in two keys that are always equal.

    Attributes:
        acknowledged: For each writer the last count whose commit was acknowledged.
    """

    socket: Path
    acknowledged: list[int] = field(default_factory=lambda: [0] * WRITERS)
    errors: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def prepare(self) -> None:
        with IpcClient.connect(self.socket) as client, client.transaction() as transaction:
            for account in range(ACCOUNTS):
                transaction.put(b"account/%d" % account, b"100")

    def write(self, writer: int, first: threading.Barrier) -> None:
        rng = random.Random(writer)
        try:
            with IpcClient.connect(self.socket) as client:
                while not self._stop.is_set():
                    count = self.acknowledged[writer] + 1
                    source, target = rng.sample(range(ACCOUNTS), 2)

                    def move(transaction: object, count: int = count, source: int = source, to: int = target) -> None:
                        get, put = transaction.get, transaction.put  # type: ignore[attr-defined]
                        for account, amount in ((source, -1), (to, 1)):
                            key = b"account/%d" % account
                            put(key, b"%d" % (int(get(key)) + amount))
                        put(b"left/%d" % writer, b"%d" % count)
                        put(b"filler/%d/%d" % (writer, count % 500), os.urandom(2000))
                        put(b"right/%d" % writer, b"%d" % count)

                    client.run_transaction(move, attempts=1000)
                    self.acknowledged[writer] = count
                    if count == 1:
                        first.wait(SECONDS)
        except BaseException as error:
            self.errors.append(error)
            first.abort()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Every writer has committed at least once when the block begins."""
        self.prepare()
        first = threading.Barrier(WRITERS + 1)
        threads = [threading.Thread(target=self.write, args=(number, first)) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            first.wait(SECONDS)
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(SECONDS)
        assert not self.errors

    @staticmethod
    def counts(folder: Path) -> list[int]:
        """Check the invariants of a store at rest; how far each writer is in it."""
        with Engine(folder) as engine:
            balances = [int(engine.get(b"account/%d" % account) or 0) for account in range(ACCOUNTS)]
            left = [engine.get(b"left/%d" % writer) for writer in range(WRITERS)]
            right = [engine.get(b"right/%d" % writer) for writer in range(WRITERS)]
        assert sum(balances) == TOTAL
        assert left == right
        return [int(value or 0) for value in left]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_hot_backups_are_consistent_prefixes(daemon: Daemon, loop: str) -> None:
    parent = daemon.db.parent
    load = Load(daemon.socket)
    spans: list[tuple[Path, list[int], list[int]]] = []
    with load.running():
        for number, extra in enumerate([[], ["--compact"], [], ["--compact"]]):
            before = list(load.acknowledged)
            report = json.loads(ok("backup", parent / f"backup{number}", "--db", daemon.db, "--json", *extra))
            # At most one commit of each writer is applied and not yet acknowledged.
            after = [count + 1 for count in load.acknowledged]
            assert report["compact"] is bool(extra)
            spans.append((parent / f"backup{number}", before, after))
            assert "No damage found" in ok("check", "--db", daemon.db)
    final = list(load.acknowledged)
    assert final > spans[0][1]
    assert daemon.stop() == 0
    for saved, before, after in spans:
        assert "No damage found" in ok("check", "--db", saved)
        restored = parent / f"{saved.name}-restored"
        ok("restore", saved, "--db", restored)
        counts = load.counts(restored)
        assert all(low <= count <= high for low, count, high in zip(before, counts, after, strict=True))
    assert load.counts(daemon.db) == final


def test_restore_and_serve_again(daemon: Daemon) -> None:
    saved = daemon.db.parent / "saved"
    with IpcClient.connect(daemon.socket) as client:
        client.put(b"key", b"first")
        ok("backup", saved, "--db", daemon.db)
        client.put(b"key", b"second")
    for command in (["restore", saved, "--force"], ["compact"]):
        message = refused(*command, "--db", daemon.db)
        assert f"in use by daemon with pid {daemon.pid}" in message
        assert f"toondb-server stop --db {daemon.db}" in message
    assert daemon.stop() == 0
    assert "has a database already" in refused("restore", saved, "--db", daemon.db)
    output = ok("restore", saved, "--db", daemon.db, "--force")
    previous = next(line.rpartition(" ")[2] for line in output.splitlines() if "is kept: " in line)
    assert Path(previous).parent == daemon.db
    with Daemon(daemon.db) as again:
        with IpcClient.connect(again.socket) as client:
            assert client.get(b"key") == b"first"
            client.put(b"key", b"third")
        assert "No damage found" in ok("check", "--db", daemon.db)


# Each command


def test_check(db: Path) -> None:
    output = ok("check", "--db", db)
    assert "100 records at LSN" in output
    assert output.endswith("No damage found.\n")
    assert ok("check", "--db", db, "--quiet") == ""
    report = json.loads(ok("check", "--db", db, "--json"))
    assert (report["ok"], report["records"], report["damages"]) == (True, 100, [])


def damage(db: Path) -> None:
    data = bytearray((db / "data.mdb").read_bytes())
    data[data.index(b"value 42")] ^= 1
    (db / "data.mdb").write_bytes(data)


@pytest.mark.parametrize("served", [False, True])
def test_check_names_the_damage(db: Path, served: bool) -> None:
    damage(db)
    if served:
        with Daemon(db):
            result = run_server("check", "--db", db)
    else:
        result = run_server("check", "--db", db)
    assert result.returncode == 1
    assert result.stdout == "damage: record in 'kv': key 'kept/42': the checksum is wrong\n"
    assert "store or delete the named keys again" in result.stderr
    assert f"toondb-server restore BACKUP --db {db} --force" in result.stderr
    result = run_server("check", "--db", db, "--json")
    assert result.returncode == 1
    assert [item["key"] for item in json.loads(result.stdout)["damages"]] == ["kept/42"]
    assert run_server("check", "--db", db, "--quiet").returncode == 1
    for command in (["backup", db.parent / "backup"], ["compact"]):
        assert "the checksum is wrong" in refused(*command, "--db", db)
    assert not (db.parent / "backup").exists()


def test_check_limits_its_output(db: Path) -> None:
    data = (db / "data.mdb").read_bytes()
    (db / "data.mdb").write_bytes(data.replace(b"value ", b"VALUE "))
    result = run_server("check", "--db", db, "--limit", "3")
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert lines[-1] == "... and more; see them with --limit (now 3)"


def test_check_of_a_file_cut_off(db: Path) -> None:
    os.truncate(db / "data.mdb", 8192)
    result = run_server("check", "--db", db)
    assert result.returncode == 1
    assert "damage: file" in result.stdout


def test_backup_and_restore_to_a_new_folder(db: Path) -> None:
    target, restored = db.parent / "backup", db.parent / "restored"
    output = ok("backup", target, "--db", db)
    assert output.startswith(f"Backup: {target}\n100 records at LSN ")
    assert ok("restore", target, "--db", restored).startswith(f"Restored: {restored}\n100 records at LSN ")
    assert kept(restored)
    report = json.loads(ok("restore", target / "data.mdb", "--db", db.parent / "third", "--json"))
    assert report["previous"] is None
    assert "is not empty" in refused("backup", target, "--db", db)
    assert "inside the database folder" in refused("backup", db / "backup", "--db", db)


def test_compact(db: Path) -> None:
    before = (db / "data.mdb").stat().st_size
    report = json.loads(ok("compact", "--db", db, "--json"))
    assert report["bytes_before"] == before
    # The history of the changes stays, bounded by its own option.
    assert report["bytes_after"] == (db / "data.mdb").stat().st_size < before // 2
    assert kept(db)
    assert "bytes before" in ok("compact", "--db", db)


@pytest.mark.parametrize(
    "command", [["check"], ["backup", "TARGET"], ["restore", "BACKUP"], ["compact"]], ids=lambda words: words[0]
)
def test_nothing_there(tmp_db: Path, command: list[str]) -> None:
    words = [tmp_db.parent / word if word.isupper() else word for word in command]
    message = refused(*words, "--db", tmp_db)
    assert "there is no" in message
    assert list(tmp_db.parent.iterdir()) == []


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_missing_argument(command: str) -> None:
    result = run_server(command)
    assert result.returncode == 2
    assert "Missing argument" in result.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_backup_leaves_nothing(db: Path, number: signal.Signals, status: int) -> None:
    """The backup is held between its copy and its check, and signalled there."""
    target = db.parent / "backup"
    code = (
        "import sys, threading\n"
        "import toondb.engine.maintenance as maintenance\n"
        "real = maintenance.copy_store\n"
        "def copy_store(*args, **kwargs):\n"
        "    result = real(*args, **kwargs)\n"
        "    print('copied', flush=True)\n"
        "    threading.Event().wait(60)\n"
        "    return result\n"
        "maintenance.copy_store = copy_store\n"
        "from toondb_server.cli import main\n"
        "main()\n"
    )
    command = [server_command()[0], "-c", code, "backup", str(target), "--db", str(db)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environ()
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "copied\n"
        assert [path.name for path in db.parent.iterdir() if path != db] == [".backup.partial"]
        child.send_signal(number)
        _, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == status
    assert "Traceback" not in errors
    assert list(db.parent.iterdir()) == [db]
