"""How transactions of the clients end, in every way they can."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.server.raw import Raw, settled, until
from tests.support.daemon import Daemon
from tests.support.proxy import Proxy
from toondb_client import IpcClient
from toondb_protocol.errors import (
    DatabaseClosedError,
    TransactionClosedError,
    TransactionConflictError,
    TransactionError,
    TransactionExpiredError,
    TransactionOutcomeUnknownError,
)

from .conftest import Connect

pytestmark = pytest.mark.parametrize("connect", ["sync", "uvloop", "asyncio"], indirect=True)


def test_conflict(connect: Connect, server: Daemon) -> None:
    client = connect(server.socket)
    first, second = client.begin_transaction(), client.begin_transaction()
    first.put("k", b"1")
    first.put("only-first", b"1")
    second.put("k", b"2")
    second.commit()
    with pytest.raises(TransactionConflictError):
        first.commit()
    assert (client.get("k"), client.get("only-first")) == (b"2", None)
    assert not first.active
    client.put("k", b"3")
    assert client.stats()["active_transactions"] == 0


def test_serializable_prevents_write_skew(connect: Connect, server: Daemon) -> None:
    client = connect(server.socket)
    client.put_many({"on/a": b"1", "on/b": b"1"})
    first, second = client.begin_transaction("serializable"), client.begin_transaction("serializable")
    for transaction, key in ((first, "on/a"), (second, "on/b")):
        assert len(list(transaction.scan("on/"))) == 2
        transaction.delete(key)
    first.commit()
    with pytest.raises(TransactionConflictError):
        second.commit()


def test_use_after_the_end(connect: Connect, server: Daemon) -> None:
    client = connect(server.socket)
    committed, aborted = client.begin_transaction(), client.begin_transaction()
    committed.commit()
    aborted.abort()
    aborted.abort()
    for ended in (committed, aborted):
        for call in (
            lambda t: t.get("k"), lambda t: t.put("k", b""), lambda t: t.delete("k"), lambda t: t.exists("k"),
            lambda t: list(t.scan()), lambda t: t.get_many(["k"]), lambda t: t.put_many({"k": b""}),
            lambda t: t.delete_path("k", recursive=True), lambda t: t.query("k").count(),
            lambda t: t.pipeline().get("k").execute(), lambda t: t.create_table("t", {"id": "text"}),
            lambda t: t.commit(), lambda t: client.commit(t), lambda t: client.commit(t.id),
        ):  # fmt: skip
            with pytest.raises(TransactionClosedError):
                call(ended)
    with pytest.raises(TransactionClosedError):
        committed.abort()
    with pytest.raises(TransactionClosedError):
        client.abort(12345)


def test_the_block(connect: Connect, server: Daemon) -> None:
    client = connect(server.socket)
    with client.begin_transaction() as transaction:
        transaction.put("a", b"1")
    assert client.get("a") == b"1"
    for error in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            with client.begin_transaction() as transaction:
                transaction.put("b", b"1")
                raise error
        assert client.get("b") is None
        assert not transaction.active
    with client.begin_transaction() as transaction:
        transaction.put("c", b"1")
        transaction.abort()
    assert client.get("c") is None
    with client.begin_transaction() as transaction:
        transaction.put("d", b"1")
        client.commit(transaction)
    assert client.get("d") == b"1"
    assert client.stats()["active_transactions"] == 0


def test_abandoned(connect: Connect, server: Daemon, recwarn: pytest.WarningsRecorder) -> None:
    client = connect(server.socket, max_connections=1, timeout=5)
    transaction = client.begin_transaction()
    transaction.put("a", b"1")
    with pytest.warns(ResourceWarning, match="neither committed nor aborted"):
        del transaction
    with Raw(server.socket) as observer:
        client.get("a")
        until(lambda: observer.stats()["active_transactions"] == 0, "the abandoned transaction is gone")
    assert client.get("a") is None


@pytest.mark.parametrize("name", ["get", "commit"])
def test_expired(connect: Connect, tmp_db: Path, name: str) -> None:
    with Daemon(tmp_db, "--timeout-ms", "200") as daemon:
        client = connect(daemon.socket)
        transaction = client.begin_transaction()
        transaction.put("a", b"1")
        with Raw(daemon.socket) as observer:
            until(lambda: observer.stats()["active_transactions"] == 0, "it expired")
        with pytest.raises(TransactionExpiredError):
            transaction.get("a") if name == "get" else transaction.commit()
        transaction.abort()
        assert client.get("a") is None
        assert client.run_transaction(lambda t: 5) == 5


def test_a_commit_that_the_server_did_not_survive(connect: Connect, tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon, Proxy(daemon.socket) as proxy:
        client = connect(proxy.path)
        transaction = client.begin_transaction()
        transaction.put("a", b"1")
        proxy.cut_up = 0  # the commit never arrives
        with pytest.raises(TransactionOutcomeUnknownError):
            transaction.commit()
        with pytest.raises(TransactionError):
            transaction.get("a")
        daemon.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_in_the_middle(connect: Connect, tmp_db: Path, number: int) -> None:
    daemon = Daemon(tmp_db)
    try:
        client = connect(daemon.socket)
        transaction = client.begin_transaction()
        transaction.put("a", b"1")
        daemon.stop(number)
        daemon = Daemon(tmp_db)
        with pytest.raises(TransactionError, match="aborted it"):
            transaction.put("b", b"1")
        with pytest.raises(TransactionError, match="aborted it"):
            transaction.commit()
        assert client.get("a") is None

        # The new server counts from the beginning: an old transaction must not end a new one of its number.
        old = client.begin_transaction()
        daemon.stop(number)
        daemon = Daemon(tmp_db)
        new = client.begin_transaction()
        with pytest.raises(TransactionError):
            old.get("a")
        assert client.commit(new.id) >= 0

        calls = []

        def work(inner: Any) -> None:
            calls.append(inner.id)
            inner.put("c", b"1")
            daemon.stop(number)

        with pytest.raises(TransactionError):
            client.run_transaction(work)
        assert len(calls) == 1
    finally:
        daemon.kill()


def test_closing_the_client_aborts_its_transactions(connect: Connect, server: Daemon) -> None:
    client = connect(server.socket)
    transaction = client.begin_transaction()
    transaction.put("a", b"1")
    client.close()
    with Raw(server.socket) as observer:
        until(lambda: observer.stats()["active_transactions"] == 0, "the transaction is gone")
    with pytest.raises(TransactionError):
        transaction.commit()
    for call in (client.begin_transaction, client.ping, lambda: client.get("a"), lambda: list(client.scan())):
        with pytest.raises(DatabaseClosedError):
            call()


def test_own_writes_while_scanning(connect: Connect, server: Daemon) -> None:
    client = connect(server.socket)
    client.put_many({f"{n:04}": b"x" * 200 for n in range(2000)})
    with client.begin_transaction() as transaction:
        seen = []
        for key, _ in transaction.scan():
            seen.append(key)
            transaction.delete(key)
            assert transaction.get(key) is None
        assert seen == [b"%04d" % n for n in range(2000)]
        assert list(transaction.scan()) == []
        assert len(list(client.scan())) == 2000
    assert list(client.scan()) == []


def test_nothing_is_left_on_the_server(connect: Connect, server: Daemon) -> None:
    client = connect(server.socket, max_connections=2)
    for _ in range(300):  # more than the server allows to be open on one connection
        with client.begin_transaction() as transaction:
            transaction.put("a", b"1")
        client.put_many({"a": b"1"})
        rows = client.scan()
        next(rows)
        rows.close()
    client.close()
    with Raw(server.socket) as observer:
        settled(observer)


def test_run_transaction_gives_up_after_its_attempts(connect: Connect, server: Daemon) -> None:
    client = connect(server.socket)
    calls = []
    with IpcClient.connect(server.socket) as other:

        def lose(transaction: Any) -> None:
            calls.append(1)
            transaction.put("k", b"mine")
            other.put("k", b"theirs")

        with pytest.raises(TransactionConflictError):
            client.run_transaction(lose, attempts=3)
    assert len(calls) == 3
    assert client.get("k") == b"theirs"
