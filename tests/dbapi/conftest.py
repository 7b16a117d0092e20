"""Fixtures of the driver's tests: the same store embedded and behind a real daemon."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from toondb import dbapi

MODES = ("embedded", "daemon")


class Place:
    """Where a store is, and connections to it, which are closed when the test ends."""

    def __init__(self, target: Path, config: dict[str, Any] | None, stack: contextlib.ExitStack) -> None:
        self.target = target
        self.config = config
        self._stack = stack

    def connect(self, **options: Any) -> dbapi.Connection:
        return self._stack.enter_context(contextlib.closing(dbapi.connect(self.target, config=self.config, **options)))


@pytest.fixture(scope="package")
def served() -> Iterator[Daemon]:
    """A daemon that all tests share."""
    parent = Path(tempfile.mkdtemp(prefix="toondb-"))
    with Daemon(parent / "db", "--sync-mode", "off", "--max-clients", "200") as daemon:
        yield daemon
    shutil.rmtree(parent)


def drop_all(connection: dbapi.Connection) -> None:
    """Drop every table and view."""
    query = "SELECT type, name FROM sqlite_schema WHERE type IN ('view', 'table') AND name NOT GLOB 'sqlite_*'"
    for kind, name in connection.execute(query).fetchall():
        connection.execute(f'DROP {kind} IF EXISTS "{name}"')


@pytest.fixture(params=MODES)
def place(request: pytest.FixtureRequest, tmp_db: Path) -> Iterator[Place]:
    """A store without tables."""
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            yield Place(tmp_db, {"sync_mode": "off"}, stack)
            return
        daemon: Daemon = request.getfixturevalue("served")
        with contextlib.closing(dbapi.connect(daemon.socket, autocommit=True)) as connection:
            drop_all(connection)
        yield Place(daemon.socket, None, stack)


@pytest.fixture
def connection(place: Place) -> dbapi.Connection:
    return place.connect()
