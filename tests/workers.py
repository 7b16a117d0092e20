"""Client processes for the race and crash tests: ``python -m tests.workers NAME SOCKET [ARGUMENT...]``.

Each writes one line per event on standard output, so that a test waits for events and not for time, and ends by
itself or when its daemon is gone.
"""

from __future__ import annotations

import contextlib
import random
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from tests.support.daemon import SECONDS, child_environ
from toondb_client import IpcClient
from toondb_client.ipc import Transaction
from toondb_protocol.errors import ConnectionError, TransactionConflictError, TransactionError

ACCOUNTS = 8
OPENING_BALANCE = 100


class Worker:
    """A running worker process."""

    running: ClassVar[list[Worker]] = []

    def __init__(self, name: str, socket: Path, *args: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.workers", name, str(socket), *map(str, args)],
            env=child_environ(),
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(self)

    def line(self) -> str:
        """The next event; empty when there are no more."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, text: str) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def finish(self) -> list[str]:
        """Wait for its end; the lines not read yet. It must have ended well."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        # Not communicate(): it would miss what line() has buffered.
        lines = self.process.stdout.read().splitlines()
        assert self.process.wait(SECONDS) == 0
        self.process.stdout.close()
        self.running.remove(self)
        return lines

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.running.remove(self)

    @classmethod
    def end_all(cls) -> None:
        """End what a failed test left behind."""
        for worker in list(cls.running):
            worker.kill()


def say(*words: object) -> None:
    print(*words, flush=True)


def account(n: int) -> str:
    return f"account/{n}"


def transfer(client: IpcClient, seed: str, count: str, isolation: str) -> None:
    """Move money between random accounts."""
    chance = random.Random(seed)
    for _ in range(int(count)):
        source, target = chance.sample(range(ACCOUNTS), 2)
        amount = chance.randint(1, 20)

        def move(txn: Transaction, source: int = source, target: int = target, amount: int = amount) -> None:
            balances = [int(txn.get(account(n)) or b"") for n in (source, target)]
            txn.put(account(source), b"%d" % (balances[0] - amount))
            txn.put(account(target), b"%d" % (balances[1] + amount))

        client.run_transaction(move, isolation=isolation, attempts=10_000)
    say("done")


def audit(client: IpcClient, isolation: str) -> None:
    """Sum all balances in one transaction, again and again until told to stop."""
    sums = 0
    while sums < 5 or not select.select([sys.stdin], [], [], 0)[0]:
        # A plain scan has one snapshot too.
        for view in (client, client.begin_transaction(isolation, read_only=True)):
            total = sum(int(value) for _, value in view.scan("account/"))
            assert total == ACCOUNTS * OPENING_BALANCE, total
            if isinstance(view, Transaction):
                view.commit()
        sums += 1
    say(sums)


def count(client: IpcClient, times: str) -> None:
    """Increment one counter."""

    def increment(txn: Transaction) -> None:
        txn.put("counter", b"%d" % (int(txn.get("counter") or b"0") + 1))

    for _ in range(int(times)):
        client.run_transaction(increment, attempts=10_000)
    say("done")


def go_off_call(client: IpcClient, doctor: str, isolation: str, rounds: str) -> None:
    """Leave when somebody else is on call. Each round waits for its start, so that both decide at the same time."""
    for _ in range(int(rounds)):
        sys.stdin.readline()
        with client.transaction(isolation) as txn:
            on_call = [key for key, value in txn.scan("call/") if value == b"yes"]
            say("read")
            sys.stdin.readline()
            if len(on_call) > 1:
                txn.put(f"call/{doctor}", b"no")
            try:
                txn.commit()
            except TransactionConflictError:
                say("conflict")
            else:
                say("committed")


def put_and_tell(client: IpcClient, times: str) -> None:
    """Put, and say so once it is acknowledged."""
    for n in range(int(times)):
        client.put("told", b"%d" % n)
        say(n)
        sys.stdin.readline()


def put_many(client: IpcClient, name: str, times: str) -> None:
    """Durable single writes."""
    say("ready")
    sys.stdin.readline()
    for n in range(int(times)):
        client.put(f"group/{name}/{n}", b"x")
    say("done")


def half_done(client: IpcClient) -> None:
    """Begin a transaction and never end it."""
    txn = client.begin_transaction()
    txn.put("half", b"1")
    assert txn.get("half") == b"1"
    say("open")
    sys.stdin.readline()


def log_writes(client: IpcClient, name: str) -> None:
    """Write until the daemon is gone; log what was acknowledged.

    ``p KEY TOKEN``: a put. ``t TOKEN LSN``: a transaction that wrote one token under three keys. ``d KEY``: a delete.
    """
    n = 0
    try:
        while True:
            n += 1
            token = f"{name}-{n}"
            if n % 3 == 0:
                with client.transaction() as txn:
                    for part in range(3):
                        txn.put(f"txn/{name}/{part}", token.encode())
                    say("t", token, txn.commit())
            elif n % 7 == 0:
                client.delete(f"put/{name}/{(n - 1) % 10}")
                say("d", f"put/{name}/{(n - 1) % 10}", token)
            else:
                client.put(f"put/{name}/{n % 10}", token.encode())
                say("p", f"put/{name}/{n % 10}", token)
    except (ConnectionError, TransactionError):
        say("end", f"{name}-{n}")


WORKERS: dict[str, Callable[..., None]] = {
    "transfer": transfer,
    "audit": audit,
    "count": count,
    "go_off_call": go_off_call,
    "put_and_tell": put_and_tell,
    "put_many": put_many,
    "half_done": half_done,
    "log_writes": log_writes,
}

if __name__ == "__main__":
    with IpcClient.connect(sys.argv[2], reconnect_timeout=0.1) as connected:
        WORKERS[sys.argv[1]](connected, *sys.argv[3:])
