"""SQL in processes that are killed, and in several at once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import child_environ
from toondb.engine import maintenance
from toondb.engine.engine import Engine
from toondb.sql.engine import SqlEngine

SECONDS = 60

WRITER = """
import sys
from toondb.engine.engine import Engine
from toondb.sql.engine import SqlEngine
from toondb_protocol.errors import TransactionConflictError
path, shared, rounds = sys.argv[1], sys.argv[2] == "shared", int(sys.argv[3])
with Engine(path, shared=shared) as engine:
    sql = SqlEngine(engine)
    done = 0
    while done < rounds:
        transaction = engine.begin()
        session = sql.session(transaction)
        try:
            ((count,),) = session.execute("SELECT count FROM counter").rows
            session.execute("UPDATE counter SET count = ?", (count + 1,))
            session.execute("INSERT INTO log (number, text) VALUES (?, ?)", (count + 1, "x" * 3000))
            transaction.put(b"count", b"%d" % (count + 1))
            engine.commit(transaction)
        except TransactionConflictError:
            engine.abort(transaction)
            continue
        done += 1
        print(count + 1, flush=True)
    sql.close()
"""


def start(path: Path, kind: str, rounds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), kind, str(rounds)],
        env=child_environ(),
        stdout=subprocess.PIPE,
        text=True,
    )


def set_up(path: Path) -> None:
    with Engine(path) as engine:
        sql = SqlEngine(engine)
        sql.execute("CREATE TABLE counter (count INTEGER)")
        sql.execute("INSERT INTO counter VALUES (0)")
        sql.execute("CREATE TABLE log (number INTEGER UNIQUE, text TEXT)")
        sql.close()


def counted(path: Path) -> int:
    """The counter, after every invariant was looked at."""
    with Engine(path) as engine:
        sql = SqlEngine(engine)
        ((count,),) = sql.execute("SELECT count FROM counter").rows
        assert sql.execute("SELECT count(*), coalesce(max(number), 0) FROM log").rows == [(count, count)]
        assert int(engine.get(b"count") or b"0") == count
        assert sql.execute("PRAGMA integrity_check").rows == [("ok",)]
        sql.close()
    assert maintenance.check(path).ok
    return int(count)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "db"
    set_up(path)
    draw = random.Random(7)
    for _ in range(6):
        child = start(path, "alone", 10_000)
        assert child.stdout is not None
        acknowledged = 0
        for _ in range(draw.randint(1, 40)):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait(SECONDS)
        child.stdout.close()
        assert counted(path) >= acknowledged


@pytest.mark.parametrize("processes", [3])
def test_several_processes(tmp_path: Path, processes: int) -> None:
    path = tmp_path / "db"
    set_up(path)
    children = [start(path, "shared", 25) for _ in range(processes)]
    numbers: list[int] = []
    for child in children:
        out, _ = child.communicate(timeout=SECONDS)
        assert child.returncode == 0
        numbers += map(int, out.split())
    assert sorted(numbers) == list(range(1, 25 * processes + 1))
    assert counted(path) == 25 * processes
