"""The vector rows: indexes built and searched, alone and in collections, beside faiss alone, hnswlib and sochdb's tool.

Everybody has the same parameters: M 16, efConstruction 100, 10 results, 64 candidates where nothing else is said.
"""

from __future__ import annotations

from benchmarks.row import Cell, Row, Target

__all__ = ["CURVE", "CURVE_EFS", "VECTOR_ROWS"]

EMBEDDED, IPC = "ToonDB, embedded", "ToonDB, public client"
FAISS, HNSWLIB = "faiss alone", "hnswlib alone"
CURVE = "vector-curve"
CURVE_EFS = (10, 16, 32, 64, 128, 256, 512)
"""Candidates of the points of the curve."""

_EF = 64
_DAEMON = "toondb-full-vector"
_SELECTIVITY = {1: "0.1 %", 10: "1 %", 100: "10 %", 500: "50 %"}
_DRIVERS = {
    EMBEDDED: ("embedded-vector", "vector-embedded"),
    IPC: (_DAEMON, "vector-ipc"),
    FAISS: ("faiss", "vector-faiss"),
    HNSWLIB: ("hnswlib", "vector-hnswlib"),
}


def _cell(who: str, operation: str, more: str = "", processes: int = 1) -> Cell:
    return Cell(who + (f", {more}" if more else ""), *_DRIVERS[who], operation, processes)


def _build(name: str, title: str) -> Row:
    bulk, command = "ToonDB, toondb.bulk", "ToonDB, toondb-bulk command"
    sochdb = "sochdb, sochdb-bulk command"
    operation = f"build*{name}"
    return Row(
        f"vector-build-{name}",
        f"Index file built of {title}, all processors",
        (
            Cell(bulk, "embedded-bulk", "vector-bulk", operation),
            Cell(FAISS, "faiss-build", "vector-build-faiss", operation),
            Cell(HNSWLIB, "hnswlib-build", "vector-build-hnswlib", operation),
            Cell(command, "embedded-bulk", "vector-bulk-command", operation),
            Cell(sochdb, "sochdb-bulk", "vector-build-sochdb", operation),
        ),
        (
            Target(f"build of {title}, against faiss alone", bulk, 0.95, FAISS),
            Target(f"build of {title}, against hnswlib", bulk, 1.0, HNSWLIB),
            Target(f"build of {title}, against sochdb's tool", command, 1.0, sochdb),
        ),
        unit=" vectors/s",
        loads=False,
        slow=True,
        recall=True,
    )


def _search(*, one_core: bool) -> Row:
    operation = f"search*{_EF}"
    targets = (
        Target("search in a collection, against faiss alone", EMBEDDED, 0.7, FAISS),
        Target("search in a collection over the socket, against faiss alone", IPC, 0.4, FAISS),
        Target("recall@10 with 64 candidates", EMBEDDED, 0.95, recall=True),
    )
    return Row(
        "vector-search" + ("" if one_core else "-any-core"),
        f"Search of 20,000 documents with their text, 1 client, {'one core for all' if one_core else 'any core'}",
        tuple(_cell(who, operation) for who in _DRIVERS),
        targets if one_core else (),
        one_core=one_core,
        loads=False,
        recall=True,
    )


def _curve() -> Row:
    return Row(
        CURVE,
        "Recall against rate, by the number of candidates",
        tuple(_cell(who, f"search*{ef}", f"ef {ef}") for who in _DRIVERS for ef in CURVE_EFS),
        one_core=True,
        loads=False,
        recall=True,
    )


def _filter() -> Row:
    cells = [
        _cell(who, f"search*{_EF}*{buckets}", text)
        for who in (EMBEDDED, IPC, FAISS)
        for buckets, text in _SELECTIVITY.items()
    ]
    new = [
        _cell(EMBEDDED, f"search-new*{_EF}*10", "1 %, a new filter each time"),
        _cell(EMBEDDED, f"search-new-equal*{_EF}*10", "1 %, a new filter by equality each time"),
    ]
    return Row(
        "vector-filter",
        "Search with a filter, by how many documents it lets through",
        (*cells, *new),
        tuple(
            Target(f"recall@10, a filter that lets {text} through, {who}", f"{who}, {text}", 0.95, recall=True)
            for who in (EMBEDDED, IPC)
            for text in _SELECTIVITY.values()
        ),
        one_core=True,
        loads=False,
        recall=True,
    )


def _hybrid() -> Row:
    hybrid = f"{EMBEDDED}, hybrid, 8 words"
    return Row(
        "vector-hybrid",
        "Time of a search of 20,000 documents by vector and words (hybrid), and by words alone; median",
        (
            _cell(EMBEDDED, "hybrid", "hybrid, 8 words"),
            _cell(IPC, "hybrid", "hybrid, 8 words"),
            _cell(EMBEDDED, "hybrid-short", "hybrid, 3 words"),
            _cell(IPC, "hybrid-short", "hybrid, 3 words"),
            _cell(EMBEDDED, "words", "8 words"),
            _cell(IPC, "words", "8 words"),
        ),
        (Target("hybrid search", hybrid, 5.0, at_most=True),),
        measure="median",
        unit=" ms",
        loads=False,
    )


def _insert() -> Row:
    many = f"{IPC}, 8 processes"
    return Row(
        "vector-insert",
        "Durable insert of one document with its vector and its text",
        (
            _cell(IPC, "insert", "1 process"),
            _cell(IPC, "insert", "8 processes", 8),
            _cell(IPC, "insert-searched", "8 processes, index kept", 8),
            _cell(IPC, "insert-words", "8 processes, words too", 8),
            _cell(EMBEDDED, "insert"),
        ),
        (
            Target("durable insert of documents, 8 processes", many, 1000),
            Target(
                "durable insert of documents, 8 processes, into an index that was searched", f"{many}, index kept", 1000
            ),
        ),
        loads=False,
    )


VECTOR_ROWS: tuple[Row, ...] = (
    _build("real", "20,000 embeddings of 384 dimensions"),
    _build("random", "10,000 random vectors of 768 dimensions"),
    _search(one_core=True),
    _search(one_core=False),
    _curve(),
    _filter(),
    _hybrid(),
    _insert(),
)
