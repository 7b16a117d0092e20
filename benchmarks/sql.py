"""The SQL rows: ToonDB embedded and through its daemon, beside plain SQLite and sochdb.

Plain SQLite has a write-ahead log and ``synchronous=FULL`` and is driven through apsw, the same binding and version
of the same engine, so a row shows what ToonDB's pages cost.
"""

from __future__ import annotations

from benchmarks.row import Cell, Row, Target

__all__ = ["SQL_ROWS"]

EMBEDDED, IPC = "ToonDB, embedded", "ToonDB, public client"
SQLITE, TUNED = "SQLite", "SQLite, ToonDB's page size and cache"
SOCHDB = "sochdb"
_SOCHDB_TENTH = "sochdb, a tenth of the rows"
_DAEMON = "toondb-full-sql"


def _embedded(operation: str, label: str = EMBEDDED) -> Cell:
    return Cell(label, "embedded-sql", "sql-embedded", operation)


def _ipc(operation: str, label: str = IPC, processes: int = 1) -> Cell:
    return Cell(label, _DAEMON, "sql-ipc", operation, processes)


def _sqlite(operation: str, label: str = SQLITE, processes: int = 1) -> Cell:
    return Cell(label, "apsw-sql", "sql-sqlite", operation, processes)


def _tuned(operation: str) -> Cell:
    return Cell(TUNED, "apsw-tuned", "sql-sqlite-tuned", operation)


def _sochdb(operation: str, label: str = SOCHDB) -> Cell:
    return Cell(label, "sochdb-sql", "sql-sochdb", operation)


def _bulk() -> Row:
    return Row(
        "sql-bulk",
        "Bulk INSERT, executemany of as many rows as there are records, in one durable transaction",
        (_embedded("bulk"), _ipc("bulk"), _sqlite("bulk"), _tuned("bulk"), _sochdb("bulk", _SOCHDB_TENTH)),
        (Target("bulk INSERT, against SQLite", EMBEDDED, 0.6, SQLITE),),
        unit=" rows/s",
        loads=False,
    )


def _insert() -> Row:
    return Row(
        "sql-insert",
        "Durable INSERT, one row in a transaction",
        (
            _embedded("insert"),
            _ipc("insert", f"{IPC}, 1 process"),
            _ipc("insert", f"{IPC}, 8 processes", 8),
            _sqlite("insert"),
            _sqlite("insert", f"{SQLITE}, 8 processes", 8),
            _sochdb("insert"),
            Cell("raw LMDB, one PUT", "rawlmdb-sql", "rawlmdb", "put"),
        ),
        (Target("durable INSERT, against SQLite", EMBEDDED, 0.7, SQLITE),),
        loads=False,
    )


def _point() -> Row:
    return Row(
        "sql-point",
        "SELECT of one row by its primary key, in process",
        (_embedded("point"), _sqlite("point"), _tuned("point"), _sochdb("point", _SOCHDB_TENTH)),
        (Target("point SELECT, against SQLite", EMBEDDED, 0.5, SQLITE),),
        loads=False,
    )


def _point_ipc(*, one_core: bool) -> Row:
    where = "on the server's core" if one_core else "on any core"
    get = "ToonDB, public client, GET"
    return Row(
        "sql-point-ipc" + ("" if one_core else "-any-core"),
        f"SELECT of one row by its primary key over the socket, 1 client, {where}",
        (
            _ipc("point"),
            _ipc("point_new", f"{IPC}, rows not asked for before"),
            Cell(get, _DAEMON, "toondb", "get"),
        ),
        # A GET takes at least a third of the time of a SELECT.
        (Target("point SELECT over the socket, against a GET", IPC, 1 / 3, get),) if one_core else (),
        one_core=one_core,
    )


def _aggregate() -> Row:
    return Row(
        "sql-aggregate",
        "count, sum, avg, min and max over ten times as many rows as there are records",
        (_embedded("aggregate"), _ipc("aggregate"), _sqlite("aggregate"), _tuned("aggregate"), _sochdb("aggregate")),
        (Target("aggregate, against SQLite", EMBEDDED, 0.8, SQLITE),),
        unit=" rows/s",
        loads=False,
    )


def _questions() -> tuple[Row, ...]:
    titles = {
        "join": "JOIN with GROUP BY of all people with 100 cities",
        "search": "FTS5 search for two words, the best ten by bm25",
    }
    return tuple(
        Row(
            f"sql-{operation}",
            title,
            (_embedded(operation), _ipc(operation), _sqlite(operation), _tuned(operation), _sochdb(operation)),
            loads=False,
        )
        for operation, title in titles.items()
    )


def _mixed() -> Row:
    return Row(
        "sql-mixed",
        "Durable transaction of one SQL row and one key (in SQLite, of two rows)",
        (_embedded("mixed"), _ipc("mixed"), _sqlite("mixed"), _sochdb("mixed")),
        loads=False,
    )


def _stream() -> tuple[Row, Row]:
    rate = Row(
        "sql-stream",
        "Rows of a large table as they come: dicts from ToonDB, tuples from SQLite",
        (_ipc("stream"), _embedded("stream"), _sqlite("stream")),
        unit=" rows/s",
        loads=False,
    )
    peak = Row(
        "sql-stream-memory",
        "Private memory that streaming takes at its peak, with a part of the table and with ten times as much",
        tuple(
            Cell(f"{side}, {text}", _DAEMON, "sql-ipc", f"{operation}@{side}")
            for side in ("client", "server")
            for operation, text in (("stream_part", "a tenth"), ("stream", "all rows"))
        ),
        measure="sql-peak",
        unit=" MB",
        loads=False,
    )
    return rate, peak


def _size() -> Row:
    updated = ", each row updated once"
    return Row(
        "sql-size",
        "Size of the store for each row, filled in the order of the ids",
        (
            _embedded("fill"),
            _sqlite("fill"),
            _tuned("fill"),
            _sochdb("fill"),
            _embedded("refill", EMBEDDED + updated),
            _sqlite("refill", SQLITE + updated),
        ),
        (Target("size of the store, against SQLite's file", EMBEDDED, 1.5, SQLITE, at_most=True),),
        measure="sql-size",
        unit=" bytes",
        loads=False,
    )


def _latency() -> Row:
    return Row(
        "sql-ping",
        "PING round trip of one client, alone and while 4 others run heavy queries",
        tuple(
            Cell(f"{text}, {figure}", _DAEMON, "sql-ipc", figure, clients)
            for clients, text in ((0, "alone"), (4, "4 heavy queries"))
            for figure in ("p50", "p99", "max")
        ),
        measure="sql-latency",
        unit=" us",
        loads=False,
    )


SQL_ROWS: tuple[Row, ...] = (
    _bulk(),
    _insert(),
    _point(),
    _point_ipc(one_core=True),
    _point_ipc(one_core=False),
    _aggregate(),
    *_questions(),
    _mixed(),
    *_stream(),
    _size(),
    _latency(),
)
