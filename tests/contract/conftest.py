"""Fixtures of the contract suite: the same store in every mode."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.neighbour import Neighbour
from tests.support.blocking import blocking_client, make_runner
from tests.support.daemon import Daemon
from toondb import Database, IpcClient

MODES = ("embedded", "concurrent", "sync", "uvloop", "asyncio", "direct")
VIEWS = ("plain", "transaction")

Opened = contextlib.AbstractContextManager[Any]


class Places:
    """Where the stores of the modes are, made when first needed."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self._stack = contextlib.ExitStack()
        self._daemon: Daemon | None = None
        self._neighbour: Neighbour | None = None

    @property
    def daemon(self) -> Daemon:
        """A daemon that all tests share."""
        if self._daemon is None:
            self._daemon = self._stack.enter_context(Daemon(self.parent / "served", "--max-clients", "200"))
        return self._daemon

    @property
    def shared(self) -> Path:
        """A folder that another process has open with ``open_concurrent`` all the time."""
        folder = self.parent / "shared"
        if self._neighbour is None:
            self._neighbour = self._stack.enter_context(contextlib.closing(Neighbour(folder)))
        return folder

    @property
    def neighbour(self) -> Neighbour:
        """That process."""
        assert self.shared
        assert self._neighbour is not None
        return self._neighbour

    @property
    def alone(self) -> Path:
        """A folder that only this process has open."""
        return self.parent / "alone"

    def close(self) -> None:
        """End the processes."""
        self._stack.close()

    @contextlib.contextmanager
    def open(self, mode: str) -> Iterator[Any]:
        """A client of a mode, on a store that has no keys; what it gives behaves as the sync one."""
        if mode in ("embedded", "concurrent"):
            with Database.open(self.alone) if mode == "embedded" else Database.open_concurrent(self.shared) as db:
                db.delete_many([key for key, _ in db.scan()])
                yield db
            return
        with IpcClient.connect(self.daemon.socket) as client:
            client.delete_many([key for key, _ in client.scan()])
        if mode in ("sync", "direct"):
            with IpcClient.connect(self.daemon.socket, direct_reads=mode == "direct") as client:
                yield client
            return
        errors: list[dict[str, Any]] = []
        with make_runner(mode, errors) as runner:
            blocking = blocking_client(runner, self.daemon.socket)
            try:
                yield blocking
            finally:
                blocking.close()
        assert errors == []

    @contextlib.contextmanager
    def open_another(self, mode: str) -> Iterator[Any]:
        """Somebody else who writes to the store of a mode, in plain calls from any thread."""
        if mode == "embedded":
            with Database.open(self.alone) as db:
                yield db
        elif mode == "concurrent":
            yield self.neighbour
        else:
            with IpcClient.connect(self.daemon.socket) as client:
                yield client


@pytest.fixture(scope="session")
def places() -> Iterator[Places]:
    parent = Path(tempfile.mkdtemp(prefix="toondb-"))
    places = Places(parent)
    try:
        yield places
    finally:
        places.close()
        shutil.rmtree(parent)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(places: Places, mode: str) -> Iterator[Any]:
    """A store, plain; it has no keys."""
    with places.open(mode) as client:
        yield client


@pytest.fixture
def other(places: Places, mode: str, client: Any) -> Iterator[Any]:
    """Somebody else who writes to the same store."""
    with places.open_another(mode) as other:
        yield other


@pytest.fixture(params=VIEWS)
def view(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(client: Any, view: str) -> Iterator[Any]:
    """A store, plain and as a transaction of it."""
    if view == "plain":
        yield client
        return
    transaction = client.begin_transaction()
    yield transaction
    transaction.abort()


Ended = Callable[[Any], Any]


@pytest.fixture(params=["commit", "abort"])
def end(request: pytest.FixtureRequest) -> str:
    """How a transaction is ended."""
    return str(request.param)
