"""SQL requests of hostile clients: combinations of keys, parts, orders, results and statements that are too much."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from tests.server.raw import (
    ABORT,
    CAP,
    COMMIT,
    END_STREAM,
    ERROR,
    GET,
    MIB,
    OK,
    PING,
    PONG,
    QUERY,
    ROW,
    TXN_ID,
    VALUE,
    Answer,
    Raw,
    daemon_on,
    frame,
    memory,
    peak_memory,
    put,
    reset_peak,
    scan,
    settled,
)
from tests.server.sql_frames import COUNT_UP, many, rows, sql
from tests.support.daemon import Daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all tests of this file; it must survive every one of them."""
    with daemon_on("auto", "--max-transaction-bytes", str(20 * MIB), "--sql-memory", str(64 * MIB)) as running:
        yield running
        assert "internal error" not in running.log


@pytest.fixture
def table(raw: Raw) -> Raw:
    """A connection, and an empty table ``t``."""
    assert raw.call(sql("DROP TABLE IF EXISTS t")).code == END_STREAM
    assert raw.call(sql("CREATE TABLE t (a UNIQUE, b)")).code == END_STREAM
    return raw


def count(raw: Raw) -> int:
    (found,) = rows(raw.call(sql("SELECT count(*) FROM t")))
    return int(found[0])


# Bodies


def test_bodies_too_large_or_of_too_many_things(table: Raw) -> None:
    insert = "INSERT INTO t VALUES (?, ?)"
    # One request may be as large as a frame, as long as there are few arrays and maps in it.
    assert table.call(sql(insert, params=[1, bytes(6 * MIB)])).end["affected"] == 1
    assert table.call(sql("SELECT length(b) FROM t")).rows == ["length(b)", 6 * MIB]
    large = {"sql": insert, "params": [2, bytes(5 * MIB)], "names": [[]] * 9}
    assert table.call(frame(QUERY, msgpack.packb(large), txn=0)).error == "MALFORMED_REQUEST"
    assert table.call(sql(insert, params=[3, bytes(CAP)])).error == "FRAME_TOO_LARGE"
    assert table.call(many(insert, [None] * 262_145, runs=1)).error == "MALFORMED_REQUEST"
    assert table.call(many("INSERT INTO t DEFAULT VALUES", [], runs=262_145)).error == "MALFORMED_REQUEST"
    assert table.call(many("INSERT INTO t DEFAULT VALUES", [], runs=(1 << 64) - 1)).error == "MALFORMED_REQUEST"
    assert table.call(sql(f"SELECT 1 /* {'x' * 5 * MIB} */")).error == "SQL"
    assert table.call(sql("SELECT ?", params=[1 << 63])).error == "VALIDATION"
    assert table.call(sql("SELECT ?", params=[])).error == "VALIDATION"
    assert table.call(sql("SELECT ?", params={"a": 1})).error in ("VALIDATION", "SQL")
    assert table.call(sql("SELECT :a", params=[1, 2])).error == "VALIDATION"
    assert rows(table.call(sql("SELECT :a, :a", params={"a": 1, "b": 2}))) == [(1, 1)]
    assert table.call(sql("SELECT 1, ?", params=[float("nan")])).rows[-1] is None
    assert count(table) == 1


@pytest.mark.parametrize("txn", [1 << 63, 12_345])
def test_sql_in_no_transaction_of_ours(table: Raw, txn: int) -> None:
    for request in (
        sql("SELECT 1", txn=txn),
        sql("SELECT 1", txn=txn, window=1),
        sql("INSERT INTO t VALUES (1, 1)", txn=txn),
        sql("INSERT INTO t VALUES (1, 1)", txn=txn, script=True),
        many("INSERT INTO t VALUES (?, ?)", [1, 1], txn=txn),
    ):
        assert table.call(request).error == "TRANSACTION_NOT_FOUND"
    assert count(table) == 0


# Parts of one statement

INSERT = "INSERT INTO t VALUES (?, ?)"


def part(number: int, *values: Any, more: bool = True, text: str = INSERT, txn: int = 0, **body: Any) -> bytes:
    return many(text, list(values), txn=txn, part=number, more=more, **body)


def test_parts_are_one_statement(table: Raw) -> None:
    table.send(part(0, 1, "a", 2, "b"), part(1, 3, "c"), part(2), part(3, 4, "d", more=False))
    got = table.answers(4)
    assert [reply.end["affected"] for reply in got] == [0, 0, 0, 4]
    assert count(table) == 4
    # A failure in the last part undoes those before it.
    table.send(part(0, 5, "e", 6, "f"), part(1, 1, "again", more=False))
    assert [reply.error for reply in table.answers(2)] == ["", "SQL_CONSTRAINT"]
    assert count(table) == 4
    txn = table.begin()
    table.send(part(0, 5, "e", txn=txn), part(1, 4, "again", txn=txn, more=False))
    assert [reply.error for reply in table.answers(2)] == ["", "SQL_CONSTRAINT"]
    table.send(part(0, 5, "e", txn=txn), part(1, 6, "f", txn=txn, more=False), frame(COMMIT, txn=txn))
    assert [reply.error or reply.code for reply in table.answers(3)] == [END_STREAM, END_STREAM, TXN_ID]
    assert count(table) == 6


@pytest.mark.parametrize(
    "broken",
    [
        [part(0, 1, 1), part(2, 3, 3, more=False)],
        [part(1, 1, 1), part(2, 3, 3, more=False)],
        [part(0, 1, 1), part(1, 2, 2), part(1, 2, 2), part(2, 3, 3, more=False)],
        [part(0, 1, 1), part(1, 2, 2, text=INSERT + " "), part(2, 3, 3, more=False)],
        [part(0, 1, 1), part(1, 2, 2, more=False, text=INSERT + " ")],
        [part(0, 1, 1), part(1, 2, more=False, runs=2)],
        [part(0, 1, 1), part(1, 2, 2, window=1), part(2, 3, 3, more=False)],
        [part(0, 1, 1), part(1, [2], 2), part(2, 3, 3, more=False)],
        [part(0, 1, 1), frame(QUERY, b"\xc1", txn=0), part(2, 3, 3, more=False)],
        [part(0, 1, 1), frame(QUERY, length=CAP + 1) + bytes(CAP + 1), part(2, 3, 3, more=False)],
        [part(0, 1, 1), sql("SELECT 1"), part(1, 2, 2, more=False)],
        [part(0, 1, 1), sql("SELEC"), part(1, 2, 2, more=False)],
        [part(0, 1, 1), part(1, 2, 2, txn=77, more=False)],
        [part(0, 1, bytes(11 * MIB)), part(1, 2, bytes(11 * MIB)), part(2, 3, 3, more=False)],
    ],
    ids=[
        "a part left out",
        "the first left out",
        "a part twice",
        "another text amid them",
        "another text at the end",
        "values that make no runs",
        "a key without meaning",
        "a value that is none",
        "a body that is no map",
        "a frame over the cap",
        "a statement amid them",
        "a failed statement amid them",
        "another transaction",
        "more than a transaction takes",
    ],
)
def test_a_refused_part_is_the_end_of_all(table: Raw, broken: list[bytes]) -> None:
    table.send(*broken)
    got = table.answers(len(broken))
    assert got[-1].code == ERROR
    assert count(table) == 0
    # Nothing of it is taken for a part of what comes next.
    assert table.call(part(1, 9, 9, more=False)).error == "MALFORMED_REQUEST"
    table.send(part(0, 1, 1), part(1, 2, 2, more=False))
    assert [reply.error for reply in table.answers(2)] == ["", ""]
    assert count(table) == 2


def test_other_requests_between_parts(table: Raw) -> None:
    txn = table.begin()
    table.send(
        part(0, 1, 1),
        frame(PING),
        put(b"between", b"1"),
        frame(GET, b"between"),
        put(b"inside", b"2", txn=txn),
        frame(COMMIT, txn=txn),
        scan(prefix=b"between"),
        frame(QUERY, msgpack.packb({"prefix": "t"}), txn=0),
        frame(0x7F),
        part(1, 2, 2, more=False),
    )
    got = [reply.error or reply.code for reply in table.answers(10)]
    assert got == [END_STREAM, PONG, OK, VALUE, OK, TXN_ID, END_STREAM, END_STREAM, "UNKNOWN_OPCODE", END_STREAM]
    assert count(table) == 2


def test_parts_of_a_transaction_that_ends_between_them(table: Raw) -> None:
    for end in (COMMIT, ABORT):
        txn = table.begin()
        table.send(part(0, 1, 1, txn=txn), frame(end, txn=txn), part(1, 2, 2, txn=txn, more=False))
        assert table.answers(3)[2].error == "TRANSACTION_NOT_FOUND"
    assert count(table) == 0


def test_parts_of_two_connections_do_not_mix(daemon: Daemon, table: Raw) -> None:
    with Raw(daemon.socket) as other:
        assert table.call(part(0, 1, 1)).code == END_STREAM
        assert other.call(part(1, 2, 2, more=False)).error == "MALFORMED_REQUEST"
        assert other.call(part(0, 3, 3)).code == END_STREAM
        assert table.call(part(1, 2, 2, more=False)).end["affected"] == 2
    assert count(table) == 2


# Order


@pytest.mark.parametrize("seed", range(3))
def test_pipelined_requests_are_answered_in_order(table: Raw, seed: int) -> None:
    rng = random.Random(seed)
    stored = 0
    for turn in range(12):
        txn = table.begin()
        key = b"order/%d/%d" % (seed, turn)
        frames = [
            sql(INSERT, params=[f"{turn}/in", None], txn=txn),
            frame(GET, key, txn=txn),
            put(key, b"in", txn=txn),
            sql("SELECT count(*) FROM t", txn=txn),
            frame(GET, key, txn=0),
            sql("SELECT count(*) FROM t"),
            put(key + b"/out", b"out"),
            sql("SELEC"),
            frame(GET, key, txn=txn),
            frame(COMMIT, txn=txn) if turn % 3 else frame(COMMIT, txn.to_bytes(8, "little")),
            sql("SELECT count(*) FROM t"),
            frame(GET, key, txn=0),
            frame(GET, key + b"/out", txn=0),
            sql(INSERT, params=[f"{turn}/after", "x"]),
            many(INSERT, [f"{turn}/many", 1, f"{turn}/more", 2]),
            sql("SELECT b FROM t WHERE a = ?", params=[f"{turn}/after"]),
            frame(PING),
        ]
        stream = b"".join(frames)
        while stream:
            size = rng.choice((1, 7, 60, 300, len(stream)))
            table.send(stream[:size])
            stream = stream[size:]
        got: list[Answer] = table.answers(len(frames))
        told = [reply.error or (reply.code if reply.code != END_STREAM else reply.rows[1:]) for reply in got]
        assert told == [
            *([], OK, OK, [stored + 1], OK, [stored], OK, "SQL", VALUE, TXN_ID, [stored + 1]),
            *(VALUE, VALUE, [], [], ["x"], PONG),
        ]
        assert [got[at].payload for at in (8, 11, 12)] == [b"in", b"in", b"out"]
        stored += 4
        assert count(table) == stored


def test_commits_of_a_worker_thread_are_seen_by_cached_reads(daemon: Daemon, table: Raw) -> None:
    get, extended = frame(GET, b"cached"), frame(GET, b"cached", txn=0)
    with Raw(daemon.socket) as reader, Raw(daemon.socket) as classic:
        for turn in range(60):
            # Twice: the second is answered from the cache of replies.
            for _ in range(2):
                reader.call(extended)
                classic.call(get)
            txn = table.begin()
            value = b"%d" % turn
            table.send(put(b"cached", value, txn=txn), sql(INSERT, params=[turn, value], txn=txn))
            table.answers(2)
            assert table.call(frame(COMMIT, txn=txn)).code == TXN_ID
            assert (reader.call(extended).payload, classic.call(get).payload) == (value, value)
            assert rows(reader.call(sql("SELECT max(a) FROM t"))) == [(turn,)]


# Results


def test_texts_that_are_not_utf8_and_texts_with_nul(table: Raw) -> None:
    for text in ("SELECT CAST(x'ff' AS TEXT)", "VALUES (1), (CAST(x'ff' AS TEXT))"):
        got = table.call(sql(text))
        assert got.error == "SQL"
        assert b"UTF-8" in got.payload
    assert (
        table.call(sql("INSERT INTO t VALUES (1, CAST(x'ed a0 80' AS TEXT))".replace(" a0 80", "a080"))).code != ERROR
    )
    assert table.call(sql("SELECT b FROM t")).error == "SQL"
    assert rows(table.call(sql("SELECT CAST(b AS BLOB) FROM t"))) == [(b"\xed\xa0\x80",)]
    assert table.call(frame(QUERY, msgpack.packb({"prefix": "t"}), txn=0)).error == "SQL"
    nul = "a\0b"
    assert rows(table.call(sql("SELECT ?, length(CAST(? AS BLOB)), 'a' || char(0)", params=[nul, nul]))) == [
        (nul, 3, "a\0")
    ]
    assert table.call(sql("SELECT 1\0")).error == "VALIDATION"


def test_a_row_larger_than_a_frame(daemon: Daemon, table: Raw) -> None:
    assert rows(table.call(sql(f"SELECT zeroblob({CAP - 20})"))) == [(bytes(CAP - 20),)]
    for text in (
        f"SELECT zeroblob({CAP + 5000})",
        f"SELECT zeroblob({CAP // 2}), zeroblob({CAP // 2 + 5000})",
        f"VALUES (1), (zeroblob({CAP + 5000})), (3)",
    ):
        got = table.call(sql(text))
        assert got.error in ("FRAME_TOO_LARGE", "SQL")
        assert b"--max-frame" in got.payload
    # A value that is too large is never made, so nothing was written either.
    assert table.call(sql(f"INSERT INTO t VALUES (1, 2) RETURNING zeroblob({CAP + 5000})")).error == "SQL"
    assert count(table) == 0
    got = table.call(sql(f"INSERT INTO t VALUES (1, 2) RETURNING zeroblob({CAP // 2}), zeroblob({CAP // 2 + 5000})"))
    assert got.error == "SQL"
    assert count(table) == 0
    large = sql(f"SELECT zeroblob({CAP // 2})" + f", zeroblob({CAP // 2})" * 4)
    before = reset_peak(daemon.pid)
    assert table.call(large).error == "FRAME_TOO_LARGE"
    assert peak_memory(daemon.pid) - before < 150 * MIB
    # Nothing of it stays behind, beyond what the allocator keeps for the next.
    used = []
    for _ in range(6):
        assert table.call(large).error == "FRAME_TOO_LARGE"
        used.append(memory(daemon.pid))
    assert used[-1] - used[0] < 90 * MIB


def test_a_few_long_rows_behind_many_short_ones(daemon: Daemon, table: Raw) -> None:
    short, long, size = 60_000, 3000, 100_000
    text = f"{COUNT_UP} SELECT CASE WHEN x > {short} THEN zeroblob({size}) ELSE x END FROM n LIMIT {short + long}"
    before = reset_peak(daemon.pid)
    for window in (0, 100_000):
        table.send(sql(text, window=window))
        received = 0
        while True:
            got = table.frame()
            assert got is not None
            if got[0] == ROW:
                received += len(got[1])
            elif cursor := msgpack.unpackb(got[1])["cursor"]:
                table.send(scan(cursor=cursor, window=4 * MIB))
            else:
                break
        assert received > long * size
    assert peak_memory(daemon.pid) - before < 32 * MIB


def test_small_frames() -> None:
    with daemon_on("auto", "--max-frame", "1024") as small, Raw(small.socket) as raw:
        got = raw.call(sql(f"{COUNT_UP} SELECT x, 'text' FROM n LIMIT 3000"))
        assert rows(got) == [(x, "text") for x in range(1, 3001)]
        assert raw.call(sql("SELECT zeroblob(900)")).rows[1:] == [bytes(900)]
        assert raw.call(sql("SELECT zeroblob(9000)")).error == "FRAME_TOO_LARGE"
        names = ", ".join(f"1 AS {'n' * 90}{at}" for at in range(9))
        assert len(raw.call(sql(f"SELECT {names}")).rows) == 18
        raw.ping()


# Statements


FORBIDDEN = (
    "ATTACH ':memory:' AS x",
    "ATTACH DATABASE '/etc/passwd' AS x",
    "DETACH main",
    "VACUUM",
    "VACUUM INTO '/tmp/never'",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "COMMIT",
    "END",
    "ROLLBACK",
    "SAVEPOINT s",
    "RELEASE s",
    "SAVEPOINT toondb_statement",
    "RELEASE toondb_statement",
    "ROLLBACK TO toondb_statement",
    "CREATE TEMP TABLE x (a)",
    "CREATE TEMP VIEW x AS SELECT 1",
    "CREATE TABLE temp.x (a)",
    "CREATE TABLE temp.x AS SELECT 1",
    "CREATE VIEW temp.x AS SELECT 1",
    "CREATE VIRTUAL TABLE temp.x USING fts5(a)",
    "CREATE TRIGGER temp.x AFTER INSERT ON main.t BEGIN SELECT 1; END",
    "PRAGMA writable_schema = ON",
    "PRAGMA journal_mode = OFF",
    "PRAGMA foreign_keys = ON",
    "PRAGMA hard_heap_limit = 0",
    "PRAGMA cache_size = -100000000",
    "PRAGMA mmap_size = 1000000",
    "PRAGMA temp_store_directory = '/tmp'",
    "PRAGMA wal_checkpoint",
    "PRAGMA trusted_schema = ON",
    "PRAGMA case_sensitive_like = ON",
    "PRAGMA page_size = 512",
    "SELECT load_extension('x')",
    "SELECT fts3_tokenizer('simple')",
    "CREATE VIRTUAL TABLE x USING dbstat",
    "CREATE VIRTUAL TABLE x USING csv(filename='/etc/passwd')",
    "CREATE VIRTUAL TABLE x USING fts4aux(t)",
)
WRONG = (
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('/tmp/never', 'x')",
    "SELECT edit('x')",
    "SELECT * FROM sqlite_dbpage",
    "SELECT * FROM fsdir('/')",
    "UPDATE sqlite_schema SET sql = 'x'",
    "DELETE FROM sqlite_master",
    "DROP TABLE sqlite_schema",
    "CREATE TABLE sqlite_x (a)",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE t",
    "SELECT",
    "\ufeffSELEC",
    ";",
    "",
    "SELECT " + "(" * 100_000 + "1" + ")" * 100_000,
    "SELECT " + "NOT " * 100_000 + "1",
    "SELECT 1" + "+1" * 100_000,
    "SELECT * FROM (" * 5000 + "SELECT 1" + ")" * 5000,
    "SELECT 1" + " UNION ALL SELECT 1" * 1000,
    "SELECT json('" + "[" * 2000 + "]" * 2000 + "')",
    "SELECT " + ", ".join("1" * 2001),
    "SELECT ?40000",
    "SELECT abs(-9223372036854775808)",
    "SELECT zeroblob(1000000000000)",
)


def test_what_is_forbidden(table: Raw) -> None:
    for inside in (False, True):
        txn = table.begin() if inside else 0
        for text in FORBIDDEN:
            # Inside a transaction and a script there are savepoints.
            savepoint = text in ("SAVEPOINT s", "RELEASE s")
            if inside and savepoint:
                continue
            bodies: list[dict[str, Any]] = [{}, {"window": 1}, {"script": True}, {"runs": 1, "params": []}]
            for body in bodies[: 2 if savepoint else 4]:
                got = table.call(sql(text, txn=txn, **body))
                assert got.error == "SQL_FORBIDDEN", (text, got)
        for text in WRONG:
            for body in ({}, {"script": True}) if "; " not in text else ({},):
                got = table.call(sql(text, txn=txn, **body))
                assert got.error == "SQL", (text[:60], got)
        if inside:
            assert table.call(frame(COMMIT, txn=txn)).code == TXN_ID
    assert count(table) == 0


def test_what_full_text_search_keeps_cannot_be_damaged(raw: Raw) -> None:
    raw.call(sql("DROP TABLE IF EXISTS texts"))
    assert raw.call(sql("CREATE VIRTUAL TABLE texts USING fts5(body)")).code == END_STREAM
    assert raw.call(sql("INSERT INTO texts VALUES ('quick brown fox')")).end["affected"] == 1
    for text in (
        "UPDATE texts_data SET block = x'00'",
        "DELETE FROM texts_idx",
        "INSERT INTO texts_config VALUES ('version', 99)",
        "DROP TABLE texts_data",
        "ALTER TABLE texts_content RENAME TO x",
    ):
        assert raw.call(sql(text)).error == "SQL", text
    assert rows(raw.call(sql("SELECT rowid FROM texts WHERE texts MATCH 'fox'"))) == [(1,)]
    assert raw.call(sql("INSERT INTO texts(texts) VALUES ('integrity-check')")).code == END_STREAM
    assert raw.call(sql("DROP TABLE texts")).code == END_STREAM


def test_statements_that_need_more_memory_than_there_is(daemon: Daemon, table: Raw) -> None:
    txn = table.begin()
    assert table.call(sql("INSERT INTO t VALUES ('kept', 1)", txn=txn)).end["affected"] == 1
    before = reset_peak(daemon.pid)
    endless = f"{COUNT_UP} SELECT x, zeroblob(1000) AS b FROM n"
    for text in (
        f"{endless} ORDER BY b, x DESC",
        f"{COUNT_UP} SELECT group_concat(hex(zeroblob(50000))) FROM (SELECT x FROM n LIMIT 2000)",
        f"{COUNT_UP} SELECT count(DISTINCT x || hex(zeroblob(500))) FROM n",
        "SELECT " + ", ".join(["zeroblob(16000000)"] * 8),
        f"{COUNT_UP} INSERT INTO t SELECT x, zeroblob(1000) FROM n RETURNING b",
    ):
        got = table.call(sql(text))
        assert got.error in ("SQL", "TRANSACTION_TOO_LARGE"), (text, got)
    assert peak_memory(daemon.pid) - before < 300 * MIB
    # Others had theirs, and what was refused gave it back.
    assert rows(table.call(sql(f"SELECT length(zeroblob({CAP}))"))) == [(CAP,)]
    assert table.call(sql("INSERT INTO t VALUES ('second', 1)", txn=txn)).error in ("", "TRANSACTION")
    table.call(frame(ABORT, txn=txn))
    assert count(table) == 0
    assert rows(table.call(sql("PRAGMA integrity_check"))) == [("ok",)]


def test_more_than_a_transaction_takes(table: Raw) -> None:
    many_rows = f"{COUNT_UP} INSERT INTO t SELECT x, zeroblob(100000) FROM n LIMIT 1000"
    assert table.call(sql(many_rows)).error == "TRANSACTION_TOO_LARGE"
    txn = table.begin()
    assert table.call(sql("INSERT INTO t VALUES (0, 0)", txn=txn)).end["affected"] == 1
    told = table.call(sql(many_rows, txn=txn)).error
    assert told in ("TRANSACTION_TOO_LARGE", "")
    ended = table.call(frame(COMMIT, txn=txn))
    assert ended.error in ("TRANSACTION_TOO_LARGE", "TRANSACTION"), (told, ended)
    assert count(table) == 0


# Cursors


def test_sql_cursors_belong_to_their_connection_and_transaction(daemon: Daemon, table: Raw) -> None:
    text = f"{COUNT_UP} SELECT x FROM n LIMIT 1000"
    txn, other = table.begin(), table.begin()
    free = table.call(sql(text, window=1)).end["cursor"]
    bound = table.call(sql(text, txn=txn, window=1)).end["cursor"]
    assert free
    assert bound
    for number, cursor in ((txn, free), (0, bound), (other, bound), (12_345, bound)):
        for body in ({}, {"close": True}):
            assert table.call(scan(txn=number, cursor=cursor, **body)).error == "CURSOR_NOT_FOUND"
    with Raw(daemon.socket) as stranger:
        assert stranger.call(scan(cursor=free)).error == "CURSOR_NOT_FOUND"
    # Other keys of SCAN have no meaning with it, and it is still there afterwards.
    assert table.call(scan(cursor=free, prefix=b"")).error == "MALFORMED_REQUEST"
    assert table.call(scan(cursor=free, batch=5)).error == "MALFORMED_REQUEST"
    assert table.call(scan(cursor=free)).end == {"rows": 999, "cursor": None, "affected": 0, "last_row_id": 0}
    assert table.call(scan(cursor=free)).error == "CURSOR_NOT_FOUND"
    assert table.call(frame(COMMIT, txn=txn)).code == TXN_ID
    assert table.call(scan(txn=txn, cursor=bound)).error == "CURSOR_NOT_FOUND"
    gone = table.call(sql(text, txn=other, window=1)).end["cursor"]
    assert table.call(frame(ABORT, txn=other)).code == OK
    assert table.call(scan(txn=other, cursor=gone)).error == "CURSOR_NOT_FOUND"
    settled(table)


def test_too_many_sql_cursors(table: Raw) -> None:
    text = f"{COUNT_UP} SELECT x FROM n LIMIT 100"
    table.send(*[sql(text, window=1)] * 17)
    got = table.answers(17)
    assert all(reply.end["cursor"] for reply in got[:16])
    assert got[16].error == "TRANSACTION"
    # One of them can go on and stay open, statements without a window need none, and a closed one makes room.
    again = table.call(scan(cursor=got[0].end["cursor"], window=1)).end["cursor"]
    assert again == got[0].end["cursor"]
    assert table.call(sql(text)).end["rows"] == 100
    assert table.call(scan(cursor=again, close=True)).end["cursor"] is None
    assert table.call(sql(text, window=1)).end["cursor"]


def test_a_cursor_keeps_its_snapshot(table: Raw) -> None:
    values = [item for at in range(500) for item in (at, "old")]
    assert table.call(many(INSERT, values)).end["affected"] == 500
    cursor = table.call(sql("SELECT a, b FROM t ORDER BY a", window=100)).end["cursor"]
    assert table.call(sql("UPDATE t SET b = 'new'")).end["affected"] == 500
    assert table.call(sql("DROP TABLE t")).code == END_STREAM
    got = table.call(scan(cursor=cursor))
    assert got.end["rows"] > 400
    assert set(got.rows[1::2]) == {"old"}
    assert table.call(sql("SELECT * FROM t")).error == "SQL"


_TEXT = r"""
SELECT INSERT UPDATE DELETE REPLACE INTO FROM WHERE VALUES SET WITH RECURSIVE AS UNION ALL EXCEPT JOIN ON
USING GROUP BY ORDER LIMIT CREATE TABLE VIEW INDEX TRIGGER VIRTUAL TEMP DROP ALTER RENAME TO ADD COLUMN BEGIN
COMMIT ROLLBACK SAVEPOINT RELEASE PRAGMA ATTACH DETACH VACUUM ANALYZE REINDEX EXPLAIN CASE WHEN THEN END CAST
NULL NOT IN LIKE GLOB MATCH IS BETWEEN EXISTS RETURNING OVER PARTITION FAIL ABORT IGNORE OR AND DEFAULT CHECK
UNIQUE t a b main temp sqlite_schema toondb_statement * ( ) , ; = < + - . ? ?1 :x @y 1 0 -1 1e9 'x' "a" x'00'
[b] count(*) max(a) json('[1]') zeroblob(9) randomblob(9) fts5(a) rtree(a,b,c) user_version table_info -- /*
*/
"""


def test_statements_at_random(table: Raw) -> None:
    rng = random.Random(11)
    starts = ["SELECT", "INSERT INTO t VALUES (", "UPDATE t SET a =", "CREATE TABLE", "WITH", "PRAGMA", ""]
    known = {"SQL", "SQL_CONSTRAINT", "SQL_FORBIDDEN", "SQL_INTERRUPTED", "VALIDATION", "TRANSACTION_TOO_LARGE"}
    txn = table.begin()
    for _ in range(600):
        text = " ".join([rng.choice(starts), *rng.choices(_TEXT.split(), k=rng.randrange(1, 9))])
        body = rng.choice(({}, {"script": True}, {"runs": 2, "params": [1, "x"]}, {"params": [1]}, {"window": 9}))
        got = table.call(sql(text, txn=rng.choice((0, 0, txn)), **body))
        assert (got.error or "SQL") in known | {"TRANSACTION_CONFLICT", "TRANSACTION", "TRANSACTION_EXPIRED"}, (
            text,
            got,
        )
        if got.code == END_STREAM and (cursor := got.end["cursor"]):
            assert table.call(scan(txn=txn, cursor=cursor, close=True)).code in (END_STREAM, ERROR)
            table.call(scan(cursor=cursor, close=True))
    table.call(frame(ABORT, txn=txn))
    assert rows(table.call(sql("PRAGMA integrity_check"))) == [("ok",)]
    assert rows(table.call(sql("SELECT * FROM temp.sqlite_master"))) == []
