"""What runs the statements: ToonDB in its modes, and plain SQLite as the control."""

from __future__ import annotations

import contextlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw

from tests.support.daemon import Daemon
from toondb import Database, IpcClient
from toondb_protocol.errors import SqlError

__all__ = ["TARGETS", "Embedded", "Execute", "Ipc", "PlainSqlite", "Target", "Transaction"]

Execute = Callable[[str], list[tuple[Any, ...]]]


class Target(ABC):
    """Something that runs SQL; a context manager around all of its databases.

    Attributes:
        name: What it is called.
        errors: What a statement that is wrong may raise.
        plain_sqlite: It is not ToonDB.
    """

    name: str
    errors: tuple[type[Exception], ...] = (SqlError,)
    plain_sqlite = False

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @abstractmethod
    def empty(self) -> contextlib.AbstractContextManager[Execute]:
        """A database without tables, as a function that runs a statement and gives its rows."""


class PlainSqlite(Target):
    """SQLite in memory, of the same library: what fails here, too, is not ToonDB's doing."""

    name = "sqlite"
    errors = (apsw.Error,)
    plain_sqlite = True

    @contextlib.contextmanager
    def empty(self) -> Iterator[Execute]:
        with contextlib.closing(apsw.Connection(":memory:")) as connection:
            yield lambda sql: list(connection.execute(sql))


class Embedded(Target):
    """``Database.execute_sql``; each statement commits by itself."""

    name = "embedded"

    @contextlib.contextmanager
    def empty(self) -> Iterator[Execute]:
        with tempfile.TemporaryDirectory(prefix="toondb-corpus-") as folder:
            # Scripts are about results; what survives a power cut is tested elsewhere.
            with Database.open(Path(folder) / "db", {"sync_mode": "off"}) as db:
                yield lambda sql: db.execute_sql(sql).tuples


class Transaction(Target):
    """``execute_sql`` of one transaction for the whole script, which also commits; errors leave it usable."""

    name = "transaction"

    @contextlib.contextmanager
    def empty(self) -> Iterator[Execute]:
        with tempfile.TemporaryDirectory(prefix="toondb-corpus-") as folder:
            with Database.open(Path(folder) / "db", {"sync_mode": "off"}) as db:
                with db.transaction() as txn:
                    yield lambda sql: txn.execute_sql(sql).tuples


class Ipc(Target):
    """``IpcClient.execute_sql`` to a real daemon, which serves all scripts one after the other."""

    name = "ipc"

    def __init__(self) -> None:
        super().__init__()
        self._socket: Path | None = None

    @contextlib.contextmanager
    def empty(self) -> Iterator[Execute]:
        if self._socket is None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="toondb-corpus-"))
            self._socket = self._stack.enter_context(Daemon(Path(folder) / "db", "--sync-mode", "off")).socket
        with IpcClient.connect(self._socket) as client:
            for kind, name in client.execute_sql(
                "SELECT type, name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
            ).tuples:
                client.execute_sql(f'DROP {kind} "{name}"')
            yield lambda sql: client.execute_sql(sql).tuples


TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in (Embedded, Transaction, Ipc, PlainSqlite)}
"""By name."""
