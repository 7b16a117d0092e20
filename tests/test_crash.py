"""kill -9 of the daemon under load: what was acknowledged is there, transactions are whole, the LSN never goes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon
from tests.workers import Worker
from toondb.engine.file_check import check_file
from toondb_client import IpcClient

WRITERS = 4
ROUNDS = 3
EVENTS_BEFORE_THE_KILL = 25


@pytest.fixture(autouse=True)
def no_worker_stays() -> Iterator[None]:
    yield
    Worker.end_all()


def number(token: str) -> int:
    return int(token.rpartition("-")[2])


@pytest.mark.parametrize("sync_mode", ["full", "normal", "off"])
def test_nothing_acknowledged_is_lost(tmp_db: Path, sync_mode: str) -> None:
    lsn = 0
    for turn in range(ROUNDS):
        daemon = Daemon(tmp_db, "--sync-mode", sync_mode)
        try:
            with IpcClient.connect(daemon.socket) as client:
                now = client.stats()["lsn"]
                assert now >= lsn
                lsn = now
            writers = [Worker("log_writes", daemon.socket, f"{turn}w{n}") for n in range(WRITERS)]
            logs = [[writer.line() for _ in range(EVENTS_BEFORE_THE_KILL)] for writer in writers]
        finally:
            daemon.kill()
        for writer, log in zip(writers, logs, strict=True):
            log += writer.finish()
        assert check_file(tmp_db / "data.mdb").damages == []
        with Daemon(tmp_db, "--sync-mode", sync_mode) as daemon, IpcClient.connect(daemon.socket) as client:
            for n, log in enumerate(logs):
                lsn = max(lsn, check(client, f"{turn}w{n}", log))
            assert client.stats()["lsn"] >= lsn
            lsn = client.stats()["lsn"]


def check(client: IpcClient, name: str, log: list[str]) -> int:
    """Compare the store with what one writer was told; its newest acknowledged LSN.

    A write that was on its way when the daemon died may have been applied: it is the one after the last
    acknowledged, its number is in the ``end`` line.
    """
    kind, last = log[-1].split()
    assert kind == "end"
    newest = 0
    puts: dict[str, str | None] = {}
    transaction = ""
    for event in log[:-1]:
        what, *rest = event.split()
        if what == "t":
            transaction = rest[0]
            assert int(rest[1]) > newest
            newest = int(rest[1])
        else:
            puts[rest[0]] = rest[1] if what == "p" else None
    parts = {(client.get(f"txn/{name}/{part}") or b"").decode() for part in range(3)}
    assert len(parts) == 1, f"half a transaction: {parts}"
    assert parts <= {transaction, last if number(last) % 3 == 0 else transaction}, (
        f"{transaction} was acknowledged, the store has {parts}"
    )
    # What log_writes() sent last.
    n = number(last)
    in_flight = (f"put/{name}/{(n - 1) % 10}", None) if n % 7 == 0 else (f"put/{name}/{n % 10}", last)
    for key, token in puts.items():
        value = client.get(key)
        stored = None if value is None else value.decode()
        assert stored == token or (key, stored) == in_flight, f"{key}: {token} became {stored}"
    return newest
