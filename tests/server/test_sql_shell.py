"""The parts of the SQL shell: cutting statements, writing formats, reading files, importing."""

from __future__ import annotations

import io
import json
import math
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.daemon import SECONDS, Daemon
from toondb import Database, IpcClient
from toondb.toon import from_toon
from toondb_protocol.errors import (
    SqlConstraintError,
    SqlError,
    SqlForbiddenError,
    TransactionConflictError,
    TransactionError,
    TransactionExpiredError,
    TransactionTooLargeError,
    ValidationError,
)
from toondb_server.shell.cells import cut, shown, width_of
from toondb_server.shell.exporting import query_of
from toondb_server.shell.files import OutputFile
from toondb_server.shell.formats import FORMATS, Style, write_rows
from toondb_server.shell.importing import ImportOptions, ImportReport, import_rows, quoted
from toondb_server.shell.inference import TextColumn, ValueColumn, number_of
from toondb_server.shell.progress import RowProgress
from toondb_server.shell.prompt import Completer, history_path
from toondb_server.shell.records import Record, csv_records, json_records
from toondb_server.shell.session import Session
from toondb_server.shell.statements import Control, StatementReader, control_of, reads_only, split

# Statements

SCRIPT = """\
-- a comment; with a semicolon
CREATE TABLE log (id INTEGER PRIMARY KEY, [odd;name] TEXT, "two;" TEXT, `three;` TEXT);
CREATE TRIGGER kept AFTER INSERT ON log BEGIN
  UPDATE log SET "two;" = 'a;b' WHERE id = new.id;
  UPDATE log SET `three;` = CASE WHEN 1 THEN 'x' ELSE 'y' END WHERE id = new.id;
END;
INSERT INTO log ([odd;name]) VALUES ('it''s; one'); INSERT INTO log VALUES (7, /* a ; comment */ 'b', '', '');;
.tables
INSERT INTO log ([odd;name]) VALUES ('several
lines; long')
;
  .mode csv
SELECT 1 -- the last one has no semicolon
"""


def test_a_script_is_cut_into_statements() -> None:
    found = split(SCRIPT)
    assert [(each.line, each.text.split("\n")[0]) for each in found] == [
        (2, 'CREATE TABLE log (id INTEGER PRIMARY KEY, [odd;name] TEXT, "two;" TEXT, `three;` TEXT);'),
        (3, "CREATE TRIGGER kept AFTER INSERT ON log BEGIN"),
        (7, "INSERT INTO log ([odd;name]) VALUES ('it''s; one');"),
        (7, "INSERT INTO log VALUES (7, /* a ; comment */ 'b', '', '');"),
        (8, ".tables"),
        (9, "INSERT INTO log ([odd;name]) VALUES ('several"),
        (12, ".mode csv"),
        (13, "SELECT 1 -- the last one has no semicolon"),
    ]
    assert [each.text for each in found if each.is_command] == [".tables", ".mode csv"]


def test_the_statements_do_what_the_script_does() -> None:
    dumps = []
    sql = [each.text for each in split(SCRIPT) if not each.is_command]
    for statements in (sql, ["\n".join(line for line in SCRIPT.split("\n") if not line.strip().startswith("."))]):
        connection = sqlite3.connect(":memory:")
        for statement in statements:
            connection.executescript(statement)
        dumps.append(list(connection.iterdump()))
        connection.close()
    assert dumps[0] == dumps[1]
    assert any("it''s; one" in line for line in dumps[0])


PIECES = st.sampled_from(
    [";", "'", '"', "`", "[", "]", "--", "/*", "*/", "\n", " ", "a", "SELECT 1", ".x", "BEGIN", "END", "CREATE TRIGGER"]
)


@given(st.lists(PIECES, max_size=30))
@example(["'", "\n", ";", "'", ";", "\n", "a"])
@example(["/*", "\n", "*/", "a", "\n", ";", "\n", ".x"])
@example(["/*", "\n", "/*", "/*"])
def test_nothing_is_lost_however_the_text_comes(pieces: list[str]) -> None:
    text = "".join(pieces)
    whole, by_line = StatementReader(), StatementReader()
    one = [*whole.feed(text), whole.rest()]
    more = [each for line in text.splitlines(keepends=True) for each in by_line.feed(line)]
    assert one == [*more, by_line.rest()]
    lines = text.splitlines(keepends=True)
    at = 0
    for each in one:
        if each is not None:
            # Not before its line: the same characters may stand in a comment before it.
            found = text.index(each.text, max(at, len("".join(lines[: each.line - 1]))))
            assert text.count("\n", 0, found) + 1 == each.line
            at = found + len(each.text)


def test_the_reader_knows_whether_a_statement_is_open() -> None:
    reader = StatementReader()
    assert not reader.pending
    for line, pending in [("\n", False), ("-- x\n", False), ("SELECT ';\n", True), ("'\n", True), (";\n", False)]:
        list(reader.feed(line))
        assert reader.pending is pending, line
    list(reader.feed("SELECT\n"))
    reader.clear()
    assert not reader.pending
    assert [each.line for each in reader.feed("SELECT 1;\n")] == [7]


def test_a_quote_that_is_never_closed_is_found() -> None:
    reader = StatementReader()
    list(reader.feed("SELECT 1;\nSELECT 'x\n"))
    with pytest.raises(SqlError, match="begins on line 2 is longer than 64 MiB"):
        list(reader.feed("x" * (65 << 20)))


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("BEGIN", Control.BEGIN),
        ("begin immediate transaction;", Control.BEGIN),
        ("-- now\nBegin /* x */ DEFERRED ;", Control.BEGIN),
        ("START TRANSACTION;", Control.BEGIN),
        ("COMMIT;", Control.COMMIT),
        ("end transaction", Control.COMMIT),
        ("ROLLBACK;", Control.ROLLBACK),
        ("ROLLBACK TO s;", None),
        ("BEGINS", None),
        ("SELECT 'BEGIN'", None),
    ],
)
def test_statements_of_transactions(text: str, control: Control | None) -> None:
    assert control_of(text) is control


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("SELECT 1", True),
        ("/* x */ values (1)", True),
        ("WITH a AS (SELECT 'delete') SELECT * FROM a", True),
        ("WITH a AS (SELECT 1) -- delete\nSELECT replace('a', 'b', 'c')", True),
        ("WITH a AS (SELECT 1) DELETE FROM t", False),
        ("WITH a AS (SELECT 1) REPLACE INTO t SELECT * FROM a", False),
        ("INSERT INTO t VALUES (1) RETURNING *", False),
        ("PRAGMA table_info(t)", False),
        ("", False),
    ],
)
def test_what_certainly_reads(text: str, reads: bool) -> None:
    assert reads_only(text) is reads


# Formats

ROWS: list[dict[str, Any]] = [
    {"id": 1, "name": "Alice", "data": b"\x00\xff", "score": 1.5},
    {"id": -20, "name": None, "data": None, "score": math.inf},
    {"id": 3, "name": "", "data": b"", "score": None},
    {"id": 4, "name": 'a "b", c\nd', "data": "é日", "score": -math.inf},
]


def written(name: str, rows: list[dict[str, Any]] = ROWS, **style: Any) -> str:
    out = io.StringIO(newline="")
    count = write_rows(list(ROWS[0]), iter(rows), out, Style(name, **style))
    assert count == len(rows)
    return out.getvalue()


def test_a_table() -> None:
    assert written("table").splitlines() == [
        "  id | name        | data    | score",
        "-----+-------------+---------+-------",
        "   1 | Alice       | x'00ff' |   1.5",
        " -20 | NULL        | NULL    |   inf",
        "   3 |             | x''     |  NULL",
        '   4 | a "b", c\\nd | é日     |  -inf',
        "(4 rows)",
    ]
    assert written("table", [], footer=False) == " id | name | data | score\n----+------+------+-------\n"
    assert written("table", ROWS[1:2], headers=False, null="-", footer=False) == " -20 | - | - | inf\n"


def test_lines() -> None:
    assert written("line", ROWS[:2], null="-") == (
        "   id = 1\n name = Alice\n data = x'00ff'\nscore = 1.5\n\n   id = -20\n name = -\n data = -\nscore = inf\n"
    )
    assert written("line", []) == ""


def test_json() -> None:
    blobs = [{**row, "data": None if row["data"] is None else row["data"]} for row in ROWS]
    for row, data in zip(blobs, ({"$base64": "AP8="}, None, {"$base64": ""}, "é日"), strict=True):
        row["data"] = data
    assert json.loads(written("json")) == blobs
    assert [json.loads(line) for line in written("jsonl").splitlines()] == blobs
    assert "Infinity" not in written("json")  # which is not JSON
    assert written("json", []) == "[]\n"
    assert written("jsonl", []) == ""


def test_csv() -> None:
    assert written("csv") == (
        'id,name,data,score\r\n1,Alice,x\'00ff\',1.5\r\n-20,,,9e999\r\n3,"",x\'\',\r\n4,"a ""b"", c\nd",é日,-9e999\r\n'
    )
    assert written("csv", ROWS[1:2], headers=False, null="\\N", delimiter=";") == "-20;\\N;\\N;9e999\r\n"
    assert written("csv", []) == "id,name,data,score\r\n"
    # A text that looks like NULL is told apart from it by its quotes.
    assert written("csv", [{"a": "NULL", "b": None}], headers=False, null="NULL") == '"NULL",NULL\r\n'


def test_toon() -> None:
    table, fields, records = from_toon(written("toon").rstrip("\n"))
    assert (table, fields) == ("result", list(ROWS[0]))
    assert records == ROWS
    assert written("toon", []) == "result[0]{id,name,data,score}:\n"


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_written_while_they_come(name: str) -> None:
    """Never all of them are in memory at once."""
    alive = most = 0

    class Cell(str):
        def __init__(self, _: str) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    class Nowhere(io.StringIO):
        def write(self, text: str) -> int:
            return len(text)

    rows = ({"a": Cell(f"value {number}")} for number in range(20_000))
    assert write_rows(["a"], rows, Nowhere(), Style(name)) == 20_000
    assert most <= 1_010  # a table looks at the first thousand


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\tb\r\n", "a\\tb\\r\\n"),
        ("\x1b[31mred\x07\x9b", "\\x1b[31mred\\x07\\x9b"),
        ("\u202eabc", "\\u202eabc"),
        (10**15, "1000000000000000"),
    ],
)
def test_a_value_cannot_steer_the_terminal(value: Any, text: str) -> None:
    assert shown(value, "NULL") == text


def test_widths() -> None:
    assert [width_of(text) for text in ("abc", "日本", "e\u0301", "")] == [3, 4, 1, 0]
    assert cut("日本語", 6) == "日本語"
    assert cut("日本語x", 6) == "日本…"
    assert cut("abcdef", 3) == "ab…"


# Files


def test_an_output_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(RuntimeError), OutputFile(str(path)) as file:
        file.text.write("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with OutputFile(str(path)) as file:
        file.text.write("old\r\n")
        assert not path.exists()
    assert path.read_bytes() == b"old\r\n"
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    with OutputFile(str(link)) as file:
        file.text.write("new é")
        assert path.read_text() == "old\n"
    assert path.read_text(encoding="utf-8") == "new é"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "out"]


def test_an_output_that_is_no_file_is_written_as_it_comes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with OutputFile(str(pipe)) as file:
        file.text.write("through")
    reader.join(30)
    assert read == ["through"]
    with pytest.raises(IsADirectoryError):
        OutputFile(str(tmp_path))


# Records


def lines(text: str) -> Iterator[bytes]:
    return iter(text.encode().splitlines(keepends=True))


def test_csv_records() -> None:
    text = 'id,"na""me",\r\n1,"two\r\nlines, ""x""",""\n\n,,\nlast'
    assert [(each.line, each.values, each.error) for each in csv_records(lines(text), ",")] == [
        (1, ["id", 'na"me', None], ""),
        (2, ["1", 'two\r\nlines, "x"', ""], ""),
        (4, [None], ""),
        (5, [None, None, None], ""),
        (6, ["last"], ""),
    ]
    assert sum(each.size for each in csv_records(lines(text), ",")) == len(text)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b'a,b"c"\n', "a quote is inside of field 2"),
        (b'a,"b"c\n', "there is text after the closing quote of field 2"),
        (b'a,"b\nc\n', "a quoted field is not closed"),
        (b"a,\xff\n", "byte 3 (0xff) is not UTF-8"),
    ],
)
def test_bad_csv_records(raw: bytes, error: str) -> None:
    records = list(csv_records(iter([b"x,y\n", *raw.splitlines(keepends=True)]), ","))
    assert [(each.line, each.error) for each in records] == [(1, ""), (2, error)]


CELLS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8), st.sampled_from([",", ";", "\t"]))
def test_csv_comes_back(rows: list[tuple[str | None, str | None]], delimiter: str) -> None:
    out = io.StringIO(newline="")
    write_rows(["a", "b"], ({"a": a, "b": b} for a, b in rows), out, Style("csv", delimiter=delimiter))
    raw = io.BytesIO(out.getvalue().encode())
    assert [tuple(each.values) for each in csv_records(iter(raw), delimiter)][1:] == rows


def test_json_records() -> None:
    text = '{"a": 1, "b": "x"}\n\n{"a": true, "b": {"c": [1]}, "d": {"$base64": "AP8="}, "e": 1.5, "f": null}\n'
    found = list(json_records(lines(text)))
    assert [(each.line, each.values) for each in found] == [
        (1, {"a": 1, "b": "x"}),
        (3, {"a": 1, "b": '{"c":[1]}', "d": b"\x00\xff", "e": 1.5, "f": None}),
    ]


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"[1]", "it is not a JSON object, but a list"),
        (b"null", "it is not a JSON object, but null"),
        (b'{"a": 1', "it is not JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": 9223372036854775808}', "the number of 'a' is too large for a column"),
        (b'{"a": {"$base64": "!"}}', "the $base64 of 'a' is not base64"),
        (b'{"a": "\xff"}', "byte 8 (0xff) is not UTF-8"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_bad_json_records(raw: bytes, error: str) -> None:
    assert list(json_records(iter([raw]))) == [Record(1, len(raw), None, error)]


# Types


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        (["1", "-20", None, "0"], "INTEGER"),
        (["1", "2.50", "1e3"], "REAL"),
        (["00501"], "TEXT"),
        (["+49"], "TEXT"),
        (["1", "x", "2"], "TEXT"),
        ([""], "TEXT"),
        ([None], "TEXT"),
        (["9223372036854775807"], "INTEGER"),
        (["9223372036854775808"], "TEXT"),
        (["9007199254740993", "1.5"], "TEXT"),
        (["007.5"], "TEXT"),
        (["1_000"], "TEXT"),
        (["٣"], "TEXT"),
        (["nan", "inf"], "TEXT"),
        (["-0"], "TEXT"),
    ],
)
def test_types_of_text(values: list[str | None], declared: str) -> None:
    column = TextColumn()
    for value in values:
        column.see(value)
    assert column.declared == declared


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        ([1, None], "INTEGER"),
        ([1, 1.5], "REAL"),
        ([1 << 60, 1.5], ""),
        (["x"], "TEXT"),
        ([b"x"], "BLOB"),
        ([1, "x"], ""),
        ([None], "TEXT"),
    ],
)
def test_types_of_values(values: list[Any], declared: str) -> None:
    column = ValueColumn()
    for value in values:
        column.see(value)
    assert column.declared == declared


def test_numbers_of_parameters() -> None:
    assert [number_of(text) for text in ("5", "-1.5", "007", "1e3", "", "x")] == [5, -1.5, "007", 1000.0, "", "x"]


# Sessions


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a daemon that the tests of this file share."""
    path = Path("/tmp") / f"toondb-test-{os.getpid()}-shell.sock"
    with Daemon(tmp_path_factory.mktemp("shell") / "db", "--sync-mode", "off", "--socket", path) as daemon:
        yield daemon.socket


@pytest.fixture(params=["embedded", "daemon"])
def session(request: pytest.FixtureRequest, tmp_db: Path) -> Iterator[Session]:
    """A session on a store of each kind, which has no tables."""
    if request.param == "embedded":
        with Database.open(tmp_db, {"sync_mode": "off"}) as db:
            yield Session(db)
        return
    with IpcClient.connect(request.getfixturevalue("socket")) as client:
        session = Session(client)
        yield session
        session.close()
        for kind, name in client.execute_sql("SELECT type, name FROM sqlite_schema WHERE type <> 'index'").tuples:
            client.execute_sql(f"DROP {kind} IF EXISTS {quoted(name)}")


def run(session: Session, text: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    with session.run(text, parameters) as outcome:
        return [tuple(row.values()) for row in outcome.rows]


def columns_of(session: Session, text: str, parameters: Any = None) -> list[str]:
    with session.run(text, parameters) as outcome:
        assert list(outcome.rows) == []
        return outcome.columns


def test_columns_are_known_without_rows(session: Session) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
    assert columns_of(session, "SELECT id, id, count(*) AS n FROM t WHERE :x GROUP BY id; ", {"x": 1}) == [
        "id",
        "id:1",
        "n",
    ]
    assert columns_of(session, "WITH a AS (SELECT 1 AS b) SELECT b FROM a WHERE 0 -- none") == ["b"]
    assert columns_of(session, "SELECT * FROM t ORDER BY id LIMIT 0") == ["id", "name"]
    assert columns_of(session, "PRAGMA table_info(none)") != []
    assert columns_of(session, "DELETE FROM t RETURNING id") == ["id"]
    assert columns_of(session, "DELETE FROM t") == []


def test_rows_affected(session: Session) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    for text, affected in [
        ("INSERT INTO t VALUES (1), (2)", 2),
        ("WITH a AS (SELECT 3 AS x) INSERT INTO t SELECT x FROM a", 1),
        ("UPDATE t SET id = id + 10 WHERE id > 1", 2),
        ("DELETE FROM t WHERE 0", 0),
        ("CREATE INDEX i ON t (id)", None),
    ]:
        with session.run(text) as outcome:
            assert outcome.rows_affected == affected, text


def test_transactions_by_statement(session: Session) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    run(session, "BEGIN")
    run(session, "INSERT INTO t VALUES (1)")
    run(session, "SAVEPOINT s")
    run(session, "INSERT INTO t VALUES (2)")
    run(session, "ROLLBACK TO s")
    with pytest.raises(SqlConstraintError):
        run(session, "INSERT INTO t VALUES (1)")
    with pytest.raises(TransactionError, match="open already"):
        run(session, "BEGIN")
    assert session.store.execute_sql("SELECT count(*) FROM t").tuples == [(0,)]
    run(session, "COMMIT")
    assert run(session, "SELECT id FROM t") == [(1,)]
    run(session, "BEGIN")
    run(session, "DELETE FROM t")
    run(session, "ROLLBACK")
    assert run(session, "SELECT id FROM t") == [(1,)]
    for text in ("COMMIT", "END", "ROLLBACK"):
        with pytest.raises(TransactionError, match="no transaction is open"):
            run(session, text)
    with pytest.raises(SqlForbiddenError, match="SAVEPOINT needs a transaction"):
        run(session, "SAVEPOINT s")


def test_a_conflict_is_told_at_commit_and_ends_the_transaction(session: Session) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    run(session, "BEGIN")
    run(session, "INSERT INTO t VALUES (1)")
    session.store.execute_sql("INSERT INTO t VALUES (1)")
    with pytest.raises(TransactionConflictError):
        run(session, "COMMIT")
    assert not session.in_transaction
    assert run(session, "SELECT count(*) FROM t") == [(1,)]


def test_a_transaction_that_is_over_must_be_acknowledged(session: Session) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    run(session, "BEGIN")
    run(session, "INSERT INTO t VALUES (1)")
    assert session._transaction is not None
    session.store.abort(session._transaction)  # type: ignore[arg-type]
    assert session.in_transaction
    assert session.is_broken
    # Not run on their own, as if nothing had happened.
    for text in ("INSERT INTO t VALUES (2)", "SELECT 1"):
        with pytest.raises(TransactionError, match="nothing of it was kept"):
            run(session, text)
    run(session, "ROLLBACK")
    assert run(session, "SELECT count(*) FROM t") == [(0,)]


def test_a_transaction_that_the_daemon_ended_is_over(tmp_db: Path) -> None:
    with Daemon(tmp_db, "--timeout-ms", "200") as daemon, IpcClient.connect(daemon.socket) as client:
        session = Session(client)
        run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
        run(session, "BEGIN")
        run(session, "INSERT INTO t VALUES (1)")
        deadline = time.monotonic() + SECONDS
        while client.stats()["active_transactions"]:
            assert time.monotonic() < deadline
        with pytest.raises(TransactionExpiredError):
            run(session, "INSERT INTO t VALUES (2)")
        assert session.is_broken
        with pytest.raises(TransactionError, match="nothing of it was kept"):
            run(session, "INSERT INTO t VALUES (3)")
        run(session, "ROLLBACK")
        assert run(session, "SELECT count(*) FROM t") == [(0,)]


def test_read_only(session: Session) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    reader = Session(session.store, read_only=True)
    assert run(reader, "SELECT count(*) FROM t") == [(0,)]
    assert run(reader, "PRAGMA user_version") == [(0,)]
    for text in ("INSERT INTO t VALUES (1)", "DROP TABLE t", "WITH a AS (SELECT 1) DELETE FROM t"):
        with pytest.raises(TransactionError, match="read-only"):
            run(reader, text)
    run(reader, "BEGIN")
    assert run(reader, "SELECT count(*) FROM t") == [(0,)]
    with pytest.raises(TransactionError, match="read-only"):
        run(reader, "INSERT INTO t VALUES (1)")
    run(reader, "COMMIT")


def test_an_error_is_that_of_its_own_statement(session: Session) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
    try:
        run(session, "INSERT INTO t VALUES (1, NULL)")
    except SqlConstraintError:
        # While another error is being handled, which is no cause of this one.
        with pytest.raises(SqlError, match="no such table"):
            run(session, "SELECT * FROM nowhere")
        with pytest.raises(SqlError, match="no such table"):
            session.store.executemany("INSERT INTO nowhere VALUES (?)", [[1]])


def test_what_is_exported(session: Session) -> None:
    run(session, 'CREATE TABLE "my ""table" (id)')
    run(session, "CREATE VIEW v AS SELECT 1")
    assert query_of(session, 'my "table') == 'SELECT * FROM "my ""table"'
    assert query_of(session, "v") == 'SELECT * FROM "v"'
    assert query_of(session, "SELECT 1;") == "SELECT 1;"
    for text in ("nothing", "DELETE FROM v", "SELECT 1; SELECT 2", ".tables", ""):
        with pytest.raises(ValidationError, match="neither a table or view nor one query"):
            query_of(session, text)


# Importing


def load(session: Session, path: Path, text: str | bytes, **options: Any) -> ImportReport:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with RowProgress("importing") as progress:
        return import_rows(session, ImportOptions(str(path), "t", **options), progress)


CSV = 'id,zip,price,note\n1,00501,1.5,"a ""b"",\nc"\n2,10001,2,""\n3,90210,,\n'


def test_import_into_a_new_table(session: Session, tmp_path: Path) -> None:
    report = load(session, tmp_path / "x.csv", b"\xef\xbb\xbf" + CSV.encode(), create=True, batch=2)
    assert (report.rows, report.created, report.skipped) == (3, True, 0)
    assert run(session, "SELECT name, type FROM pragma_table_info('t')") == [
        ("id", "INTEGER"),
        ("zip", "TEXT"),
        ("price", "REAL"),
        ("note", "TEXT"),
    ]
    rows = [(1, "00501", 1.5, 'a "b",\nc'), (2, "10001", 2.0, ""), (3, "90210", None, None)]
    assert run(session, "SELECT * FROM t") == rows
    # Again: the table is there, so the rows are added.
    assert not load(session, tmp_path / "x.csv", CSV, create=True).created
    assert run(session, "SELECT count(*) FROM t") == [(6,)]


def test_import_of_json_lines(session: Session, tmp_path: Path) -> None:
    text = '{"id": 1, "name": "a"}\n{"name": null, "id": 2, "blob": {"$base64": "AP8="}}\n{}\n'
    assert load(session, tmp_path / "x.jsonl", text, create=True).rows == 3
    assert run(session, "SELECT * FROM t") == [(1, "a", None), (2, None, b"\x00\xff"), (None, None, None)]
    run(session, "DROP TABLE t")
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT DEFAULT 'nobody')")
    assert (
        load(session, tmp_path / "y.ndjson", '{"id": 7}\n{"ID": 8, "name": "b", "x": 1}\n', columns=("id",)).rows == 2
    )
    # A key that is missing leaves the column's default.
    assert run(session, "SELECT * FROM t") == [(7, "nobody"), (8, "nobody")]


def test_import_goes_by_the_types_of_the_table(session: Session, tmp_path: Path) -> None:
    run(session, "CREATE TABLE t (a INTEGER, b TEXT, c BLOB, d BOOLEAN, e, f GENERATED ALWAYS AS (a + 1))")
    load(session, tmp_path / "x.csv", "d,c,b,a,e\nTrue,x'0AFF',007,007,007\nfalse,plain,1,x,x'00'\n")
    assert run(session, "SELECT * FROM t") == [
        (7, "007", b"\x0a\xff", 1, "007", 8),
        ("x", "1", "plain", 0, "x'00'", 1),
    ]


def test_options_of_an_import(session: Session, tmp_path: Path) -> None:
    run(session, "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
    path = tmp_path / "x.csv"
    load(session, path, '1;-\n2;"-"\n3;\n', header=False, delimiter=";", null="-")
    assert run(session, "SELECT * FROM t") == [(1, None), (2, "-"), (3, "")]
    load(session, path, "what,ever\nnew,1\n", columns=("b", "a"), conflict="replace")
    report = load(session, path, "a,b\n1,other\n9,nine\n", conflict="ignore")
    assert (report.rows, report.ignored) == (1, 1)
    assert run(session, "SELECT * FROM t") == [(1, "new"), (2, "-"), (3, ""), (9, "nine")]
    run(session, "DROP TABLE t")
    load(session, path, "1,x\n2,\n", header=False, create=True)
    assert run(session, "SELECT c1, c2, typeof(c1) FROM t") == [(1, "x", "integer"), (2, None, "integer")]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("id,name\n1,a\n2,b\n1,c\n", "x.csv:4: UNIQUE constraint failed"),
        ("id,name\n1,a\n2\n", "x.csv:3: it has 1 fields, and there are 2 columns"),
        ('id,name\n1,"a\nb"\n2,c"\n', "x.csv:4: a quoted field is not closed"),
        ("id,nome\n1,a\n", "x.csv:1: the table 't' has no column 'nome'; it has: id, name."),
        ("id,ID\n1,a\n", "x.csv:1: the column 'ID' is named twice"),
        ("id,\n1,a\n", "x.csv:1: column 2 of the header has no name"),
        ("", "x.csv is empty"),
        (b"\xff\xfei\0d\0", "x.csv is UTF-16"),
        (b"id,name\n1,\xe9\n", "x.csv:2: byte 3 (0xe9) is not UTF-8"),
    ],
)
def test_an_import_is_all_or_nothing(session: Session, tmp_path: Path, text: str | bytes, error: str) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
    with pytest.raises((SqlError, ValidationError)) as caught:
        load(session, tmp_path / "x.csv", text, batch=2)
    assert error in str(caught.value)
    assert run(session, "SELECT count(*) FROM t") == [(0,)]
    assert not session.in_transaction


def test_a_failed_import_leaves_no_new_table(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"x.csv:3: it has 1 fields"):
        load(session, tmp_path / "x.csv", "id,name\n1,a\n2\n", create=True)
    with pytest.raises(SqlError, match="there is no table 't'"):
        load(session, tmp_path / "x.csv", "id,name\n1,a\n")
    assert run(session, "SELECT count(*) FROM sqlite_schema") == [(0,)]


def test_rows_that_cannot_be_imported_are_skipped(session: Session, tmp_path: Path) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
    text = "id,name\n1,a\n1,b\n3\n4,\n5,e\n" + "".join(f"{n},x\n{n},y\n" for n in range(10, 40))
    report = load(session, tmp_path / "x.csv", text, skip=True, batch=7)
    assert (report.rows, report.skipped, len(report.errors)) == (32, 33, 20)
    assert [error.rpartition("x.csv:")[2] for error in report.errors[:3]] == [
        "3: UNIQUE constraint failed: t.id",
        "4: it has 1 fields, and there are 2 columns",
        "5: NOT NULL constraint failed: t.name",
    ]
    assert run(session, "SELECT count(*), min(name) FROM t") == [(32, "a")]


def test_an_import_inside_a_transaction(session: Session, tmp_path: Path) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    run(session, "BEGIN")
    run(session, "INSERT INTO t VALUES (100)")
    with pytest.raises(SqlConstraintError):
        load(session, tmp_path / "x.csv", "id\n1\n2\n2\n", batch=1)
    assert run(session, "SELECT id FROM t") == [(100,)]  # nothing of it, and all that was before
    load(session, tmp_path / "x.csv", "id\n1\n2\n")
    assert session.store.execute_sql("SELECT count(*) FROM t").tuples == [(0,)]
    run(session, "COMMIT")
    assert run(session, "SELECT id FROM t") == [(1,), (2,), (100,)]


def test_an_import_in_parts_keeps_what_came_before_an_error(session: Session, tmp_path: Path) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    with pytest.raises(SqlConstraintError, match=r"x.csv:6: UNIQUE"):
        load(session, tmp_path / "x.csv", "id\n1\n2\n3\n4\n1\n6\n", commit_rows=2)
    assert run(session, "SELECT id FROM t") == [(1,), (2,), (3,), (4,)]


def test_an_import_that_conflicts_is_run_again(session: Session, tmp_path: Path) -> None:
    run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    session.store.execute_sql("CREATE TABLE other (id INTEGER)")
    commits: list[int] = []
    commit = session.commit

    def late() -> None:
        # Another writer comes in between, the first time.
        if not commits:
            session.store.execute_sql("INSERT INTO other VALUES (1)")
        commits.append(1)
        commit()

    session.commit = late  # type: ignore[method-assign]
    report = load(session, tmp_path / "x.csv", "id\n1\n2\nx,y\n", skip=True)
    assert len(commits) == 2
    assert (report.rows, report.skipped, len(report.errors)) == (2, 1, 1)
    assert run(session, "SELECT id FROM t") == [(1,), (2,)]


def test_an_import_that_is_too_large_says_what_to_do(tmp_db: Path, tmp_path: Path) -> None:
    text = "id,text\n" + "".join(f"{n},{'x' * 1000}\n" for n in range(2000))
    with Database.open(tmp_db, {"memtable_size_bytes": 1 << 20, "sync_mode": "off"}) as db:
        session = Session(db)
        run(session, "CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")
        with pytest.raises(TransactionTooLargeError) as caught:
            load(session, tmp_path / "x.csv", text)
        assert "--commit-rows" in caught.value.remediation
        assert run(session, "SELECT count(*) FROM t") == [(0,)]
        assert load(session, tmp_path / "x.csv", text, commit_rows=300).rows == 2000


# The prompt's help


def test_completion() -> None:
    tables = {"users": ["id", "name"], "notes": ["id", "odd name"]}
    completer = Completer([".mode", ".tables"], tables.copy)
    assert completer.propose("us", "SELECT * FROM us") == ["users", "using"]
    assert completer.propose("SEL", "SEL") == ["SELECT"]
    assert completer.propose("na", "SELECT na") == ["name", "natural"]
    assert completer.propose("users.", "SELECT users.") == ["users.id", "users.name"]
    assert "odd name" not in completer.propose("o", "SELECT o")
    assert completer.propose(".t", ".t") == [".tables"]
    assert completer.propose("no", ".schema no") == ["notes"]
    tables["new"] = []
    assert completer.propose("new", "new") == []
    completer.forget()
    assert completer.propose("new", "new") == ["new"]


def test_completion_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "folder").mkdir()
    completer = Completer([], dict)
    start = f"{tmp_path}/"
    assert completer.propose(start, f".import {start}") == [f"{start}a.csv", f"{start}folder/"]


def test_where_the_history_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert history_path() == Path("/state/toondb/sql_history")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert history_path() == Path("/home/me/.local/state/toondb/sql_history")
