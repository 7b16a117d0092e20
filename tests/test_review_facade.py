"""Mistakes and accidents that a review found: told alike in every mode, and nothing is left behind."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
import time
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import pytest

from tests.support.daemon import SECONDS, child_environ
from tests.support.stores import KINDS, open_store
from toondb import Database, ValidationError
from toondb_protocol.record import MAX_KEY_SIZE

HUGE = 10**5000
"""Python does not write it in decimal, and no float holds it."""


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_db: Path) -> Iterator[Any]:
    with open_store(request.param, tmp_db) as store:
        yield store


# Arguments


def test_put_many_takes_every_mapping(db: Any) -> None:
    assert db.put_many(MappingProxyType({"a": b"1", b"b": b"2"})) == 2
    assert db.put_many(UserDict({"c": b"3"})) == 1
    assert [tuple(row) for row in db.scan()] == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    with pytest.raises(ValidationError):
        db.put_many(MappingProxyType({("d", b"what would be a pair"): b"4"}))


@pytest.mark.parametrize(
    "row", [{b"k": b"", b"v": b""}, frozenset([b"k", b"v"]), iter([b"k", b"v"])], ids=["dict", "set", "iterator"]
)
def test_a_pair_is_a_tuple_or_list(db: Any, row: Any) -> None:
    with pytest.raises(ValidationError, match="an item is a pair"):
        db.put_many([row])
    assert list(db.scan()) == []


def test_the_rows_of_a_scan_are_pairs(db: Any) -> None:
    db.put_many({b"a": b"1", b"b" * MAX_KEY_SIZE: b""})
    assert db.put_many(db.scan()) == db.put_many(list(db.scan())) == 2


@pytest.mark.parametrize("ttl", [1e306, sys.float_info.max, 10**400, HUGE], ids=["float", "most", "long", "huge"])
def test_the_longest_times_to_live(db: Any, ttl: float) -> None:
    db.put("k", b"v", ttl=ttl)
    assert db.ttl("k") > 1e12
    assert db.expire("k", ttl)
    assert db.pipeline().put("k", b"v", ttl=ttl).execute() == [None]


def test_numbers_that_nothing_can_hold(db: Any) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: db.put("k", b"v", ttl=-HUGE),
        lambda: db.increment("k", HUGE),
        lambda: db.scan("", limit=-HUGE),
        lambda: db.watch(timeout=-HUGE),
        lambda: db.watch(since_lsn=-HUGE),
        lambda: db.query("").where(n=HUGE),
    ]
    for call in calls:
        with pytest.raises(ValidationError):
            result = call()
            list(result)
    db.watch(timeout=HUGE).close()


def test_a_delete_has_no_time_to_live(db: Any) -> None:
    db.put("k", b"v")
    for expected in (b"v", b"other", None):
        with pytest.raises(ValidationError, match="ttl goes with a new value"):
            db.compare_and_set("k", expected, None, ttl=10)
    with db.transaction() as txn, pytest.raises(ValidationError, match="ttl goes with a new value"):
        txn.compare_and_set("k", b"v", None, ttl=10)
    assert db.get("k") == b"v"


def test_a_filter_of_a_thousand_conditions(db: Any) -> None:
    db.put("row", b'{"n": 5}')
    bounds = [{"n": {"$gt": n}} for n in range(1000)]
    assert db.query("row").where({"$or": bounds}).count() == 1
    assert db.query("row").where({"$or": [{"n": {"$in": [[[n]] for n in range(900)]}}, {"n": 5}]}).count() == 1
    with pytest.raises(ValidationError, match="1000 conditions at most"):
        db.query("row").where({"$or": [*bounds, {}]}).count()


# Ctrl-C


class Interrupt:
    """Raises KeyboardInterrupt in this thread at the n-th step of our code, as Ctrl-C may."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("toondb", "threading", "_weakrefset")):
            return None
        self.left -= 1
        if self.left == 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self

    def during(self, work: Callable[[], object]) -> bool:
        """Whether ``work`` was interrupted."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def _wait_until_free(folder: Path) -> None:
    """Wait until nobody holds the folder. What was interrupted ends in a thread that nobody can join."""
    deadline = time.monotonic() + SECONDS
    with open(folder / "toondb.lock", "rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                assert time.monotonic() < deadline, "the folder is held, and there is no handle of it"
                time.sleep(0.001)


def _interrupted_open(folder: Path, interrupt: Interrupt) -> bool:
    opened: list[Database] = []
    return interrupt.during(lambda: opened.append(Database.open(folder)))


def _interrupted_close(folder: Path, interrupt: Interrupt) -> bool:
    return interrupt.during(Database.open(folder).close)


@pytest.mark.parametrize("accident", [_interrupted_open, _interrupted_close])
def test_ctrl_c_leaves_no_folder_locked(tmp_db: Path, accident: Callable[[Path, Interrupt], bool]) -> None:
    Database.open(tmp_db).close()
    interrupted = 0
    with warnings.catch_warnings():
        # A handle that is still open is closed by the collector, which says so.
        warnings.simplefilter("ignore", ResourceWarning)
        while accident(tmp_db, Interrupt(interrupted + 1)):
            gc.collect()
            _wait_until_free(tmp_db)
            interrupted += 1
        gc.collect()
        _wait_until_free(tmp_db)
    assert interrupted > 20


def test_a_watcher_at_the_end_of_the_process_is_silent(tmp_db: Path) -> None:
    program = """
import sys, threading
from toondb import Database
db = Database.open(sys.argv[1])
changes = db.watch()
seen = threading.Event()
def follow():
    for _ in changes:
        seen.set()
threading.Thread(target=follow, daemon=True).start()
db.put("k", b"v")
assert seen.wait(30)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, os.fspath(tmp_db)],
        env=child_environ(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
