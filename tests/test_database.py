"""The embedded database: opening, sharing, closing, and what must not harm it."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.contract.neighbour import Neighbour
from tests.support.children import in_child
from tests.support.daemon import SECONDS, Daemon, child_environ
from toondb import Database, IpcClient, Transaction
from toondb.config import CONFIG_KEYS
from toondb_protocol.errors import (
    ConfigurationError,
    DatabaseClosedError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    ForkedProcessError,
    HistoryTrimmedError,
    StorageFullError,
    TransactionClosedError,
    TransactionTooLargeError,
)

ROOT = Path(__file__).parents[1]


def start(code: str, *args: object, options: tuple[str, ...] = ("-W", "error")) -> subprocess.Popen[str]:
    """A Python process that runs ``code``."""
    return subprocess.Popen(
        [sys.executable, *options, "-X", "faulthandler", "-c", code, *map(str, args)],
        env=child_environ({"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protocol'}"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, *args: object, options: tuple[str, ...] = ("-W", "error")) -> str:
    """Run ``code`` in a process of its own, which must end well and quietly; its output."""
    with start(code, *args, options=options) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), err
    return out


@pytest.fixture
def db(tmp_db: Path) -> Iterator[Database]:
    with Database.open(tmp_db) as db:
        yield db


# Opening and closing


def test_open_use_close_reopen(tmp_db: Path) -> None:
    with Database.open(tmp_db) as db:
        assert db.path == str(tmp_db)
        assert not db.is_concurrent
        assert not db.read_only
        assert repr(db) == f"<Database {tmp_db} exclusive>"
        db.put("k", b"v")
        db.put("empty", b"")
    assert db.closed
    assert repr(db) == f"<Database {tmp_db} closed>"
    assert db.path == str(tmp_db)
    db.close()
    with pytest.raises(DatabaseClosedError):
        db.get("k")
    with Database.open(tmp_db) as db:
        assert dict(db.scan()) == {b"k": b"v", b"empty": b""}
    with db, pytest.raises(DatabaseClosedError):  # a second time it is closed as it was
        db.get("k")


def test_an_exception_closes_it(tmp_db: Path) -> None:
    with pytest.raises(KeyError), Database.open(tmp_db) as db:
        db.put("k", b"v")
        raise KeyError
    assert db.closed
    with Database.open(tmp_db) as db:
        assert db.get("k") == b"v"


def test_forms_of_the_path(tmp_db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_db.parent)
    monkeypatch.setenv("HOME", str(tmp_db.parent))
    link = tmp_db.parent / "link"
    link.symlink_to(tmp_db)
    forms = (tmp_db, str(tmp_db), f"{tmp_db}/", "db", "./db", "~/db", Path("~/db"), link, f"{link}/../link")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Database.open(form)) for form in forms]
        for n, db in enumerate(opened):
            db.put(str(n), b"")
        assert {db.stats()["keys_count"] for db in opened} == {len(forms)}


@pytest.mark.parametrize("opened", [Database.open, Database.open_concurrent])
def test_what_cannot_be_opened(tmp_db: Path, opened: Any) -> None:
    file = tmp_db.parent / "file"
    file.write_text("text")
    wrong: Any
    for wrong in (None, 5, b"path", "", "a\0b", ["a"]):
        with pytest.raises(ConfigurationError):
            opened(wrong)
    with pytest.raises(ConfigurationError, match=f"mkdir -p {tmp_db}"):
        opened(tmp_db / "below")
    assert not tmp_db.exists()
    with pytest.raises(ConfigurationError, match="is a file"):
        opened(file)
    with pytest.raises(ConfigurationError):
        opened(file / "below")
    (tmp_db.parent / "loop").symlink_to(tmp_db.parent / "loop")
    with pytest.raises(ConfigurationError):
        opened(tmp_db.parent / "loop")
    with pytest.raises(ConfigurationError):
        opened("x" * 300)
    assert sorted(os.listdir(tmp_db.parent)) == ["file", "loop"]


def test_no_permission(tmp_db: Path) -> None:
    """As another user: root may write everywhere."""
    tmp_db.mkdir(0o500)
    os.chmod(tmp_db.parent, 0o755)

    def attempt() -> list[str]:
        if os.geteuid() == 0:
            os.setuid(65534)
        told = []
        for path in (tmp_db, tmp_db / "below"):
            try:
                Database.open(path)
            except ConfigurationError as error:
                told.append(error.message)
        return told

    first, second = in_child(attempt)
    assert "not readable and writable" in first or "cannot be used" in first
    assert "below" in second
    os.chmod(tmp_db, 0o700)


def test_create_if_missing(tmp_db: Path) -> None:
    for there in (False, True):
        if there:
            tmp_db.mkdir()
        with pytest.raises(DatabaseNotFoundError, match=str(tmp_db)):
            Database.open(tmp_db, {"create_if_missing": False})
    assert list(tmp_db.iterdir()) == []
    Database.open(tmp_db, {"create_if_missing": True}).close()
    Database.open(tmp_db, {"create_if_missing": False}).close()


# Config


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"sync_mdoe": "full"}, ", ".join(CONFIG_KEYS)),
        ({5: 1}, "config 5 is unknown"),
        ({"sync_mode": "sometimes"}, "full, normal, off"),
        ({"sync_mode": None}, "full, normal, off"),
        ({"create_if_missing": 1}, "True or False"),
        ({"wal_enabled": "no"}, "True or False"),
        ({"memtable_size_bytes": "64MB"}, "number of bytes"),
        ({"memtable_size_bytes": True}, "number of bytes"),
        ({"memtable_size_bytes": 0}, "memtable_size_bytes"),
        ({"memtable_size_bytes": -1}, "memtable_size_bytes"),
        ({"map_size_bytes": 1}, "map_size_bytes"),
        ({"map_size_bytes": 1 << 60}, "map_size_bytes"),
        ({"change_history_bytes": 0}, "change_history_bytes"),
        ({"change_history_bytes": 1.5}, "number of bytes"),
        ({"wal_enabled": False, "sync_mode": "full"}, "only one"),
        ({"sync_mode": "normal", "wal_enabled": False}, "only one"),
        ("full", "mapping"),
        ([("sync_mode", "full")], "mapping"),
    ],
    ids=str,
)
def test_bad_config(tmp_db: Path, config: Any, told: str) -> None:
    for opened in (Database.open, Database.open_concurrent):
        with pytest.raises(ConfigurationError) as caught:
            opened(tmp_db, config)
        assert told in str(caught.value)
    assert not tmp_db.exists()


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        (None, "full"),
        ({}, "full"),
        ({"sync_mode": "full"}, "full"),
        ({"sync_mode": "normal"}, "normal"),
        ({"sync_mode": "off"}, "off"),
        ({"wal_enabled": True}, "full"),
        ({"wal_enabled": False}, "off"),
        ({"wal_enabled": False, "sync_mode": "off"}, "off"),
        ({"sync_mode": "off", "wal_enabled": True}, "off"),
    ],
    ids=str,
)
def test_sync_mode(tmp_db: Path, config: dict[str, Any] | None, mode: str) -> None:
    with Database.open(tmp_db, config) as db:
        assert db.stats()["sync_mode"] == mode
        flags = db._engine.environment.lmdb.flags()
        assert (flags["sync"], flags["metasync"]) == (mode != "off", mode == "full")
        db.put("k", b"v")
        assert db.checkpoint() == 1
    with Database.open(tmp_db) as db:
        assert db.get("k") == b"v"


def test_memtable_size_caps_a_transaction(tmp_db: Path) -> None:
    with Database.open(tmp_db, {"memtable_size_bytes": 1000}) as db:
        with db.transaction() as transaction:
            transaction.put("a", b"x" * 900)
            with pytest.raises(TransactionTooLargeError) as caught:
                transaction.put("b", b"x" * 100)
            assert caught.value.details["limit"] == 1000
        with pytest.raises(TransactionTooLargeError):
            db.put_many({f"{n}": b"x" * 100 for n in range(20)})
        db.put("c", b"x" * 5000)  # no transaction
        assert [key for key, _ in db.scan()] == [b"a", b"c"]


def test_map_size_bounds_the_store(tmp_db: Path) -> None:
    with Database.open(tmp_db, {"map_size_bytes": 2 << 20}) as db:
        with pytest.raises(StorageFullError):
            for n in range(100):
                db.put(f"{n:03}", b"x" * 100_000)
        kept = {key for key, _ in db.scan()}
        assert 1 <= len(kept) < 30
        db.delete_many(list(kept)[:10])
        db.put("again", b"x")
    with Database.open(tmp_db, {"map_size_bytes": 1 << 30}) as db:
        db.put("large", b"x" * 5_000_000)


def test_change_history_is_bounded(tmp_db: Path) -> None:
    with Database.open(tmp_db, {"change_history_bytes": 1 << 16, "sync_mode": "off"}) as db:
        for n in range(3000):
            db.put("k", b"%d" % n + b"x" * 100)
        with pytest.raises(HistoryTrimmedError) as caught:
            list(db.watch(since_lsn=0, timeout=0))
        oldest = caught.value.details["oldest_lsn"]
        changes = list(db.watch(since_lsn=oldest, timeout=0))
        assert [change.lsn for change in changes] == list(range(oldest + 1, 3001))


# Sharing inside a process


def test_handles_of_one_folder_share_one_engine(tmp_db: Path) -> None:
    first = Database.open(tmp_db)
    second = Database.open(tmp_db, {})
    first.put("k", b"v")
    assert second.get("k") == b"v"
    transaction = first.begin_transaction()
    transaction.put("never", b"")
    other = second.begin_transaction()
    first.close()
    # What was begun with a handle ends with it; what others do goes on.
    assert not transaction.active
    with pytest.raises(DatabaseClosedError):
        transaction.get("k")
    other.put("l", b"w")
    other.commit()
    assert second.get("l") == b"w"
    with Database.open(tmp_db) as third:
        assert third.get("l") == b"w"
    second.close()
    with Neighbour_of(tmp_db, "open") as neighbour:  # it was given up
        assert neighbour.call("get", "l") == "w"


class Neighbour_of(contextlib.closing):  # type: ignore[type-arg]
    def __init__(self, folder: Path, opened: str) -> None:
        super().__init__(Neighbour(folder, opened))


def test_another_config_or_kind_is_refused(tmp_db: Path) -> None:
    with Database.open(tmp_db, {"sync_mode": "normal"}) as db:
        with pytest.raises(ConfigurationError, match="another config"):
            Database.open(tmp_db)
        with pytest.raises(ConfigurationError, match=r"Database\.open\(\) already"):
            Database.open_concurrent(tmp_db, {"sync_mode": "normal"})
        db.put("k", b"v")
    with Database.open_concurrent(tmp_db) as db:
        with pytest.raises(ConfigurationError, match=r"open_concurrent\(\) already"):
            Database.open(tmp_db)
        assert db.is_concurrent
        assert db.get("k") == b"v"


@pytest.mark.parametrize("opened", [Database.open, Database.open_concurrent])
def test_threads_that_open_and_close_at_once(tmp_db: Path, opened: Any) -> None:
    """However opening and closing fall together, one engine serves all and no opener is turned away."""
    failures: list[BaseException] = []
    go = threading.Barrier(8)

    def work(name: int) -> None:
        try:
            go.wait(SECONDS)
            for n in range(25):
                with opened(tmp_db, {"sync_mode": "off"}) as db:
                    db.put(f"{name}/{n}", b"%d" % n)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert failures == []
    with opened(tmp_db) as db:
        assert db.stats()["keys_count"] == 200


def test_threads_hammer_one_database(db: Database) -> None:
    """Each thread has its own keys, checked against a map, and all share counters and a fund that only moves."""
    db.put_many({f"fund/{n}": b"100" for n in range(4)})
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            hammer(name)
        except BaseException as error:
            failures.append(error)

    def hammer(name: int) -> None:
        mine: dict[bytes, bytes] = {}
        prefix = b"own/%d/" % name
        for n in range(60):
            key = prefix + b"%d" % (n % 7)
            step = (n + name) % 6
            if step == 0:
                db.delete(key)
                mine.pop(key, None)
            elif step == 1:
                rows = {prefix + b"m%d" % k: b"%d" % n for k in range(3)}
                db.put_many(rows)
                mine.update(rows)
            elif step == 2:
                with db.transaction() as transaction:
                    transaction.put(key, b"t%d" % n)
                    assert dict(transaction.scan(prefix)) == {**mine, key: b"t%d" % n}
                mine[key] = b"t%d" % n
            elif step == 3:
                db.run_transaction(partial(move, n % 4, (n + name) % 4), attempts=200)
            else:
                db.put(key, b"%d" % n)
                mine[key] = b"%d" % n
            db.increment("count")
            assert db.get(key) == mine.get(key)
            assert dict(db.scan(prefix)) == mine
            assert sum(int(value) for _, value in db.scan("fund/")) == 400

    def move(source: int, target: int, transaction: Transaction) -> None:
        transaction.increment(f"fund/{source}", -1)
        transaction.increment(f"fund/{target}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert db.get("count") == b"480"
    assert db.stats()["active_transactions"] == 0


def test_one_transaction_in_many_threads(db: Database) -> None:
    with db.begin_transaction() as transaction:
        db.put_many({f"base/{n:03}": b"x" for n in range(200)})

    with db.begin_transaction() as transaction:
        failures: list[BaseException] = []

        def work(name: int) -> None:
            try:
                for n in range(100):
                    transaction.put(f"own/{name}/{n:03}", b"%d" % n)
                    transaction.increment("count")
                    assert transaction.get(f"own/{name}/{n:03}") == b"%d" % n
                    if n % 20 == 0:
                        assert len(list(transaction.scan("base/"))) == 200
                        assert len(list(transaction.scan(f"own/{name}/"))) == n + 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert failures == []
    assert db.get("count") == b"600"
    assert len(list(db.scan("own/"))) == 600


# Other processes


def test_a_folder_in_use_elsewhere(tmp_db: Path) -> None:
    with Neighbour_of(tmp_db, "open") as neighbour:
        with pytest.raises(DatabaseLockedError) as caught:
            Database.open(tmp_db)
        assert caught.value.details["pid"] == neighbour.process.pid
        assert caught.value.details["role"] == "embedded"
        assert "toondb-server" in caught.value.remediation
    Database.open(tmp_db).close()
    with Neighbour_of(tmp_db, "open_concurrent") as neighbour:
        with pytest.raises(DatabaseLockedError) as caught:
            Database.open(tmp_db)
        assert caught.value.details["pids"] == [neighbour.process.pid]
        assert "open_concurrent" in caught.value.remediation
        with Database.open_concurrent(tmp_db) as db:
            neighbour.put("k", b"theirs")
            assert db.get("k") == b"theirs"
            assert db.is_concurrent


def test_beside_a_daemon(tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon, IpcClient.connect(daemon.socket) as client:
        with pytest.raises(DatabaseLockedError) as caught:
            Database.open(tmp_db)
        assert caught.value.details["socket"] == str(daemon.socket)
        assert str(daemon.socket) in caught.value.remediation
        client.put("k", b"v")
        with Database.open_concurrent(tmp_db) as db:
            assert db.read_only
            assert db.is_concurrent
            assert db.get("k") == b"v"
            since = client.checkpoint()
            client.put("k", b"w", ttl=1000)
            assert db.get("k") == b"w"
            assert db.ttl("k") is not None
            assert [change.value for change in db.watch(since_lsn=since, timeout=0)] == [b"w"]
            with db.transaction() as transaction:
                assert transaction.get("k") == b"w"
            for write in (
                lambda: db.put("k", b""),
                lambda: db.delete("k"),
                lambda: db.put_many({"k": b""}),
                lambda: db.increment("n"),
                lambda: db.compare_and_set("k", None, b""),
                lambda: db.expire("k", 5),
                lambda: db.create_table("t", {"a": "text"}),
                lambda: db.checkpoint(),
                lambda: db.pipeline().put("k", b"").execute(),
            ):
                with pytest.raises(DatabaseLockedError, match="IpcClient"):
                    write()
            assert db.stats()["access"] == "read"


# What is dropped without being closed


def test_a_dropped_handle_is_told_and_closed(tmp_db: Path) -> None:
    db = Database.open(tmp_db)
    db.put("k", b"v")
    held = [db]
    del db
    with pytest.warns(ResourceWarning, match=f"the database {tmp_db} was not closed"):
        held.clear()
    # Closing goes on behind; whoever wants the folder waits for it.
    with Neighbour_of(tmp_db, "open_concurrent") as neighbour:
        assert neighbour.call("get", "k") == "v"


def test_a_handle_in_a_cycle_is_closed(tmp_db: Path) -> None:
    db = Database.open(tmp_db)
    cycle: dict[str, Any] = {"db": db, "transaction": db.begin_transaction()}
    cycle["cycle"] = cycle
    del db, cycle
    with pytest.warns(ResourceWarning) as told:
        gc.collect()
    assert sorted(str(warning.message).split()[0] for warning in told) == ["the", "transaction"]
    with Database.open(tmp_db) as db:
        db.put("k", b"v")


def test_a_dropped_transaction_is_told_and_ends(db: Database) -> None:
    transaction = db.begin_transaction()
    transaction.put("k", b"v")
    held, told = [transaction], f"transaction {transaction.id} was neither committed nor aborted"
    del transaction
    with pytest.warns(ResourceWarning, match=told):
        held.clear()
    stats = db.stats()
    assert (stats["active_transactions"], stats["open_snapshots"], stats["transactions_aborted"]) == (0, 0, 1)
    assert db.get("k") is None


def test_the_collector_may_come_while_the_engine_is_locked(db: Database) -> None:
    """A transaction that is collected on a thread inside the engine must not wait for that thread."""
    cycle: dict[str, Any] = {"transaction": db.begin_transaction()}
    cycle["cycle"] = cycle
    del cycle

    def collect() -> None:
        with db._engine._open_lock:
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)

    def run() -> None:
        thread.start()
        thread.join(SECONDS)

    with pytest.warns(ResourceWarning):
        run()
    assert not thread.is_alive()
    assert db.stats()["active_transactions"] == 0


def test_a_scan_that_is_left_gives_its_snapshot_back(db: Database) -> None:
    db.put_many({f"{n:05}": b"x" for n in range(5000)})
    for _ in range(10):
        next(iter(db.scan()))
        next(iter(db.scan_batched(batch_size=1)))
    gc.collect()
    assert db.stats()["open_snapshots"] == 0


def test_a_program_that_never_closes_loses_nothing(tmp_db: Path) -> None:
    code = """
import sys
from toondb import Database
db = Database.open(sys.argv[1], {"sync_mode": "off"})
for n in range(1000):
    db.put(f"{n:04}", b"v")
txn = db.begin_transaction()
txn.put("never", b"committed")
"""
    run(code, tmp_db, options=())
    with Database.open(tmp_db) as db:
        assert db.stats()["keys_count"] == 1000
        assert db.get("never") is None


def test_it_cannot_be_pickled_or_copied(db: Database) -> None:
    transaction = db.begin_transaction()
    for item in (db, transaction):
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                attempt(item)
    assert db.get("k") is None
    transaction.abort()


# Fork


@pytest.mark.parametrize("exits", [True, False], ids=["exits", "finalizes"])
@pytest.mark.parametrize("opened", [Database.open, Database.open_concurrent])
def test_a_forked_child_is_refused_and_harms_nothing(tmp_db: Path, opened: Any, exits: bool) -> None:
    db = opened(tmp_db)
    db.put("k", b"v")
    transaction = db.begin_transaction()
    transaction.put("t", b"1")
    scan = db.scan()

    def child() -> list[str]:
        told = []
        for action in (
            lambda: db.get("k"),
            lambda: db.put("k", b"child"),
            lambda: db.put_many({"k": b"child"}),
            lambda: list(db.scan()),
            lambda: list(scan),
            lambda: db.query("k").count(),
            lambda: db.ttl("k"),
            lambda: db.increment("n"),
            lambda: db.begin_transaction(),
            lambda: list(db.watch(timeout=0)),
            lambda: db.stats(),
            lambda: db.checkpoint(),
            lambda: transaction.get("k"),
            lambda: transaction.put("t", b"child"),
            lambda: transaction.commit(),
            lambda: list(transaction.scan()),
            lambda: opened(tmp_db),
            lambda: opened(str(tmp_db)),
        ):
            try:
                told.append(repr(action()))
            except ForkedProcessError:
                told.append("refused")
        with contextlib.suppress(ForkedProcessError):
            transaction.abort()
        db.close()
        gc.collect()
        return told

    assert set(in_child(child, exits=exits)) == {"refused"}
    assert transaction.get("k") == b"v"
    transaction.commit()
    assert dict(db.scan()) == {b"k": b"v", b"t": b"1"}
    db.close()
    with Database.open(tmp_db) as db:
        assert dict(db.scan()) == {b"k": b"v", b"t": b"1"}


def test_a_child_may_open_what_the_parent_has_closed_or_never_opened(tmp_db: Path) -> None:
    Database.open(tmp_db).close()
    other = tmp_db.parent / "other"

    def child() -> bytes | None:
        with Database.open(tmp_db) as mine, Database.open(other) as another:
            mine.put("k", b"child")
            another.put("k", b"child")
            return mine.get("k")

    assert in_child(child, exits=False) == b"child"
    with Database.open(tmp_db) as db, Database.open(other) as another:
        assert db.get("k") == another.get("k") == b"child"


# Interrupts


INTERRUPTED = """
import signal, sys, threading
from toondb import Database
db = Database.open(sys.argv[1], {"sync_mode": sys.argv[2]})

dropped = []
# In a callback of a weak reference Python drops the exception.
sys.unraisablehook = lambda unraisable: dropped.append(unraisable.exc_type)
signal.signal(signal.SIGINT, signal.default_int_handler)
acknowledged = 0
interrupts = 0
n = 0

def put():
    global acknowledged
    db.put("put", b"%d" % n)
    acknowledged = n

def many():
    db.put_many({"many/a": b"%d" % n, "many/b": b"%d" % n})

def transact():
    with db.transaction() as txn:
        txn.put("txn/a", b"%d" % n)
        txn.put("txn/b", b"%d" % n)

actions = [put, many, transact, lambda: db.increment("count")]
while True:
    try:
        print("go on", flush=True)
        while True:
            n += 1
            actions[(n + interrupts) % len(actions)]()
            if dropped:
                raise dropped.pop()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupts += 1
        # Whatever it interrupted, writes go on and nothing is half there.
        assert int(db.get("put") or 0) >= acknowledged
        assert db.get("many/a") == db.get("many/b")
        assert db.get("txn/a") == db.get("txn/b")
        db.put("after", b"%d" % interrupts)
        assert db.get("after") == b"%d" % interrupts
        if interrupts == int(sys.argv[3]):
            break
        signal.signal(signal.SIGINT, signal.default_int_handler)
stats = db.stats()
assert stats["active_transactions"] == 0, stats
db.close()
print("whole", flush=True)
"""


@pytest.mark.parametrize("mode", ["full", "off"])
def test_ctrl_c_in_the_middle_of_writes(tmp_db: Path, mode: str) -> None:
    with start(INTERRUPTED, tmp_db, mode, 300, options=("-W", "error::RuntimeWarning")) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        try:
            for line in process.stdout:
                if line == "whole\n":
                    break
                process.send_signal(signal.SIGINT)
            err = process.stderr.read()
            assert process.wait(SECONDS) == 0, err
        finally:
            watchdog.cancel()
            process.kill()
    with Database.open(tmp_db) as db:
        assert db.get("after") == b"300"
        assert db.get("many/a") == db.get("many/b")
        assert db.get("txn/a") == db.get("txn/b")


# Sizes


def test_large_values(db: Database) -> None:
    value = os.urandom(1 << 20) * 64
    db.put("large", value)
    assert db.get("large") == value
    with db.transaction() as transaction:
        transaction.put("large/2", value)
        assert transaction.get("large/2") == value
    assert [len(item) for _, item in db.scan("large")] == [len(value)] * 2
    assert [change.value == value for change in db.watch("large/2", since_lsn=0, timeout=0)] == [True]
    assert db.compare_and_set("large", value, b"small")
    assert db.get("large") == b"small"


SCANNED = """
import sys
from toondb import Database

def private():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) // 1024

with Database.open(sys.argv[1], {"sync_mode": "off"}) as db:
    for n in range(0, 3000, 100):
        db.put_many({f"{k:06}": b"x" * 100_000 for k in range(n, n + 100)})
    assert db.stats()["storage_used_bytes"] > 300_000_000
    def use(look):
        def count(rows):
            n = 0
            for n, _ in enumerate(rows, 1):
                if not n % 100:
                    look()
            return n
        assert count(db.scan()) == 3000
        assert count(db.scan(reverse=True)) == 3000
        assert count(db.scan_batched(batch_size=1000)) == 3000
        assert db.query("").where({"value": "y"}).count() == 0
        look()
        with db.transaction() as txn:
            txn.put("000000x", b"")
            assert count(txn.scan()) == 3001
            txn.abort()
        assert count(db.watch(since_lsn=0, timeout=0)) == 3000
    before = most = private()
    def look():
        global most
        most = max(most, private())
    use(look)
    print(most - before)
"""


def test_scanning_a_large_store_takes_little_memory(tmp_db: Path) -> None:
    """300 MB are read in several ways; memory of the process (the page cache is the system's) grows by little."""
    grown = int(run(SCANNED, tmp_db))
    assert grown < 60, f"{grown} MiB"


def test_commit_and_abort_take_an_object_or_an_id(db: Database) -> None:
    with Database.open(db.path) as same:
        transaction = db.begin_transaction()
        transaction.put("k", b"v")
        assert same.commit(transaction.id) == 1
        with pytest.raises(TransactionClosedError):
            db.abort(transaction.id)
        with pytest.raises(TransactionClosedError):
            db.abort(transaction)


def test_closing_ends_a_watch(db: Database) -> None:
    """Also one that waits, and quietly."""
    seen: list[bytes | None] = []
    watched = threading.Event()

    def watch() -> None:
        for change in db.watch(since_lsn=0):
            seen.append(change.value)
            watched.set()

    db.put("k", b"v")
    with Database.open(db.path):  # the engine goes on
        thread = threading.Thread(target=watch)
        thread.start()
        assert watched.wait(SECONDS)
        db.close()
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert seen == [b"v"]


def test_plugins_are_those_of_a_handle(db: Database) -> None:
    assert db.plugins is db.plugins
    assert len(db.plugins) == 0
    with Database.open(db.path) as other:
        assert other.plugins is not db.plugins
