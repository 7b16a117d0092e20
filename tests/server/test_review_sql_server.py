"""What a hostile review of SQL on the wire found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from tests.server.raw import COMMIT, END_STREAM, LOOPS, QUERY, TXN_ID, Raw, daemon_on, frame
from tests.server.sql_frames import rows, sql
from tests.support.daemon import Daemon
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, SyncMode
from toondb.sql.engine import SqlEngine
from toondb.sql.quick import QuickReader


@pytest.fixture(scope="module", params=LOOPS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with daemon_on(request.param) as running:
        with Raw(running.socket) as raw:
            assert raw.call(sql("CREATE TABLE t (a, b)")).code == END_STREAM
        yield running
        assert "internal error" not in running.log


def test_a_blind_transaction_does_not_overwrite_pages(daemon: Daemon) -> None:
    with Raw(daemon.socket) as one, Raw(daemon.socket) as other:
        assert not one.call(sql("CREATE TABLE acknowledged (a)")).error
        blind = one.begin(blind=True)
        assert not one.call(sql("INSERT INTO acknowledged VALUES ('blind')", txn=blind)).error
        for number in range(3):
            assert not other.call(sql("INSERT INTO acknowledged VALUES (?)", params=[number])).error
        assert one.call(frame(COMMIT, txn=blind)).error == "TRANSACTION_CONFLICT"
        assert rows(other.call(sql("SELECT a FROM acknowledged"))) == [(0,), (1,), (2,)]
        assert rows(other.call(sql("PRAGMA integrity_check"))) == [("ok",)]
        # Without SQL it is what it was: it depends on nothing.
        blind = one.begin(blind=True)
        assert one.call(frame(COMMIT, txn=blind)).code == TXN_ID


def test_the_last_row_id_in_a_transaction(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        txn = raw.begin()
        assert raw.call(sql("INSERT INTO t VALUES (1, 2)", txn=txn)).end["last_row_id"] == 1
        assert rows(raw.call(sql("SELECT last_insert_rowid()", txn=txn))) == [(1,)]
        assert raw.call(sql("UPDATE t SET b = last_insert_rowid()", txn=txn)).end["last_row_id"] == 0
        assert rows(raw.call(sql("SELECT b FROM t", txn=txn))) == [(1,)]
    with Raw(daemon.socket) as raw:
        assert rows(raw.call(sql("SELECT last_insert_rowid()"))) == [(0,)]


@pytest.mark.parametrize(
    "params",
    [
        b"\xdd" + (15_000_000).to_bytes(4, "big") + b"\x01" * 15_000_000,
        msgpack.packb([[1] * 1000] * 4000),
        msgpack.packb({str(number): 1 for number in range(65_537)}),
    ],
    ids=["one long array", "many arrays", "a long map"],
)
def test_values_that_would_take_seconds_to_decode(daemon: Daemon, params: bytes) -> None:
    body = b"\x82" + msgpack.packb("sql") + msgpack.packb("SELECT 1") + msgpack.packb("params") + params
    with Raw(daemon.socket) as raw:
        answer = raw.call(frame(QUERY, body, txn=0))
        assert answer.error == "MALFORMED_REQUEST"
        assert b"items" in answer.payload
        raw.ping()


# Statements that would keep the event loop busy while SQLite prepares them


@pytest.fixture
def short(tmp_path: Path) -> Iterator[tuple[SqlEngine, QuickReader]]:
    with Engine(tmp_path / "db", EngineOptions(sync_mode=SyncMode.OFF)) as engine:
        sql = SqlEngine(engine)
        sql.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
        sql.execute("INSERT INTO t VALUES (1, 2)")
        reader = QuickReader(sql)
        yield sql, reader
        reader.close()
        sql.close()


def run_once(sql: SqlEngine, text: str) -> None:
    """Run a statement as a client does: only what was run on a thread may be a short read."""
    stream = sql.stream(text)
    stream.fetch(1)
    stream.close()


def test_short_reads_have_few_parts(short: tuple[SqlEngine, QuickReader]) -> None:
    sql, reader = short
    before = "t"
    for number in range(8):
        sql.execute(f"CREATE VIEW v{number} AS SELECT a, b FROM {before} UNION ALL SELECT b, a FROM {before}")
        before = f"v{number}"
    joined = "SELECT 1 FROM t t0 " + " ".join(f"JOIN t t{number} USING (a)" for number in range(1, 60))
    wide = f"SELECT {', '.join(['b'] * 1900)} FROM t"
    for text in ("SELECT 1 FROM v7 LIMIT 1", joined, wide):
        run_once(sql, text)
        assert reader.run(text, None) is None, text[:60]
    for text in ("SELECT b FROM t WHERE a = 1", "SELECT a, b FROM v1", "SELECT x.a FROM t x JOIN t y USING (a)"):
        run_once(sql, text)
        assert reader.run(text, None) is not None, text


def test_there_are_no_short_reads_of_a_large_schema(short: tuple[SqlEngine, QuickReader]) -> None:
    sql, reader = short
    text = "SELECT b FROM t WHERE a = 1"
    run_once(sql, text)
    assert reader.run(text, None) is not None
    names = ", ".join(f"a_column_of_a_long_name_{number}" for number in range(1900))
    for number in range(4):
        sql.execute(f"CREATE TABLE wide{number} ({names})")
    run_once(sql, text)
    assert reader.run(text, None) is None
    for number in range(4):
        sql.execute(f"DROP TABLE wide{number}")
    run_once(sql, text)
    assert reader.run(text, None) is not None


def test_many_columns_of_one_name(short: tuple[SqlEngine, QuickReader]) -> None:
    sql, _ = short
    found = sql.execute('SELECT 1 AS a, 2 AS "a:1", 3 AS a, 4 AS a, 5 AS b, 6 AS b, 7 AS "a:2"').columns
    assert found == ["a", "a:1", "a:2", "a:3", "b", "b:1", "a:2:1"]
    assert len(set(sql.execute(f"SELECT {', '.join(['b'] * 1900)} FROM t").columns)) == 1900
