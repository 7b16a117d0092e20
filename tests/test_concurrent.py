"""Several processes that share one folder: each a real process, some of them killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from tests.sharers import Sharer
from tests.support.children import in_child
from tests.support.daemon import SECONDS, Daemon, child_environ, run_server
from tests.workers import ACCOUNTS, OPENING_BALANCE, account
from toondb import Database, IpcClient
from toondb.engine import engine as engine_module
from toondb.engine import maintenance
from toondb.engine.change_log import changes_from
from toondb.engine.environment import DATA_FILE, Environment
from toondb.engine.options import Access, EngineOptions, SyncMode
from toondb.engine.owner_lock import OwnerLock, read_owner
from toondb_protocol.changes import ChangeKind
from toondb_protocol.errors import (
    DatabaseLockedError,
    ForkedProcessError,
    StorageFullError,
)

LAZY = {"sync_mode": "off"}


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    yield
    Sharer.end_all()


@pytest.fixture
def db(tmp_db: Path) -> Iterator[Database]:
    with Database.open_concurrent(tmp_db, LAZY) as db:
        yield db


def serving(folder: Path, **options: Any) -> Sharer:
    """A process that has opened the folder, and does what it is told."""
    sharer = Sharer("serve", folder, **options)
    assert (sharer.line(), sharer.line()) == ("opening", "open shared")
    return sharer


def refused(sharer: Sharer) -> tuple[str, str, str, dict[str, Any]]:
    """Why it could not open the folder."""
    assert sharer.line() == "opening"
    name, message, remediation, details = json.loads(sharer.line())
    assert sharer.finish() == []
    return name, message, remediation, details


# Together


def test_each_sees_the_commits_of_the_others_at_once(tmp_db: Path, db: Database) -> None:
    first, second = serving(tmp_db), serving(tmp_db, config=LAZY)
    engine = db._engine
    reader = engine.reader()
    for n in range(50):
        assert first.ask("put", "k", n) == "done"
        assert db.get("k") == b"%d" % n
        raw = reader.get(b"k")
        assert raw is not None
        assert raw[13:] == b"%d" % n
        assert second.ask("get", "k") == str(n)
        db.put("mine", b"%d" % n)
        assert second.ask("get", "mine") == first.ask("get", "mine") == str(n)
    reader.release()
    assert db.is_concurrent
    assert not db.read_only
    for sharer in (first, second):
        assert sharer.finish() == []


def test_the_first_to_come_make_the_store_together(tmp_db: Path) -> None:
    sharers = [Sharer("serve", tmp_db, "told", config=LAZY) for _ in range(5)]
    assert [sharer.line() for sharer in sharers] == ["ready"] * 5
    for sharer in sharers:
        sharer.tell("open")
    for sharer in sharers:
        assert (sharer.line(), sharer.line()) == ("opening", "open shared")
        # Whoever wrote it last: it can be read, however many wrote it at once.
        assert read_owner(tmp_db)["role"] == "concurrent"
    for n, sharer in enumerate(sharers):
        assert sharer.ask("put", f"k{n}", n) == "done"
    assert [sharers[0].ask("get", f"k{n}") for n in range(5)] == ["0", "1", "2", "3", "4"]
    for sharer in sharers:
        assert sharer.finish() == []
    report = maintenance.check(tmp_db)
    assert (report.damages, report.records, report.lsn) == ([], 5, 5)


def test_money_is_neither_made_nor_lost(tmp_db: Path, db: Database) -> None:
    db.put_many({account(n): b"%d" % OPENING_BALANCE for n in range(ACCOUNTS)})
    movers = [
        Sharer("transfer", tmp_db, seed, 60, "serializable" if seed % 2 else "snapshot", config=LAZY)
        for seed in range(3)
    ]
    auditors = [Sharer("audit", tmp_db, isolation) for isolation in ("snapshot", "serializable")]
    for mover in movers:
        assert mover.finish() == ["opening", "done"]
    for auditor in auditors:
        auditor.tell("stop")
        assert int(auditor.finish()[1]) >= 5
    balances = [int(value) for _, value in db.scan("account/")]
    assert len(balances) == ACCOUNTS
    assert sum(balances) == ACCOUNTS * OPENING_BALANCE
    assert db.checkpoint() == 1 + 3 * 60  # each transfer once, whatever the number of tries


@pytest.mark.parametrize("modes", [("off", "off", "off"), ("full", "normal", "off")])
def test_no_increment_is_lost(tmp_db: Path, db: Database, modes: tuple[str, ...]) -> None:
    counters = [Sharer("increment", tmp_db, 50, config={"sync_mode": mode}) for mode in modes]
    for counter in counters:
        assert counter.finish() == ["opening", "done"]
    assert (db.get("counter"), db.get("both")) == (b"180", b"30")
    assert db.checkpoint() == 180
    # The history is one, whoever wrote it.
    changes = list(db.watch("counter", since_lsn=0, timeout=0))
    assert [int(change.value or b"") for change in changes] == list(range(1, 181))


@pytest.mark.parametrize("isolation", ["serializable", "snapshot"])
def test_write_skew(tmp_db: Path, db: Database, isolation: str) -> None:
    rounds = 5
    doctors = [Sharer("go_off_call", tmp_db, name, isolation, rounds, config=LAZY) for name in ("alice", "bob")]
    assert [doctor.line() for doctor in doctors] == ["opening"] * 2
    for _ in range(rounds):
        db.put_many({"call/alice": b"yes", "call/bob": b"yes"})
        for doctor in doctors:
            doctor.tell("begin")
        assert [doctor.line() for doctor in doctors] == ["read", "read"]
        for doctor in doctors:
            doctor.tell("decide")
        outcomes = sorted(doctor.line() for doctor in doctors)
        left = [value for _, value in db.scan("call/")].count(b"yes")
        if isolation == "serializable":
            assert (outcomes, left) == (["committed", "conflict"], 1)
        else:
            assert (outcomes, left) == (["committed", "committed"], 0)
    for doctor in doctors:
        assert doctor.finish() == []


def test_watching_what_others_write(tmp_db: Path, db: Database) -> None:
    watchers = [Sharer("watch", tmp_db, 6) for _ in range(2)]
    for watcher in watchers:
        assert (watcher.line(), watcher.line()) == ("opening", "watching")
    other = serving(tmp_db)
    assert other.ask("put", "w/a", 1) == "done"
    db.put("x/not", b"")
    db.put_many({"w/b": b"2", "w/c": b"3"})
    db.delete("w/a")
    assert other.ask("put", "w/t", 4, 0.001) == "done"
    lines = [watcher.finish() for watcher in watchers]
    assert lines[0] == lines[1]
    assert [line.split()[1:] for line in lines[0]] == [
        ["put", "w/a", "1"],
        ["put", "w/b", "2"],
        ["put", "w/c", "3"],
        ["delete", "w/a"],
        ["put", "w/t", "4"],
        ["expire", "w/t"],  # by whichever process came first
    ]
    lsns = [int(line.split()[0]) for line in lines[0]]
    assert lsns == sorted(lsns)
    assert lsns[1] == lsns[2]
    assert db.get("w/t") is None
    assert other.finish() == []


# Killed


def test_killed_writers_hold_nobody_up_and_lose_nothing(tmp_db: Path, db: Database) -> None:
    """Each writes without a pause, so nearly every kill is inside of a commit."""
    chance = random.Random(7)
    names = iter(range(1000))
    writers: dict[str, Sharer] = {}
    acknowledged: dict[str, tuple[int, int]] = {}

    def start() -> None:
        name = f"w{next(names)}"
        writers[name] = Sharer("write", tmp_db, name, config={"sync_mode": chance.choice(["off", "normal"])})
        assert writers[name].line() == "opening"

    def note(name: str, line: str) -> None:
        lsn, n = map(int, line.split())
        assert (lsn, n) > acknowledged.get(name, (0, 0))
        acknowledged[name] = (lsn, n)

    for _ in range(3):
        start()
    for turn in range(12):
        for name, writer in writers.items():
            for _ in range(chance.randrange(3, 12)):
                note(name, writer.line())
        victim = chance.choice(list(writers))
        writers[victim].process.kill()
        for line in writers[victim].lines():
            note(victim, line)
        writers.pop(victim).kill()
        # The others go on at once, this process too.
        for name, writer in writers.items():
            note(name, writer.line())
        assert db.increment("survivor") == turn + 1
        start()
    for name, writer in writers.items():
        writer.process.kill()
        for line in writer.lines():
            note(name, line)
        writer.kill()
    for name, (lsn, n) in acknowledged.items():
        found = int(db.get(f"{name}/n") or b"0")
        assert found in (n, n + 1), "an acknowledged commit was lost"
        assert [db.get(f"{name}/{part}") for part in range(3)] == [b"%d" % found * (1 + found % 500)] * 3
        assert lsn <= db.checkpoint()
    # As far as the history goes back it has every commit, of the killed and of the others.
    environment = db._engine.environment
    with environment.lmdb.begin() as txn:
        oldest = changes_from(environment, txn)
    lsns = {change.lsn for change in db.watch(since_lsn=oldest, timeout=0)}
    assert lsns == set(range(oldest + 1, db.checkpoint() + 1))
    assert maintenance.check(tmp_db, environment=db._engine.environment.lmdb).damages == []


def test_the_reader_slots_of_the_killed_are_given_back(tmp_db: Path, db: Database) -> None:
    killed = serving(tmp_db)
    assert killed.ask("snapshot") == "done"
    environment = db._engine.environment.lmdb
    assert str(killed.pid) in environment.readers()
    killed.kill()
    other = serving(tmp_db)  # whoever opens the folder looks after it, and everybody does so now and then
    assert str(killed.pid) not in environment.readers()
    assert other.finish() == []


# Exclusive owners


def test_an_exclusive_open_is_told_of_all_who_share_it(tmp_db: Path) -> None:
    sharers = [serving(tmp_db) for _ in range(3)]
    pids = sorted(sharer.pid for sharer in sharers)
    for _ in range(2):
        with pytest.raises(DatabaseLockedError) as caught:
            Database.open(tmp_db)
        assert caught.value.details["pids"] == pids
        assert caught.value.details["role"] == "concurrent"
        assert f"concurrent openers (pid {', '.join(map(str, pids))})" in caught.value.message
        assert "open_concurrent" in caught.value.remediation
        sharers[0].kill()  # also when the last one to come is gone
        pids.remove(sharers.pop(0).pid)
    for sharer in sharers:
        assert sharer.finish() == []
    with Database.open(tmp_db) as db:
        db.put("k", b"v")


def test_a_shared_open_waits_for_an_exclusive_owner(tmp_db: Path) -> None:
    with Database.open(tmp_db, LAZY) as owner:
        sharers = [Sharer("serve", tmp_db, wait=SECONDS) for _ in range(2)]
        assert [sharer.line() for sharer in sharers] == ["opening"] * 2
        owner.put("k", b"v")
    for sharer in sharers:
        assert sharer.line() == "open shared"
        assert sharer.ask("get", "k") == "v"
        assert sharer.finish() == []


def test_but_not_for_ever(tmp_db: Path) -> None:
    with Database.open(tmp_db, LAZY):
        name, message, remediation, details = refused(Sharer("serve", tmp_db, wait=0.05))
    assert name == "DatabaseLockedError"
    assert f"embedded with pid {os.getpid()}" in message
    assert "toondb-server --db" in remediation
    assert (details["pid"], details["role"]) == (os.getpid(), "embedded")


def test_the_documented_wait() -> None:
    assert engine_module._WAIT_FOR_OWNER_SECONDS == 5.0


# A daemon


def test_beside_a_daemon_it_reads(tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon, IpcClient.connect(daemon.socket) as client:
        client.put("k", b"0")
        with Database.open_concurrent(tmp_db, LAZY) as db:
            assert db.read_only
            assert db.is_concurrent
            changes = db.watch("k", timeout=SECONDS)
            for n in range(20):
                client.put("k", b"%d" % n)
                assert db.get("k") == b"%d" % n
                assert dict(db.scan("k")) == {b"k": b"%d" % n}
                assert next(changes).value == b"%d" % n
            with db.transaction() as txn:
                assert txn.get("k") == b"19"
            for write in (
                lambda: db.put("k", b"no"),
                lambda: db.delete("k"),
                lambda: db.put_many({"k": b"no"}),
                lambda: db.increment("n"),
                lambda: db.expire("k", 1),
                lambda: db.compare_and_set("k", None, b"no"),
                lambda: db.create_table("t", [("c", "int64")]),
                db.checkpoint,
            ):
                with pytest.raises(DatabaseLockedError, match="for reading") as caught:
                    write()
                assert "IpcClient.connect" in caught.value.remediation
            client.put("e", b"v", ttl=0.001)
            expired = next(change for change in db.watch("e", since_lsn=0, timeout=SECONDS) if change.value is None)
            assert expired.kind is ChangeKind.EXPIRE
            assert db.get("e") is None
            assert client.get("k") == b"19"


def test_a_reader_outlives_the_daemon_and_sees_the_next_owner(tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon, IpcClient.connect(daemon.socket) as client:
        client.put("k", b"1")
        reader = Sharer("serve", tmp_db)
        assert (reader.line(), reader.line()) == ("opening", "open read")
        assert reader.ask("get", "k") == "1"
    assert reader.ask("get", "k") == "1"
    with Database.open(tmp_db) as owner:
        owner.put("k", b"2")
        assert reader.ask("get", "k") == "2"
        owner.put("t", b"", ttl=3600)
        assert reader.ask("get", "t") == ""
    with Daemon(tmp_db) as daemon, IpcClient.connect(daemon.socket) as client:
        client.put("k", b"3")
        assert reader.ask("get", "k") == "3"
    assert reader.ask("put", "k", "4").startswith("DatabaseLockedError")
    assert reader.finish() == []


def test_its_file_is_not_replaced_under_a_reader(tmp_db: Path, tmp_path: Path) -> None:
    """It would go on with the old file for ever, and never be told."""
    with Daemon(tmp_db) as daemon, IpcClient.connect(daemon.socket) as client:
        client.put("k", b"1")
        readers = [Sharer("serve", tmp_db) for _ in range(2)]
        for reader in readers:
            assert (reader.line(), reader.line()) == ("opening", "open read")
        forked = int(readers[0].ask("fork"))
    try:
        maintenance.backup(tmp_db, tmp_path / "backup")  # it only reads, too
        assert maintenance.check(tmp_db).ok
        for replace in (
            lambda: maintenance.compact(tmp_db),
            lambda: maintenance.restore(tmp_path / "backup", tmp_db, force=True),
        ):
            with pytest.raises(DatabaseLockedError, match="open_concurrent beside a daemon") as caught:
                replace()
            assert caught.value.details["pids"] == sorted(reader.pid for reader in readers)
            assert "close it there" in caught.value.remediation
        for reader in readers:
            assert reader.ask("get", "k") == "1"
            assert reader.finish() == []
        # The child of one of them still lives, and does not count.
        assert maintenance.compact(tmp_db).records == 1
    finally:
        os.kill(forked, signal.SIGKILL)


def test_a_reader_waits_for_a_daemon_that_is_about_to_make_the_store(
    tmp_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_db.mkdir()
    lock = OwnerLock(tmp_db, "daemon", "/run/socket")

    def empty_file() -> None:
        (tmp_db / DATA_FILE).touch()

    def half_made() -> None:
        lmdb.open(str(tmp_db), max_dbs=4, map_size=1 << 20).close()

    def whole() -> None:
        Environment(tmp_db, EngineOptions(sync_mode=SyncMode.OFF), Access.EXCLUSIVE).close()

    steps = [empty_file, half_made, whole]

    def sleep(_: float) -> None:
        # The reader found nothing that it could open, and tries again after this.
        in_child(steps.pop(0))

    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    with Database.open_concurrent(tmp_db) as db:
        assert steps == []
        assert db.read_only
        assert db.get("k") is None
    lock.release()


def test_a_reader_takes_over_what_the_daemon_left_before_it_was_made(tmp_db: Path) -> None:
    tmp_db.mkdir()
    lock = OwnerLock(tmp_db, "daemon", "/run/socket")
    sharer = Sharer("serve", tmp_db, wait=SECONDS)
    assert sharer.line() == "opening"
    lock.release()
    assert sharer.line() == "open shared"
    assert sharer.ask("put", "k", "v") == "done"
    assert sharer.finish() == []


def test_there_is_nothing_to_read(tmp_db: Path) -> None:
    tmp_db.mkdir()
    lock = OwnerLock(tmp_db, "daemon", "/run/socket")
    name, message, _, _ = refused(Sharer("serve", tmp_db, wait=0.05))
    assert (name, "there is no database" in message) == ("DatabaseNotFoundError", True)
    lock.release()


def test_a_daemon_does_not_start_beside_them(tmp_db: Path) -> None:
    sharers = [serving(tmp_db) for _ in range(2)]
    result = run_server("--db", tmp_db)
    assert result.returncode != 0
    pids = ", ".join(str(pid) for pid in sorted(sharer.pid for sharer in sharers))
    said = result.stdout + result.stderr
    assert f"concurrent openers (pid {pids})" in said
    assert "Traceback" not in said
    for sharer in sharers:
        assert sharer.ask("put", "k", "v") == "done"
        assert sharer.finish() == []
    with Daemon(tmp_db) as daemon, IpcClient.connect(daemon.socket) as client:
        assert client.get("k") == b"v"


# Maintenance


def test_maintenance_beside_them(tmp_db: Path, tmp_path: Path) -> None:
    with Database.open_concurrent(tmp_db, LAZY) as db:
        db.put_many({f"k{n:03}": b"v" * n for n in range(100)})
    maintenance.backup(tmp_db, tmp_path / "older")
    writer = Sharer("write", tmp_db, "busy", config=LAZY)
    assert writer.line() == "opening"
    writer.line()
    assert maintenance.check(tmp_db).damages == []
    for compact in (False, True):
        target = tmp_path / f"backup-{compact}"
        report = maintenance.backup(tmp_db, target, compact=compact)
        assert maintenance.check(target).damages == []
        assert report.lsn > 1
    for replace in (
        lambda: maintenance.compact(tmp_db),
        lambda: maintenance.restore(tmp_path / "older", tmp_db, force=True),
    ):
        with pytest.raises(DatabaseLockedError, match=rf"concurrent openers \(pid {writer.pid}\)"):
            replace()
    with pytest.raises(DatabaseLockedError, match="a database in use, not a backup"):
        maintenance.restore(tmp_db, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    writer.kill()
    maintenance.compact(tmp_db)
    maintenance.restore(tmp_path / "older", tmp_db, force=True)
    sharer = serving(tmp_db)
    assert sharer.ask("get", "k001") == "v"
    assert sharer.ask("get", "busy/n") == "None"
    assert sharer.finish() == []


# Options that differ


def test_a_smaller_map_than_that_of_others(tmp_db: Path) -> None:
    small = Database.open_concurrent(tmp_db, {**LAZY, "map_size_bytes": 1 << 20})
    with small:
        small.put("k", b"v")
        other = serving(tmp_db, config={**LAZY, "map_size_bytes": 1 << 26})
        assert other.ask("grow", 400) == "done"
        for use in (
            lambda: small.get("k"),
            lambda: small.put("k", b"w"),
            lambda: list(small.scan()),
            lambda: small.increment("n"),
            small.begin_transaction,
        ):
            with pytest.raises(StorageFullError, match="grow beyond the map size") as caught:
                use()
            assert "the same map size in every process" in caught.value.remediation
        # The others do not notice.
        assert other.ask("put", "k", "w") == "done"
        assert other.ask("get", "k") == "w"
    with Database.open_concurrent(tmp_db, {**LAZY, "map_size_bytes": 1 << 26}) as large:
        assert large.get("k") == b"w"
        large.put("k", b"x")
        assert other.ask("get", "k") == "x"
    assert other.finish() == []
    assert maintenance.check(tmp_db).damages == []


def test_the_history_is_bounded_whoever_writes(tmp_db: Path) -> None:
    config = {**LAZY, "change_history_bytes": 1 << 16}
    with Database.open_concurrent(tmp_db, config) as db:
        other = serving(tmp_db, config=config)
        for n in range(60):
            assert other.ask("put", f"k{n}", "x" * 900) == "done"
            db.put_many({f"m{m}": b"y" * 900 for m in range(20)})
        environment = db._engine.environment
        with environment.lmdb.begin() as txn:
            stat = txn.stat(environment.changes)
        assert (stat["leaf_pages"] + stat["overflow_pages"]) * stat["psize"] <= 2 << 16
        assert other.finish() == []
    assert maintenance.check(tmp_db).damages == []


# Fork


def test_a_forked_child_may_not_use_it_and_does_not_hold_it(tmp_db: Path) -> None:
    db = Database.open_concurrent(tmp_db, LAZY)
    db.put("k", b"v")

    def use() -> list[str]:
        failures = []
        for attempt in (lambda: db.get("k"), lambda: db.put("k", b"w"), lambda: Database.open_concurrent(tmp_db)):
            try:
                attempt()
                failures.append("allowed")
            except ForkedProcessError:
                pass
        db.close()
        return failures

    assert in_child(use) == []
    other = serving(tmp_db)
    forked = int(other.ask("fork"))
    try:
        assert other.ask("get", "k") == "v"
        other.kill()
        db.close()
        # The grandchild still lives.
        with Database.open(tmp_db) as owner:
            assert owner.get("k") == b"v"
    finally:
        os.kill(forked, signal.SIGKILL)


THREADS_AND_PROCESSES = """
    import sys, threading
    from toondb import Database
    from toondb_protocol.errors import ToonDBError

    with Database.open_concurrent(sys.argv[1], {"sync_mode": "off"}) as db:
        def work():
            for n in range(40):
                db.increment("sum")
                with db.transaction() as txn:
                    txn.get("sum")
                db.put(f"k{n}", b"v", ttl=0.001 if n % 3 else None)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
"""


def test_threads_of_several_processes(tmp_db: Path) -> None:
    code = textwrap.dedent(THREADS_AND_PROCESSES)
    children = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(tmp_db)], env=child_environ())
        for _ in range(2)
    ]
    try:
        assert [child.wait(SECONDS) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
            child.wait(SECONDS)
    with Database.open(tmp_db) as db:
        assert db.get("sum") == b"320"
    assert maintenance.check(tmp_db).damages == []
