"""Check, backup, restore and compact: complete or without a trace, whatever stops them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from toondb.engine import file_swap, maintenance
from toondb.engine.engine import Engine
from toondb.engine.environment import DATA_FILE
from toondb.engine.file_swap import LMDB_LOCK_FILE, NEW_FILE
from toondb.engine.options import EngineOptions
from toondb_protocol.errors import (
    ConfigurationError,
    CorruptionError,
    DatabaseError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    StorageError,
    StorageFullError,
)
from toondb_protocol.record import HEADER_SIZE

SECONDS = 30.0
SHORT_HISTORY = EngineOptions(change_history_bytes=1 << 16)
BYTES = {b"key/%03d" % number: b"value %d" % number * 20 for number in range(300)}


def fill(folder: Path, content: dict[bytes, bytes]) -> None:
    with Engine(folder) as engine:
        engine.write(list(content.items()))


def content(folder: Path) -> dict[bytes, bytes]:
    """Everything in a store, read by the engine; it must not be created for that."""
    with Engine(folder, EngineOptions(create_if_missing=False)) as engine:
        scan = engine.scan()
        flat: list[bytes] = []
        while not scan.exhausted:
            flat += scan.batch(1000, 1 << 20)
        scan.close()
    return dict(zip(flat[::2], flat[1::2], strict=True))


def fill_and_delete(folder: Path) -> None:
    """BYTES, and a file that is mostly free pages."""
    with Engine(folder, SHORT_HISTORY) as engine:
        engine.write(list(BYTES.items()))
        engine.write([(b"gone/%05d" % number, bytes(1000)) for number in range(3000)])
        engine.write([(b"gone/%05d" % number, None) for number in range(3000)])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A closed store with BYTES."""
    fill(tmp_path / "db", BYTES)
    return tmp_path / "db"


@pytest.fixture
def saved(db: Path, tmp_path: Path) -> Path:
    """A backup of it."""
    maintenance.backup(db, tmp_path / "saved")
    return tmp_path / "saved"


def damage(file: Path) -> None:
    """Change one byte of a stored value."""
    data = bytearray(file.read_bytes())
    # The record, and not its copy in the change log, which has no header of a record before the value.
    at = data.index(b"value 150value 150")
    while data[at - len(b"key/150") - HEADER_SIZE : at - HEADER_SIZE] != b"key/150":
        at = data.index(b"value 150value 150", at + 1)
    data[at] ^= 1
    file.write_bytes(data)


# Check


def test_check_at_rest_and_open(db: Path) -> None:
    report = maintenance.check(db)
    assert report.ok
    assert report.records == len(BYTES)
    with Engine(db) as engine:
        engine.put(b"more", b"1")
        own = maintenance.check(db, environment=engine.environment.lmdb)
    assert (own.ok, own.records, own.lsn) == (True, len(BYTES) + 1, len(BYTES) + 1)


def test_check_leaves_nothing_in_a_backup(saved: Path) -> None:
    assert maintenance.check(saved).ok
    assert names(saved) == {"data.mdb", "backup.json"}


def test_check_reports_damage(db: Path) -> None:
    damage(db / DATA_FILE)
    report = maintenance.check(db)
    assert [damage.key for damage in report.damages] == [b"key/150"]


def test_check_without_a_database(tmp_path: Path) -> None:
    with pytest.raises(DatabaseNotFoundError, match="there is no database in"):
        maintenance.check(tmp_path)
    with pytest.raises(DatabaseNotFoundError):
        maintenance.check(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="is a file"):
        maintenance.check(tmp_path / "file")


# Backup


@pytest.mark.parametrize("compact", [False, True])
def test_backup_is_a_complete_store(db: Path, tmp_path: Path, compact: bool) -> None:
    seen: list[tuple[str, int, int]] = []
    target = tmp_path / "backup"
    report = maintenance.backup(
        db, target, compact=compact, progress=lambda what, done, total: seen.append((what, done, total))
    )
    assert names(target) == {"data.mdb", "backup.json"}
    assert (target / DATA_FILE).stat().st_mode & 0o777 == 0o600
    assert target.stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == {"db", "backup"}
    manifest = json.loads((target / "backup.json").read_text())
    assert manifest.pop("format") == 1
    assert {"path": str(target), **manifest} == report.to_json()
    assert (report.lsn, report.records) == (len(BYTES), len(BYTES))
    assert report.bytes == (target / DATA_FILE).stat().st_size
    with Engine(db) as engine:
        assert report.store_id == engine.format["id"]
    assert {what for what, _, _ in seen} == {"copying", "checking"}
    assert all(0 < done <= total for _, done, total in seen)
    assert content(target) == BYTES


def test_backup_replaces_an_empty_folder(db: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    maintenance.backup(db, tmp_path / "empty")
    assert content(tmp_path / "empty") == BYTES


def test_compact_backup_is_smaller(tmp_path: Path) -> None:
    fill_and_delete(tmp_path / "db")
    plain = maintenance.backup(tmp_path / "db", tmp_path / "plain")
    small = maintenance.backup(tmp_path / "db", tmp_path / "small", compact=True)
    assert small.bytes < plain.bytes // 4
    assert content(tmp_path / "small") == BYTES


def test_backup_from_the_process_that_has_it_open(tmp_path: Path) -> None:
    stop = threading.Event()
    with Engine(tmp_path / "db") as engine:
        engine.write([(b"a", b"0"), (b"b", b"0")])

        def load() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                transaction = engine.begin()
                transaction.put(b"a", b"%d" % number)
                transaction.put(b"b", b"%d" % number)
                engine.commit(transaction)

        writer = threading.Thread(target=load)
        writer.start()
        try:
            for number in range(4):
                folder = tmp_path / f"backup{number}"
                maintenance.backup(
                    tmp_path / "db", folder, compact=number % 2 == 1, environment=engine.environment.lmdb
                )
        finally:
            stop.set()
            writer.join()
    for number in range(4):
        saved = content(tmp_path / f"backup{number}")
        assert saved[b"a"] == saved[b"b"]


def test_backup_refuses_bad_targets(db: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(db)
    cases = [
        (db, "inside the database folder"),
        (db / "backup", "inside the database folder"),
        (tmp_path / "link" / "backup", "inside the database folder"),
        (tmp_path / "full", "is not empty; it was left as it is"),
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "missing" / "backup", "does not exist"),
        (Path("/proc"), "is not empty"),
    ]
    before = names(tmp_path)
    for target, text in cases:
        with pytest.raises(ConfigurationError, match=text):
            maintenance.backup(db, target)
    assert names(tmp_path) == before
    assert names(tmp_path / "full") == {"mine"}
    assert names(db) <= {"data.mdb", "lock.mdb", "toondb.lock"}


@pytest.mark.parametrize("compact", [False, True])
def test_backup_of_a_damaged_store_is_refused(db: Path, tmp_path: Path, compact: bool) -> None:
    damage(db / DATA_FILE)
    with pytest.raises(CorruptionError, match="key/150"):
        maintenance.backup(db, tmp_path / "backup", compact=compact)
    assert names(tmp_path) == {"db"}


@pytest.mark.parametrize("compact", [False, True])
def test_backup_of_a_file_without_sense(db: Path, tmp_path: Path, compact: bool) -> None:
    (db / DATA_FILE).write_bytes(b"not a database" * 1000)
    with pytest.raises(CorruptionError):
        maintenance.backup(db, tmp_path / "backup", compact=compact)
    assert names(tmp_path) == {"db"}


@pytest.mark.parametrize("compact", [False, True])
def test_interrupted_backup_leaves_nothing(tmp_path: Path, compact: bool) -> None:
    fill(tmp_path / "db", {b"big/%d" % number: os.urandom(1 << 20) for number in range(8)})
    threads = threading.active_count()

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "copying":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        maintenance.backup(tmp_path / "db", tmp_path / "backup", compact=compact, progress=interrupt)
    assert names(tmp_path) == {"db"}
    assert threading.active_count() == threads


# Another process that is in the middle of a backup


@contextmanager
def backup_in_the_middle(db: Path, target: Path) -> Iterator[subprocess.Popen[str]]:
    """A child that stands still inside a backup until a line is written to it."""
    code = """
        import sys
        from toondb.engine import maintenance
        asked = []
        def wait(what, done, total):
            if not asked:
                asked.append(1)
                print("copying", flush=True)
                sys.stdin.readline()
        maintenance.backup(sys.argv[1], sys.argv[2], progress=wait)
        print("done", flush=True)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(db), str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        try:
            assert child.stdout.readline() == "copying\n"
            yield child
        finally:
            child.kill()


def test_two_backups_to_one_place(db: Path, tmp_path: Path) -> None:
    with backup_in_the_middle(db, tmp_path / "backup") as child:
        with pytest.raises(DatabaseLockedError, match="another backup to"):
            maintenance.backup(db, tmp_path / "backup")
        output, _ = child.communicate("go on\n", timeout=SECONDS)
        assert output == "done\n"
    assert content(tmp_path / "backup") == BYTES


def test_no_replacing_during_a_backup(db: Path, saved: Path, tmp_path: Path) -> None:
    with backup_in_the_middle(db, tmp_path / "backup"):
        with pytest.raises(DatabaseLockedError, match=r"being read \(backup, check"):
            maintenance.compact(db)
        with pytest.raises(DatabaseLockedError, match=r"being read \(backup, check"):
            maintenance.restore(saved, db, force=True)
        maintenance.backup(db, tmp_path / "other")
    assert content(db) == BYTES


def test_a_killed_backup_is_cleaned_up_by_the_next(db: Path, tmp_path: Path) -> None:
    with backup_in_the_middle(db, tmp_path / "backup") as child:
        child.kill()
        child.wait(SECONDS)
    assert not (tmp_path / "backup").exists()
    assert names(tmp_path) == {"db", ".backup.partial"}
    maintenance.backup(db, tmp_path / "backup")
    assert names(tmp_path) == {"db", "backup"}
    assert content(tmp_path / "backup") == BYTES


# Restore


def test_restore_to_a_new_folder(saved: Path, tmp_path: Path) -> None:
    report = maintenance.restore(saved, tmp_path / "new")
    assert report.previous is None
    assert (report.lsn, report.records) == (len(BYTES), len(BYTES))
    assert content(tmp_path / "new") == BYTES
    assert (tmp_path / "new" / DATA_FILE).stat().st_mode & 0o777 == 0o600
    assert content(saved) == BYTES


def test_restore_of_a_plain_file(saved: Path, tmp_path: Path) -> None:
    maintenance.restore(saved / DATA_FILE, tmp_path / "new")
    assert content(tmp_path / "new") == BYTES


def test_restore_keeps_what_was_there(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    fill(target, {b"old": b"1"})
    with pytest.raises(DatabaseError, match="has a database already"):
        maintenance.restore(saved, target)
    assert content(target) == {b"old": b"1"}
    first = maintenance.restore(saved, target, force=True)
    assert content(target) == BYTES
    assert first.previous is not None
    # And back again, from inside the folder.
    second = maintenance.restore(first.previous, target, force=True)
    assert content(target) == {b"old": b"1"}
    assert second.previous not in (None, first.previous)


def test_restore_refuses_what_is_no_backup(db: Path, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    before = names(tmp_path)
    cases: list[tuple[Path, type[Exception], str]] = [
        (tmp_path / "missing", DatabaseNotFoundError, "there is no backup"),
        (tmp_path / "empty", DatabaseNotFoundError, "it has no data.mdb"),
        (tmp_path / "text", CorruptionError, "is damaged"),
        (Path("/dev/null"), DatabaseNotFoundError, "is not a file"),
    ]
    for source, kind, text in cases:
        with pytest.raises(kind, match=text):
            maintenance.restore(source, tmp_path / "new")
    with pytest.raises(ConfigurationError, match="is the database itself"):
        maintenance.restore(db, db, force=True)
    with pytest.raises(ConfigurationError, match="does not exist"):
        maintenance.restore(saved, tmp_path / "no" / "parent")
    with Engine(db), pytest.raises(DatabaseLockedError, match="is a database in use, not a backup"):
        maintenance.restore(db, tmp_path / "new")
    assert names(tmp_path) == before


def test_restore_refuses_a_foreign_lmdb_file(tmp_path: Path) -> None:
    import lmdb

    with lmdb.open(str(tmp_path / "foreign"), map_size=1 << 20) as environment, environment.begin(write=True) as txn:
        txn.put(b"a", b"b")
    with pytest.raises(CorruptionError, match="not a ToonDB store"):
        maintenance.restore(tmp_path / "foreign", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_restore_refuses_damage(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    fill(target, {b"old": b"1"})
    damage(saved / DATA_FILE)
    with pytest.raises(CorruptionError, match="checksum"):
        maintenance.restore(saved, target, force=True)
    with pytest.raises(CorruptionError, match="key/150"):
        maintenance.restore(saved / DATA_FILE, target, force=True)
    (saved / "backup.json").write_text("{")
    with pytest.raises(CorruptionError, match=r"backup\.json is damaged"):
        maintenance.restore(saved, target, force=True)
    assert names(target) == {"data.mdb", "lock.mdb", "toondb.lock"}
    assert content(target) == {b"old": b"1"}


def test_replacing_needs_the_owner_lock(db: Path, saved: Path) -> None:
    with Engine(db):
        for replace in (lambda: maintenance.restore(saved, db, force=True), lambda: maintenance.compact(db)):
            with pytest.raises(DatabaseLockedError, match=f"embedded with pid {os.getpid()}") as caught:
                replace()
            assert "toondb-server stop" in caught.value.remediation
    assert content(db) == BYTES


# Compact


def test_compact_shrinks_and_keeps_everything(tmp_path: Path) -> None:
    fill_and_delete(tmp_path / "db")
    before = maintenance.check(tmp_path / "db")
    report = maintenance.compact(tmp_path / "db")
    assert report.bytes_after < report.bytes_before // 4
    assert report.bytes_after == (tmp_path / "db" / DATA_FILE).stat().st_size
    assert (report.lsn, report.records) == (before.lsn, len(BYTES))
    assert content(tmp_path / "db") == BYTES
    with Engine(tmp_path / "db") as engine:
        assert before.lsn is not None
        assert engine.put(b"next", b"1") == before.lsn + 1
    assert maintenance.check(tmp_path / "db").ok


def test_compact_refuses_damage_and_absence(db: Path, tmp_path: Path) -> None:
    damage(db / DATA_FILE)
    raw = (db / DATA_FILE).read_bytes()
    with pytest.raises(CorruptionError, match="key/150"):
        maintenance.compact(db)
    assert (db / DATA_FILE).read_bytes() == raw
    with pytest.raises(DatabaseNotFoundError):
        maintenance.compact(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


# The swap


def test_the_lock_file_goes_first(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    real_unlink, real_rename = os.unlink, os.rename

    def unlink(path: Path) -> None:
        calls.append(("unlink", path.name))
        real_unlink(path)

    def rename(old: Path, new: Path) -> None:
        calls.append(("rename", new.name))
        real_rename(old, new)

    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(os, "rename", rename)
    shutil.copy(db / DATA_FILE, db / NEW_FILE)
    file_swap.swap_database(db, db / NEW_FILE)
    assert calls == [("unlink", LMDB_LOCK_FILE), ("rename", DATA_FILE)]


def test_a_failed_swap_changes_nothing(db: Path) -> None:
    keep = db / "kept"
    with pytest.raises(OSError) as caught:
        file_swap.swap_database(db, db / "missing", keep=keep)
    assert caught.value.errno == errno.ENOENT
    assert not keep.exists()
    assert content(db) == BYTES


def test_a_reader_of_the_old_pair_is_not_disturbed(db: Path, saved: Path) -> None:
    """A process that has the files open while they are replaced goes on reading the old store."""
    code = """
        import sys, lmdb
        environment = lmdb.open(sys.argv[1], readonly=True, max_dbs=4, map_size=1 << 30)
        kv = environment.open_db(b"kv", create=False)
        def read():
            with environment.begin(db=kv) as txn:
                return [bytes(value[13:]) for _, value in txn.cursor()]
        first = read()
        print("open", flush=True)
        sys.stdin.readline()
        print("same" if read() == first else "other", flush=True)
    """
    with Engine(db) as engine:
        engine.put(b"later", b"1")
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(db)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child:
        try:
            assert child.stdout.readline() == "open\n"
            maintenance.restore(saved, db, force=True)
            with Engine(db) as engine:
                for round_ in range(20):
                    engine.write([(b"new/%d" % number, b"%d" % round_ * 500) for number in range(200)])
                output, _ = child.communicate("again\n", timeout=SECONDS)
        finally:
            child.kill()
    assert output == "same\n"
    report = maintenance.check(db)
    assert (report.ok, report.records) == (True, len(BYTES) + 200)


CRASHING = """
    import os, sys
    from toondb.engine import maintenance

    operation, step, args = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    done = 0

    def crash_at(name):
        real = getattr(os, name)
        def call(*args, **kwargs):
            global done
            if done == step:
                os._exit(77)
            done += 1
            return real(*args, **kwargs)
        setattr(os, name, call)

    for name in ("open", "write", "fsync", "link", "unlink", "rename", "ftruncate", "mkdir", "close"):
        crash_at(name)
    if operation == "restore":
        maintenance.restore(*args, force=True)
    elif operation == "compact":
        maintenance.compact(*args)
    else:
        maintenance.backup(*args)
"""


def crash(operation: str, step: int, *args: Path) -> bool:
    """Run an operation in a child that dies before its system call number ``step``; False when it ended before."""
    command = [sys.executable, "-c", textwrap.dedent(CRASHING), operation, str(step), *map(str, args)]
    child = subprocess.run(command, timeout=SECONDS, capture_output=True, text=True, check=False)
    assert child.returncode in (0, 77), child.stderr
    return child.returncode == 77


def test_a_crash_leaves_the_old_store_or_the_new(tmp_path: Path) -> None:
    old, new = {b"old/%d" % number: b"1" for number in range(50)}, {b"new": b"2"}
    fill(tmp_path / "source", new)
    maintenance.backup(tmp_path / "source", tmp_path / "saved")
    fill(tmp_path / "template", old)
    outcomes: list[bool] = []
    step = 0
    while True:
        target = tmp_path / f"target{step}"
        shutil.copytree(tmp_path / "template", target)
        crashed = crash("restore", step, tmp_path / "saved", target)
        found = content(target)
        assert found in (old, new), step
        outcomes.append(found == new)
        with Engine(target) as engine:  # and it can be written
            engine.put(b"more", b"3")
        assert maintenance.check(target).ok
        # Whatever was left behind is not in the way.
        maintenance.restore(tmp_path / "saved", target, force=True)
        assert content(target) == new
        assert not (target / NEW_FILE).exists()
        if not crashed:
            break
        step += 1
    assert outcomes == sorted(outcomes)  # old until some step, new from there on
    assert outcomes.count(True) >= 2
    assert outcomes.count(False) >= 5


def test_a_crash_while_compacting_loses_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "template", BYTES)
    step = 0
    while True:
        target = tmp_path / f"target{step}"
        shutil.copytree(tmp_path / "template", target)
        crashed = crash("compact", step, target)
        assert content(target) == BYTES, step
        maintenance.compact(target)
        assert content(target) == BYTES
        if not crashed:
            break
        step += 1
    assert step > 5


def test_a_crash_while_backing_up_shows_no_backup(tmp_path: Path) -> None:
    fill(tmp_path / "db", BYTES)
    step = 0
    while True:
        target = tmp_path / f"backup{step}"
        crashed = crash("backup", step, tmp_path / "db", target)
        if target.exists():
            assert content(target) == BYTES
        if not crashed:
            break
        assert content(tmp_path / "db") == BYTES
        step += 1
    assert step > 5


# No room, no permission


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    folder = Path(tempfile.mkdtemp(prefix="toondb-disk-"))
    with ExitStack() as stack:
        stack.callback(folder.rmdir)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "toondb-test", str(folder)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("this sandbox forbids mounting a file system")
        stack.callback(subprocess.run, ["umount", str(folder)], check=True)
        yield folder


def big(folder: Path) -> dict[bytes, bytes]:
    stored = {b"big/%d" % number: bytes(range(256)) * 400 for number in range(20)}
    fill(folder, stored)
    return stored


def test_backup_to_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    stored = big(tmp_path / "db")
    with pytest.raises(StorageFullError, match="No space left"):
        maintenance.backup(tmp_path / "db", small_disk / "backup")
    assert names(small_disk) == set()
    with pytest.raises(ConfigurationError, match="is a mount point"):
        maintenance.backup(tmp_path / "db", small_disk)
    assert content(tmp_path / "db") == stored


def test_restore_and_compact_on_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    big(tmp_path / "db")
    maintenance.backup(tmp_path / "db", tmp_path / "saved")
    with pytest.raises(StorageFullError):
        maintenance.restore(tmp_path / "saved", small_disk / "db")
    assert names(small_disk) == set()
    stored = {b"half": bytes(700_000)}
    fill(small_disk / "db", stored)
    with pytest.raises(StorageFullError):
        maintenance.compact(small_disk / "db")
    with pytest.raises(StorageFullError):
        maintenance.restore(tmp_path / "saved", small_disk / "db", force=True)
    assert names(small_disk / "db") <= {"data.mdb", "lock.mdb", "toondb.lock"}
    assert content(small_disk / "db") == stored


def test_a_file_size_limit_is_like_a_full_disk(tmp_path: Path) -> None:
    """The same without root: setrlimit(2) makes write() fail with EFBIG."""
    big(tmp_path / "db")
    code = """
        import resource, sys
        from toondb.engine import maintenance
        from toondb_protocol.errors import StorageFullError
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
        try:
            maintenance.backup(sys.argv[1], sys.argv[2])
        except StorageFullError as error:
            print("full:", error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "db"), str(tmp_path / "backup")]
    child = subprocess.run(command, timeout=SECONDS, capture_output=True, text=True, check=True)
    assert child.stdout.startswith("full:")
    assert names(tmp_path) == {"db"}


def test_files_that_root_makes_belong_to_the_folders_owner(db: Path, saved: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give files away")
    for path in (db, *db.iterdir()):
        os.chown(path, 65534, 65534)
    (db / LMDB_LOCK_FILE).unlink()
    maintenance.compact(db)
    maintenance.check(db)
    maintenance.restore(saved, db, force=True)
    assert {path.stat().st_uid for path in db.iterdir()} == {65534}
    outside = db.parent / "outside"
    outside.touch(0o600)
    os.link(outside, db / "link")
    file_swap.hand_over(db, "link", "missing")
    assert outside.stat().st_uid == 0


def test_system_errors_say_what_to_do() -> None:
    cases: list[tuple[int, type[Exception]]] = [
        (errno.ENOSPC, StorageFullError),
        (errno.EACCES, ConfigurationError),
        (errno.EROFS, ConfigurationError),
        (errno.EIO, StorageError),
    ]
    for number, kind in cases:
        with pytest.raises(kind, match="copying failed") as caught, file_swap.file_errors("copying"):
            raise OSError(number, os.strerror(number), "/some/file")
        error: Any = caught.value
        assert "/some/file" in error.message
        assert error.remediation
