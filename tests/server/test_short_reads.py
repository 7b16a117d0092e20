"""Short reads that are answered at once: never older than what was acknowledged, and as any other statement else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, SyncMode
from toondb.sql.engine import SqlEngine
from toondb.sql.quick import QuickReader
from toondb_client import IpcClient
from toondb_protocol.errors import SqlError, TransactionConflictError, ValidationError
from toondb_protocol.messages import encode_request
from toondb_protocol.opcodes import Opcode
from toondb_server.short_reads import ShortReads

READ = "SELECT id, name FROM people WHERE id = ?"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[IpcClient]:
    with IpcClient.connect(daemon.socket) as client:
        client.execute_sql("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT)")
        client.executemany("INSERT INTO people VALUES (?, ?)", [(number, f"n{number}") for number in range(100)])
        for _ in range(3):  # known as a short read, run as one, and kept
            assert client.execute_sql(READ, (7,)).tuples == [(7, "n7")]
        yield client


def test_a_write_shows_in_the_next_read_of_every_client(daemon: Daemon, client: IpcClient) -> None:
    with IpcClient.connect(daemon.socket) as other:
        for number in range(50):
            writer, reader = (client, other) if number % 2 else (other, client)
            writer.execute_sql("UPDATE people SET name = ? WHERE id = 7", (f"changed {number}",))
            for _ in range(2):
                assert reader.execute_sql(READ, (7,)).tuples == [(7, f"changed {number}")]
        client.execute_sql("DELETE FROM people WHERE id = 7")
        assert other.execute_sql(READ, (7,)).tuples == []
        assert other.execute_sql(READ, (7,)).columns == ["id", "name"]


def test_a_write_inside_a_transaction_shows_when_it_is_committed(client: IpcClient) -> None:
    with client.transaction() as txn:
        txn.execute_sql("UPDATE people SET name = 'inside' WHERE id = 7")
        assert txn.execute_sql(READ, (7,)).tuples == [(7, "inside")]
        assert client.execute_sql(READ, (7,)).tuples == [(7, "n7")]
    assert client.execute_sql(READ, (7,)).tuples == [(7, "inside")]
    txn = client.transaction()
    assert txn.execute_sql(READ, (7,)).tuples == [(7, "inside")]
    client.execute_sql("UPDATE people SET name = 'later' WHERE id = 7")
    assert client.execute_sql(READ, (7,)).tuples == [(7, "later")]
    assert txn.execute_sql(READ, (7,)).tuples == [(7, "inside")]
    with pytest.raises(TransactionConflictError):
        txn.execute_sql("UPDATE people SET name = 'too late' WHERE id = 7")
    txn.abort()


def test_a_change_of_the_schema_shows(client: IpcClient) -> None:
    everything = "SELECT * FROM people WHERE id = ?"
    for _ in range(3):
        assert client.execute_sql(everything, (8,)).columns == ["id", "name"]
    client.execute_sql("ALTER TABLE people ADD COLUMN city TEXT DEFAULT 'Ulm'")
    for _ in range(3):
        result = client.execute_sql(everything, (8,))
        assert (result.columns, result.tuples) == (["id", "name", "city"], [(8, "n8", "Ulm")])
    client.execute_sql("DROP TABLE people")
    for _ in range(2):
        with pytest.raises(SqlError, match="no such table"):
            client.execute_sql(READ, (7,))


def test_keys_written_in_between_change_nothing(client: IpcClient) -> None:
    for number in range(20):
        client.put(b"key", b"%d" % number)
        assert client.execute_sql(READ, (7,)).tuples == [(7, "n7")]


def test_values_of_other_types_are_told_apart(client: IpcClient) -> None:
    echo = "SELECT typeof(?), id FROM people WHERE id = 1"
    values = [None, 1, 1.0, "1", b"1", 2**63 - 1, -(2**63), "ü", ""]
    kinds = ["null", "integer", "real", "text", "blob", "integer", "integer", "text", "text"]
    for _ in range(3):
        for value, kind in zip(values, kinds, strict=True):
            assert client.execute_sql(echo, (value,)).tuples == [(kind, 1)]
    for wrong in ((), (1, 2), {"other": 1}):
        with pytest.raises(ValidationError):
            client.execute_sql(echo, wrong)
    assert client.execute_sql("SELECT name FROM people WHERE id = :id", {"id": 3}).tuples == [("n3",)]


def test_long_replies_are_whole_each_time(client: IpcClient) -> None:
    client.execute_sql("UPDATE people SET name = ? WHERE id = 7", ("x" * 50_000,))
    for _ in range(3):
        assert client.execute_sql(READ, (7,)).tuples == [(7, "x" * 50_000)]
        rows = client.execute_sql("SELECT id FROM people ORDER BY id").tuples
        assert rows == [(number,) for number in range(100)]


def test_without_a_cache_nothing_is_kept_and_answers_are_the_same(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--cache-size", "0") as daemon, IpcClient.connect(daemon.socket) as client:
        client.execute_sql("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT)")
        client.execute_sql("INSERT INTO people VALUES (7, 'n7')")
        for _ in range(4):
            assert client.execute_sql(READ, (7,)).tuples == [(7, "n7")]


def _request(text: str, params: list[object]) -> bytes:
    _, payload = encode_request(Opcode.QUERY, {"body": {"sql": text, "params": params}}, txn=0)
    return payload


def test_replies_are_kept_until_a_table_changes_and_within_their_bound(tmp_path: Path) -> None:
    with Engine(tmp_path / "db", EngineOptions(sync_mode=SyncMode.OFF)) as engine:
        sql = SqlEngine(engine)
        reader = QuickReader(sql)
        try:
            sql.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT)")
            sql.execute("INSERT INTO people VALUES (7, 'n7')")
            assert sql.stream(READ, [7]).fetch(10, 1 << 20) == [(7, "n7")]  # known as short from now on
            short = ShortReads(reader, max_frame=1 << 20, max_bytes=10_000)
            requests = [_request(READ, [number]) for number in range(100)]
            kept = short.reply(requests[7])
            assert kept is not None
            assert short.reply(requests[7]) is kept
            engine.put(b"key", b"value")
            assert short.reply(requests[7]) is kept
            sql.execute("UPDATE people SET name = 'new' WHERE id = 7")
            changed = short.reply(requests[7])
            assert changed is not None
            assert changed != kept
            assert short.reply(requests[7]) is changed
            for request in requests:
                assert short.reply(request) is not None
                assert short.kept_bytes <= 10_000
            none = ShortReads(reader, max_frame=1 << 20, max_bytes=0)
            assert none.reply(requests[7]) == none.reply(requests[7]) == changed
            assert none.kept_bytes == 0
            tiny = ShortReads(reader, max_frame=4, max_bytes=10_000)
            assert tiny.reply(requests[7]) is None
        finally:
            reader.close()
            sql.close()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(8),
        bytes(8) + b"\x80",
        bytes(8) + b"\x93\x01\x02\x03",
        bytes(8) + b"\xc1",
        b"\x01" + bytes(7) + _request(READ, [7])[8:],
        _request(READ, [7]) + b"\x00",
        _request("SELECT never, seen FROM people", []),
        _request("DELETE FROM people", []),
        _request(READ, ["x" * 5000]),
    ],
)
def test_what_is_no_short_read_is_left_to_others(tmp_path: Path, payload: bytes) -> None:
    with Engine(tmp_path / "db", EngineOptions(sync_mode=SyncMode.OFF)) as engine:
        sql = SqlEngine(engine)
        reader = QuickReader(sql)
        try:
            sql.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT)")
            sql.execute("INSERT INTO people VALUES (7, 'n7')")
            sql.stream(READ, [7]).fetch(10, 1 << 20)
            assert ShortReads(reader, max_frame=1 << 20, max_bytes=10_000).reply(payload) is None
            assert sql.execute("SELECT count(*) FROM people").rows == [(1,)]
        finally:
            reader.close()
            sql.close()
