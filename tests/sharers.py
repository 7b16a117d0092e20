"""Processes that share a folder: ``python -m tests.sharers NAME FOLDER [ARGUMENT...]``.

They open it with ``Database.open_concurrent``. As in ``tests.workers`` each says what happened, a line for each event,
so that a test waits for events.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tests.support.daemon import SECONDS, child_environ
from tests.workers import WORKERS, say
from toondb import Database
from toondb.engine import engine as engine_module
from toondb_protocol.errors import ToonDBError

__all__ = ["Sharer"]


class Sharer:
    """A running process; see the functions below for what it may do.

    Args:
        name: What it does.
        folder: The database folder.
        args: More arguments.
        config: The ``config`` that it opens with.
        wait: How long it waits for an exclusive owner, in seconds; None leaves it as it is.
    """

    running: ClassVar[list[Sharer]] = []

    def __init__(
        self, name: str, folder: Path, *args: object, config: dict[str, Any] | None = None, wait: float | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.sharers", name, str(folder), *map(str, args)],
            env=child_environ({"SHARER": json.dumps({"config": config, "wait": wait})}),
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self.process.pid
        self._unread = b""
        self.running.append(self)

    def line(self) -> str:
        """The next event; empty when there are no more. One that does not come in time fails the test."""
        assert self.process.stdout is not None
        give_up = time.monotonic() + SECONDS
        while b"\n" not in self._unread:
            left = give_up - time.monotonic()
            assert left > 0, "it said nothing"
            if select.select([self.process.stdout], [], [], left)[0]:
                chunk = os.read(self.process.stdout.fileno(), 65536)
                if not chunk:
                    return ""
                self._unread += chunk
        text, _, self._unread = self._unread.partition(b"\n")
        return text.decode()

    def lines(self) -> list[str]:
        """All whole lines until its end."""
        return list(iter(self.line, ""))

    def tell(self, *words: object) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, *words: object) -> str:
        """Send it a line, and read the answer."""
        self.tell(*words)
        return self.line()

    def finish(self) -> list[str]:
        """Let it end; the lines not read yet. It must end well."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        lines = self.lines()
        assert self.process.wait(SECONDS) == 0
        self._forget()
        return lines

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait(SECONDS)
        self._forget()

    def _forget(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self in self.running:
            self.running.remove(self)

    @classmethod
    def end_all(cls) -> None:
        """End what a failed test left behind."""
        for sharer in list(cls.running):
            sharer.kill()


# What they do


def audit(db: Database, isolation: str) -> None:
    """Sum all balances in one view, again and again until told to stop."""
    sums = 0
    while sums < 5 or not select.select([sys.stdin], [], [], 0)[0]:
        total = sum(int(value) for _, value in db.scan("account/"))
        with db.transaction(isolation, read_only=True) as txn:
            assert total == sum(int(value) for _, value in txn.scan("account/")) == 800, total
        sums += 1
    say(sums)


def increment(db: Database, times: str) -> None:
    """Count without a transaction, and in one together with something else."""
    for n in range(int(times)):
        db.increment("counter")
        if n % 5 == 0:
            db.run_transaction(lambda txn: (txn.increment("counter"), txn.increment("both")), attempts=10_000)
    say("done")


def write(db: Database, name: str) -> None:
    """Write until it is killed: ``LSN N`` for each transaction N of four keys that was acknowledged."""
    n = 0
    while True:
        n += 1
        with db.transaction() as txn:
            for part in range(3):
                txn.put(f"{name}/{part}", b"%d" % n * (1 + n % 500))
            txn.put(f"{name}/n", b"%d" % n)
            lsn = txn.commit()
        say(lsn, n)


def watch(db: Database, count: str) -> None:
    """Say so many changes."""
    changes = db.watch("w/", timeout=SECONDS)
    say("watching")
    for _ in range(int(count)):
        change = next(changes)
        say(change.lsn, change.kind, change.key.decode(), (change.value or b"").decode())


def serve(db: Database) -> None:
    """Do what it is told, and answer with what came of it."""
    say("open", str(db._engine.access))
    snapshot = None
    for line in sys.stdin:
        command, *words = line.split()
        try:
            if command == "get":
                value = db.get(words[0])
                say(None if value is None else value.decode())
            elif command == "put":
                db.put(words[0], words[1].encode(), ttl=float(words[2]) if len(words) > 2 else None)
                say("done")
            elif command == "grow":
                db.put_many({f"grow/{n}": bytes(10_000) for n in range(int(words[0]))})
                say("done")
            elif command == "snapshot":
                snapshot = db.begin_transaction(read_only=True)
                snapshot.get("any")
                say("done")
            elif command == "fork":
                say(fork())
            else:
                raise AssertionError(command)
        except ToonDBError as error:
            say(type(error).__name__, error)
    if snapshot is not None:
        snapshot.abort()


def fork() -> int:
    """The pid of a child that does nothing until it is killed, and has no pipe of this process."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        read, _ = os.pipe()
        os.read(read, 1)
        os._exit(0)
    return child


SHARERS: dict[str, Callable[..., None]] = {
    "audit": audit,
    "increment": increment,
    "serve": serve,
    "watch": watch,
    "write": write,
    **{name: WORKERS[name] for name in ("transfer", "go_off_call")},
}


def main(name: str, folder: str, *args: str) -> None:
    how = json.loads(os.environ["SHARER"])
    if how["wait"] is not None:
        engine_module._WAIT_FOR_OWNER_SECONDS = how["wait"]
    if args[:1] == ("told",):  # opens when it is told to, so that several do so together
        args = args[1:]
        say("ready")
        sys.stdin.readline()
    say("opening")
    try:
        db = Database.open_concurrent(folder, how["config"])
    except ToonDBError as error:
        say(json.dumps([type(error).__name__, error.message, error.remediation, error.details]))
        return
    with db:
        SHARERS[name](db, *args)


if __name__ == "__main__":
    main(*sys.argv[1:])
