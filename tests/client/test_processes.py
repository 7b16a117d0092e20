"""Counters and locks that several processes share: none is lost, and nobody shares what is exclusive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import SECONDS, Daemon
from toondb_client import IpcClient

PROCESSES = 8
ROUNDS = 150

COUNT = """
import sys
from toondb_client import IpcClient
with IpcClient.connect(sys.argv[1]) as client:
    print("ready", flush=True)
    sys.stdin.readline()
    last = 0
    for at in range(int(sys.argv[3])):
        total = client.increment("counter")
        assert total > last
        last = total
        with client.pipeline() as pipeline:
            pipeline.increment("counter", 2).put(f"noise/{sys.argv[2]}", b"x").increment("counter", -1)
        if at % 10 == 0:
            client.run_transaction(lambda txn: txn.increment("slow"))
"""

LOCK = """
import sys
from toondb_client import IpcClient
me = sys.argv[2].encode()
won = 0
with IpcClient.connect(sys.argv[1]) as client:
    print("ready", flush=True)
    sys.stdin.readline()
    for at in range(int(sys.argv[3])):
        won += client.compare_and_set(f"round/{at}", None, me)
        while not client.compare_and_set("lock", None, me, ttl=60):
            pass
        # Not atomic: it is right only because nobody else is here.
        client.put("protected", b"%d" % (int(client.get("protected") or b"0") + 1))
        assert client.get("lock") == me
        assert client.compare_and_set("lock", me, None)
print(won)
"""


def run(code: str, daemon: Daemon, rounds: int) -> list[str]:
    """Run a program in several processes at once; what each printed after it was ready."""
    command = [sys.executable, "-W", "error", "-c", code, str(daemon.socket)]
    children = [
        subprocess.Popen(
            [*command, str(number), str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for number in range(PROCESSES)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        printed = [child.communicate(timeout=4 * SECONDS)[0] for child in children]
        assert [child.returncode for child in children] == [0] * PROCESSES
    finally:
        for child in children:
            child.kill()
            child.communicate()
    return printed


@pytest.fixture
def client(server: Daemon) -> IpcClient:
    """Closed by the end of its test."""
    return IpcClient.connect(server.socket)


def test_counters_of_eight_processes_are_exact(server: Daemon, client: IpcClient) -> None:
    run(COUNT, server, ROUNDS)
    with client:
        assert client.get("counter") == b"%d" % (PROCESSES * ROUNDS * 2)
        assert client.get("slow") == b"%d" % (PROCESSES * ROUNDS // 10)


def test_a_lock_has_one_owner_at_a_time_and_each_round_one_winner(server: Daemon, client: IpcClient) -> None:
    rounds = 25
    won = run(LOCK, server, rounds)
    with client:
        assert client.get("protected") == b"%d" % (PROCESSES * rounds)
        assert client.get("lock") is None
        assert sum(map(int, won)) == rounds
        winners = client.get_many([f"round/{at}" for at in range(rounds)]).values()
        counts = [sum(winner == b"%d" % number for winner in winners) for number in range(PROCESSES)]
        assert counts == list(map(int, won))
