"""Ctrl-C anywhere in a statement: the session of a transaction stays usable, or ends; nobody waits for ever for it."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.support.ctrl_c import CtrlC, cut_at_every_step, nothing_reported, reported
from tests.support.daemon import SECONDS
from toondb.engine.engine import Engine
from toondb.engine.transaction import Transaction
from toondb.sql.connection import SqlConnection
from toondb.sql.engine import SqlEngine, SqlSession
from toondb.sql.write_queue import Write, WriteQueue
from toondb_protocol.errors import ToonDBError, TransactionError


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with nothing_reported():
        yield


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "db") as engine:
        yield engine


@pytest.fixture
def sql(engine: Engine) -> Iterator[SqlEngine]:
    sql = SqlEngine(engine)
    sql.execute("CREATE TABLE t (a UNIQUE)")
    sql.execute("INSERT INTO t VALUES (0)")
    yield sql
    sql.close()


def ends(work: Callable[[], object]) -> bool:
    """Whether ``work`` comes to an end, in a thread of its own: this one must not wait for ever."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return not thread.is_alive()


def _stream(session: SqlSession) -> None:
    stream = session.stream("SELECT a FROM t")
    stream.fetch(1)
    stream.close()


STATEMENTS: dict[str, Callable[[SqlSession], object]] = {
    "read": lambda session: session.execute("SELECT a FROM t"),
    "write": lambda session: session.execute("INSERT INTO t VALUES (1), (2)"),
    "fail": lambda session: session.execute("INSERT OR FAIL INTO t VALUES (1), (0)"),
    "many": lambda session: session.execute_many("INSERT INTO t VALUES (?)", [(1,), (2,)]),
    "script": lambda session: session.execute_script("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)"),
    "stream": _stream,
}


@pytest.mark.parametrize("wrote", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", STATEMENTS)
def test_ctrl_c_at_every_step_of_a_statement(engine: Engine, sql: SqlEngine, name: str, wrote: bool) -> None:
    seen: list[Any] = []
    step, cut = 0, True
    while cut:
        step += 1
        # A connection that was cut is not used again, so that each round has the same steps.
        while sql._idle:
            sql._idle.pop().close()
        transaction = engine.begin()
        session = sql.session(transaction)
        if wrote:
            session.execute("INSERT INTO t VALUES (-1)")

        def work(session: SqlSession = session) -> None:
            with contextlib.suppress(ToonDBError):  # told by INSERT OR FAIL, and when the transaction has ended
                STATEMENTS[name](session)

        def look(session: SqlSession = session, transaction: Transaction = transaction) -> None:
            try:
                seen.append([row for (row,) in session.execute("SELECT a FROM t ORDER BY a").rows])
            except TransactionError:
                seen.append(None)
            engine.abort(transaction)

        cut = CtrlC(step).during(work)
        assert ends(look), step
        before = [-1, 0] if wrote else [0]
        # All of it, or none.
        assert seen.pop() in (None, before, [*before, 1, 2]), step
    assert step > 30
    assert sql.execute("SELECT a FROM t").rows == [(0,)]


@pytest.mark.parametrize("name", ["read", "write", "stream"])
@pytest.mark.parametrize("commits", [True, False])
def test_ctrl_c_at_every_step_of_the_end(engine: Engine, sql: SqlEngine, name: str, commits: bool) -> None:
    def begin() -> tuple[Transaction, SqlSession]:
        transaction = engine.begin()
        session = sql.session(transaction)
        STATEMENTS[name](session)
        return transaction, session

    transaction, session = begin()

    def work() -> None:
        with contextlib.suppress(ToonDBError):
            if commits:
                engine.commit(transaction)
            else:
                engine.abort(transaction)

    def use() -> None:
        # As a stream does that somebody still has.
        with contextlib.suppress(ToonDBError):
            session.execute("SELECT a FROM t")
        with contextlib.suppress(ToonDBError):  # it is being committed, and stays so
            engine.abort(transaction)
        sql.execute("DELETE FROM t WHERE a > 0")

    steps = 0
    for steps in cut_at_every_step(work, ("toondb.sql", "toondb_protocol")):
        assert ends(use), steps
        assert sql.execute("SELECT a FROM t").rows == [(0,)]
        transaction, session = begin()
    assert steps > 10


def test_ctrl_c_at_every_step_of_waiting_for_a_turn() -> None:
    began, over = SimpleQueue[None](), threading.Event()

    def run(turn: list[Write[int, int]]) -> None:
        for write in turn:
            if not write.action:
                began.put(None)
                while not queue._waiting and not over.is_set():
                    time.sleep(0)
            write.result, write.done = write.action + 1, True

    queue: WriteQueue[int, int] = WriteQueue(run, SECONDS)
    step, cut = 0, True
    while cut:
        step += 1
        over.clear()
        leader = threading.Thread(target=queue.submit, args=(0,), daemon=True)
        leader.start()
        began.get(timeout=SECONDS)
        cut = CtrlC(step).during(lambda: queue.submit(1))
        over.set()
        leader.join(SECONDS)
        assert not leader.is_alive(), step
        assert ends(lambda: queue.submit(2)), step
    assert step > 10


def test_a_cut_block_ends_the_transaction(engine: Engine, sql: SqlEngine) -> None:
    """Whoever holds the error holds the block for as long as it likes; what comes later must not be undone with it."""
    transaction = engine.begin()
    session = sql.session(transaction)
    session.execute("INSERT INTO t VALUES (6)")
    cut: list[Any] = []

    def cut_after_the_begin(connection: SqlConnection) -> None:
        cut.append(connection._savepoint())
        cut[0].__enter__()

    session.run(cut_after_the_begin)
    with pytest.raises(TransactionError, match="could not be undone alone"):
        session.execute("INSERT INTO t VALUES (7)")
    cut.clear()
    gc.collect()
    with pytest.raises(TransactionError, match="could not be undone alone"):
        engine.commit(transaction)
    assert sql.execute("SELECT a FROM t").rows == [(0,)]


def test_a_cut_block_of_a_closed_connection(engine: Engine, sql: SqlEngine) -> None:
    cut: list[Any] = []

    def cut_after_the_begin(connection: SqlConnection) -> None:
        cut.append(connection._savepoint())
        cut[0].__enter__()
        raise KeyboardInterrupt

    transaction = engine.begin()
    with pytest.raises(KeyboardInterrupt):
        sql.session(transaction).run(cut_after_the_begin)
    engine.abort(transaction)
    with reported() as errors:
        cut.clear()
    assert errors == []
