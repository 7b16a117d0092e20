"""Races between real processes through a real daemon; each is a model with an invariant."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.workers import ACCOUNTS, OPENING_BALANCE, Worker, account
from toondb_client import IpcClient


@pytest.fixture(autouse=True)
def no_worker_stays() -> Iterator[None]:
    yield
    Worker.end_all()


@pytest.fixture
def served(tmp_db: Path) -> Iterator[Daemon]:
    with Daemon(tmp_db, "--sync-mode", "off", "--max-clients", "200") as daemon:
        yield daemon


@pytest.fixture
def client(served: Daemon) -> Iterator[IpcClient]:
    with IpcClient.connect(served.socket) as client:
        yield client


def test_money_is_neither_made_nor_lost(served: Daemon, client: IpcClient) -> None:
    client.put_many({account(n): b"%d" % OPENING_BALANCE for n in range(ACCOUNTS)})
    movers = [
        Worker("transfer", served.socket, seed, 100, "serializable" if seed % 2 else "snapshot") for seed in range(4)
    ]
    auditors = [Worker("audit", served.socket, isolation) for isolation in ("snapshot", "serializable")]
    for mover in movers:
        assert mover.finish() == ["done"]
    for auditor in auditors:
        auditor.tell("stop")
        assert int(auditor.finish()[0]) >= 5
    balances = [int(value) for _, value in client.scan("account/")]
    assert len(balances) == ACCOUNTS
    assert sum(balances) == ACCOUNTS * OPENING_BALANCE
    stats = client.stats()
    assert stats["lsn"] == 1 + 4 * 100  # every transfer once, whatever the number of tries
    assert stats["active_transactions"] == 0


def test_no_increment_is_lost(served: Daemon, client: IpcClient) -> None:
    for worker in [Worker("count", served.socket, 60) for _ in range(5)]:
        assert worker.finish() == ["done"]
    assert client.get("counter") == b"300"
    assert client.stats()["lsn"] == 300


@pytest.mark.parametrize("isolation", ["serializable", "snapshot"])
def test_write_skew(served: Daemon, client: IpcClient, isolation: str) -> None:
    """Two doctors leave when the other is on call. Both read before either commits, so the outcome is certain."""
    rounds = 5
    doctors = [Worker("go_off_call", served.socket, name, isolation, rounds) for name in ("alice", "bob")]
    for _ in range(rounds):
        client.put_many({"call/alice": b"yes", "call/bob": b"yes"})
        for doctor in doctors:
            doctor.tell("begin")
        assert [doctor.line() for doctor in doctors] == ["read", "read"]
        for doctor in doctors:
            doctor.tell("decide")
        outcomes = sorted(doctor.line() for doctor in doctors)
        left = [value for _, value in client.scan("call/")].count(b"yes")
        if isolation == "serializable":
            assert (outcomes, left) == (["committed", "conflict"], 1)
        else:
            # They wrote different keys: snapshot isolation permits it, and that is documented.
            assert (outcomes, left) == (["committed", "committed"], 0)
    for doctor in doctors:
        assert doctor.finish() == []


def test_what_one_process_was_told_another_sees(served: Daemon, client: IpcClient) -> None:
    with IpcClient.connect(served.socket, direct_reads=True) as direct:
        writer = Worker("put_and_tell", served.socket, 100)
        for n in range(100):
            assert writer.line() == str(n)
            expected = b"%d" % n
            assert client.get("told") == expected
            assert direct.get("told") == expected
            assert list(direct.scan("told")) == [(b"told", expected)]
            with client.transaction(read_only=True) as txn:
                assert txn.get("told") == expected
            writer.tell("next")
        assert writer.finish() == []


def test_group_commit_under_many_processes(tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon, IpcClient.connect(daemon.socket) as client:
        workers = [Worker("put_many", daemon.socket, name, 20) for name in range(32)]
        for worker in workers:
            assert worker.line() == "ready"
        before = client.stats()
        for worker in workers:
            worker.tell("go")
        for worker in workers:
            assert worker.finish() == ["done"]
        after = client.stats()
        assert after["lsn"] == 640
        assert len({key for key, _ in client.scan("group/")}) == 640
        assert after["commits"] - before["commits"] <= 640


def test_a_killed_client_leaves_nothing(served: Daemon, client: IpcClient) -> None:
    workers = [Worker("half_done", served.socket) for _ in range(3)]
    assert [worker.line() for worker in workers] == ["open"] * 3
    assert client.stats()["active_transactions"] == 3
    for worker in workers:
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.kill()
    # The daemon learns of it from the closed socket, in the order of events; a write in between conflicts with nothing.
    client.put("half", b"2")
    for _ in range(10_000):
        if client.stats()["active_transactions"] == 0:
            break
    stats = client.stats()
    assert (stats["active_transactions"], stats["open_snapshots"], stats["lsn"]) == (0, 0, 1)
    assert client.get("half") == b"2"
