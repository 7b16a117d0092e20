"""What is measured: rows of cells, and the targets between them.

The cells of a row take turns, so everything that a target compares stands in the same row.
"""

from __future__ import annotations

from benchmarks.row import Cell, Row, Target
from benchmarks.sql import SQL_ROWS
from benchmarks.vectors import VECTOR_ROWS

__all__ = ["ROWS", "Cell", "Row", "Target"]


PUBLIC = "ToonDB, public client"
SOCKET = "ToonDB, raw socket"
REDIS = "redis, redis-py"
ECHO = "bare echo, raw socket"
LMDB = "raw LMDB in process"
DIRECT = "ToonDB, direct reads"


def _ping() -> Row:
    return Row(
        "ping-1",
        "PING round trip, 1 client, on the server's core",
        (
            Cell(PUBLIC, "toondb-off", "toondb", "ping"),
            Cell(SOCKET, "toondb-off", "toondb-socket", "ping"),
            Cell(REDIS, "redis", "redis", "ping"),
        ),
        one_core=True,
    )


def _clients(processes: int, one_core: bool) -> str:
    if processes > 1:
        return f"{processes} client processes"
    return "1 client, on the server's core" if one_core else "1 client, on any core"


def _get(processes: int, *, one_core: bool = False) -> Row:
    targets: tuple[Target, ...] = ()
    if processes == 1:
        targets = (Target(f"GET, {_clients(1, one_core)}, against redis-py", PUBLIC, 1.0, REDIS),)
    if processes == 8:
        targets = (Target("GET, 8 processes, against the bare echo server", SOCKET, 0.85, ECHO),)
    return Row(
        f"get-{processes}" + ("-any-core" if processes == 1 and not one_core else ""),
        f"GET, {_clients(processes, one_core)}",
        (
            Cell(PUBLIC, "toondb-off", "toondb", "get", processes),
            Cell(SOCKET, "toondb-off", "toondb-socket", "get", processes),
            Cell(REDIS, "redis", "redis", "get", processes),
            Cell(ECHO, "echo", "echo", "get", processes),
        ),
        targets,
        one_core=one_core,
    )


def _put(processes: int, *, one_core: bool = False) -> Row:
    return Row(
        f"put-{processes}" + ("-any-core" if processes == 1 and not one_core else ""),
        f"PUT without waiting for the disk, {_clients(processes, one_core)}",
        (
            Cell("ToonDB, sync off", "toondb-off", "toondb", "put", processes),
            Cell("redis, no log", "redis", "redis", "put", processes),
        ),
        one_core=one_core,
    )


def _pipeline(operation: str, size: int) -> Row:
    targets: tuple[Target, ...] = ()
    if operation == "get":
        targets = (Target(f"pipelined GET ({size}), against redis-py's pipeline", PUBLIC, 2.0, REDIS),)
    return Row(
        f"pipeline-{operation}-{size}",
        f"{operation.upper()}, pipelined in batches of {size}, 1 client",
        (
            Cell(PUBLIC, "toondb-off", "toondb", f"{operation}*{size}"),
            Cell(REDIS, "redis", "redis", f"{operation}*{size}"),
        ),
        targets,
    )


def _scan() -> Row:
    return Row(
        "scan",
        "Scan of all items, streamed, 1 client",
        (
            Cell(PUBLIC, "toondb-off", "toondb", "scan"),
            Cell(DIRECT, "toondb-off", "toondb-direct", "scan"),
            Cell(LMDB + ", cursor", "lmdb", "lmdb", "scan"),
        ),
        (Target("streamed scan", PUBLIC, 500_000),),
        unit=" items/s",
    )


def _durable_full() -> Row:
    one, many, log_many = "ToonDB, full, 1 process", "ToonDB, full, 32 processes", "redis, always, 32 processes"
    lmdb = "raw LMDB in process, sync commits"
    return Row(
        "durable-full",
        "Durable PUT: on the disk before the answer",
        (
            Cell(one, "toondb-full", "toondb", "put"),
            Cell(lmdb, "lmdb", "lmdb", "put"),
            Cell("redis, always, 1 process", "redis-always", "redis", "put"),
            Cell(many, "toondb-full", "toondb", "put", 32),
            Cell(log_many, "redis-always", "redis", "put", 32),
        ),
        (
            Target("durable PUT, 1 client, against raw LMDB sync commits", one, 0.8, lmdb),
            Target("durable PUT, 32 processes, against 1 client", many, 5.0, one),
            Target("durable PUT, 32 processes, against redis appendfsync always", many, 0.7, log_many),
        ),
    )


def _sync_modes() -> Row:
    modes = ("full", "normal", "off")
    return Row(
        "sync-modes",
        "PUT in each sync mode",
        tuple(
            Cell(
                f"{mode}, {processes} process{'es' if processes > 1 else ''}",
                f"toondb-{mode}",
                "toondb",
                "put",
                processes,
            )
            for processes in (1, 32)
            for mode in modes
        ),
    )


def _direct() -> tuple[Row, Row]:
    one = Row(
        "direct-1",
        "GET by direct reads, 1 process, on the server's core",
        (
            Cell(DIRECT, "toondb-off", "toondb-direct", "get"),
            Cell(PUBLIC, "toondb-off", "toondb", "get"),
            Cell(LMDB, "lmdb", "lmdb", "get"),
        ),
        (Target("direct GET, against GET over the socket, 1 process", DIRECT, 10.0, PUBLIC),),
        one_core=True,
    )
    eight = Row(
        "direct-8",
        "GET by direct reads, 8 processes",
        (
            Cell(DIRECT, "toondb-off", "toondb-direct", "get", 8),
            Cell(LMDB, "lmdb", "lmdb", "get", 8),
            Cell(ECHO, "echo", "echo", "get", 8),
        ),
        (Target("direct GET, 8 processes, against the bare echo server", DIRECT, 5 * 1.15, ECHO),),
    )
    return one, eight


EMBEDDED = "ToonDB, embedded"
_PEERS = (("SQLite, table of keys", "sqlite"), ("diskcache", "diskcache"), ("sochdb", "sochdb"))


def _in_process(operation: str, kind: str) -> tuple[Cell, ...]:
    return tuple(Cell(label, name + kind, name, operation) for label, name in _PEERS)


def _embedded() -> tuple[Row, ...]:
    shared = "ToonDB, open_concurrent"
    get = Row(
        "embedded-get",
        "GET in process, a snapshot for each",
        (
            Cell(EMBEDDED, "embedded", "embedded", "get"),
            Cell(shared, "concurrent", "concurrent", "get"),
            Cell(LMDB, "rawlmdb", "rawlmdb", "get"),
            *_in_process("get", ""),
        ),
        (Target("embedded GET, against raw LMDB", EMBEDDED, 0.5, LMDB),),
    )
    plain = EMBEDDED + ", scan_batched"
    scan = Row(
        "embedded-scan",
        "Scan of all items in process",
        (
            Cell(EMBEDDED, "embedded", "embedded", "scan"),
            Cell(plain, "embedded", "embedded", "scan-batched"),
            Cell(LMDB, "rawlmdb", "rawlmdb", "scan"),
            *_in_process("scan", ""),
        ),
        (
            Target("embedded scan, against a raw cursor", EMBEDDED, 0.5, LMDB),
            Target("embedded scan_batched, against a raw cursor", plain, 0.5, LMDB),
        ),
        unit=" items/s",
    )
    bulk = Row(
        "embedded-bulk",
        "Bulk load in process, 20,000 new records in one durable transaction",
        (
            Cell(EMBEDDED, "embedded-bulk", "embedded", "bulk"),
            Cell(LMDB + ", putmulti", "rawlmdb-bulk", "rawlmdb", "bulk"),
            *_in_process("bulk", "-bulk"),
        ),
        (Target("embedded bulk load, against putmulti", EMBEDDED, 0.4, LMDB + ", putmulti"),),
        unit=" records/s",
        loads=False,
    )
    put = Row(
        "embedded-put",
        "Durable PUT in process (diskcache does not wait for the disk)",
        (
            Cell(EMBEDDED, "embedded", "embedded", "put"),
            Cell(shared, "concurrent", "concurrent", "put"),
            Cell(LMDB, "rawlmdb", "rawlmdb", "put"),
            *_in_process("put", ""),
        ),
    )
    return get, scan, put, bulk


def _memory() -> Row:
    kinds = (("ToonDB", "toondb"), ("redis", "redis"), ("bare echo", "echo"))
    idle = [
        Cell(f"{label}, idle, {name.upper()}", server, "", name, 0)
        for label, server in kinds
        for name in ("rss", "pss")
    ]
    busy = [
        Cell(f"{label}, 1,000 connections, {name.upper()}", server, "", name, 1000)
        for label, server in kinds
        for name in ("rss", "pss")
    ]
    return Row(
        "memory",
        "Memory of an empty server",
        (*idle, *busy),
        (Target("memory of an idle daemon", "ToonDB, idle, RSS", 60.0, at_most=True),),
        measure="memory",
        unit=" MB",
    )


def _start() -> Row:
    return Row(
        "start",
        "Process start to READY",
        (
            Cell("ToonDB, new folder", "toondb", "", "empty"),
            Cell("ToonDB, loaded folder", "toondb", "", "loaded"),
            Cell("redis, new folder", "redis", "", "empty"),
            Cell("bare echo", "echo", "", "empty"),
        ),
        (
            Target("start to READY, new folder", "ToonDB, new folder", 0.5, at_most=True),
            Target("start to READY, loaded folder", "ToonDB, loaded folder", 0.5, at_most=True),
        ),
        measure="start",
        unit=" s",
    )


ROWS: tuple[Row, ...] = (
    _ping(),
    _get(1, one_core=True),
    *(_get(processes) for processes in (1, 8, 32)),
    _put(1, one_core=True),
    *(_put(processes) for processes in (1, 8, 32)),
    *(_pipeline(operation, size) for operation in ("get", "put") for size in (100, 1000)),
    _scan(),
    _durable_full(),
    _sync_modes(),
    *_direct(),
    *_embedded(),
    *SQL_ROWS,
    *VECTOR_ROWS,
    _memory(),
    _start(),
)
