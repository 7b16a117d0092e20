"""Servers that come back, are away, refuse, or are none."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.children import in_child
from tests.support.daemon import Daemon
from toondb_client import IpcClient
from toondb_protocol.errors import (
    ConnectionError,
    OperationTimeoutError,
    PeerNotAllowedError,
    ProtocolError,
    TooManyClientsError,
    ToonDBError,
)

from .conftest import Connect

pytestmark = pytest.mark.parametrize("connect", ["sync", "uvloop", "asyncio"], indirect=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_between_calls_is_not_noticed(connect: Connect, tmp_db: Path, number: int) -> None:
    daemon = Daemon(tmp_db)
    try:
        client = connect(daemon.socket, reconnect_timeout=20)
        client.put("a", b"1")
        # Several idle connections, all of which die with the server.
        held = [client.begin_transaction() for _ in range(3)]
        for transaction in held:
            transaction.abort()
        for call, expected in (
            (lambda: client.get("a"), b"1"),
            (lambda: client.put("b", b"2"), None),
            (lambda: client.put_many({"c": b"3"}), 1),
            (lambda: list(client.scan("a")), [(b"a", b"1")]),
        ):
            daemon.stop(number)
            daemon = Daemon(tmp_db)
            assert call() == expected
        assert client.get_many(["a", "b", "c"]) == {"a": b"1", "b": b"2", "c": b"3"}
        daemon.stop(number)
        starter: list[Daemon] = []
        thread = threading.Thread(target=lambda: starter.append(Daemon(tmp_db)))
        thread.start()
        try:
            assert client.get("a") == b"1"  # waits for the server
        finally:
            thread.join()
            daemon = starter[0]
    finally:
        daemon.kill()


def test_no_server(connect: Connect, tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon:
        client = connect(daemon.socket, reconnect_timeout=0.1)
        client.put("a", b"1")
    began = time.monotonic()
    for call in (lambda: client.get("a"), lambda: client.put("a", b"2"), lambda: list(client.scan())):
        with pytest.raises(ConnectionError, match=r"no socket|nothing listens"):
            call()
    assert time.monotonic() - began < 20
    with Daemon(tmp_db):
        assert client.get("a") == b"1"


def test_paths_without_a_server(connect: Connect, tmp_path_factory: pytest.TempPathFactory, tmp_db: Path) -> None:
    folder = tmp_db.parent
    regular = folder / "file"
    regular.write_text("text")
    stale = folder / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.bind(str(folder / "dgram.sock"))
        for target, text in (
            (folder / "missing.sock", "no socket"),
            (folder / "missing" / "deeper.sock", "no socket"),
            (folder, "no socket"),
            (regular, "nothing listens"),
            (regular / "below", "cannot connect|Not a directory"),
            (stale, "nothing listens"),
            (folder / "dgram.sock", "cannot connect"),
        ):
            with pytest.raises(ConnectionError, match=text) as caught:
                connect(target)
            assert caught.value.remediation


class Stranger:
    """Listens and answers whatever it is told to."""

    def __init__(self, path: Path, answer: bytes | None, *, close: bool) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._kept: list[socket.socket] = []
        self._answer, self._close = answer, close
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._answer is not None:
                    peer.recv(4096)
                    peer.sendall(self._answer)
            except OSError:
                pass
            if self._close:
                peer.close()
            else:
                self._kept.append(peer)

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for peer in self._kept:
            peer.close()


@pytest.fixture
def strangers() -> Iterator[list[Stranger]]:
    found: list[Stranger] = []
    yield found
    for stranger in found:
        stranger.end()


@pytest.mark.parametrize(
    ("answer", "close", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, (ProtocolError, OperationTimeoutError)),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", True, (ProtocolError, ConnectionError)),
        (b"\x00" * 64, False, ProtocolError),
        (b"\x87\x00\x00\x00\x00", False, ProtocolError),
        (b"\x87\x01\x00\x00\x00\x80", False, ProtocolError),
        (b"\x87\x05\x00\x00\x00\xc1\xc1\xc1\xc1\xc1", False, ProtocolError),
        (b"\x81\x02\x00\x00\x00\xff\xff", False, ToonDBError),
        (b"\x80", True, ConnectionError),
        (b"", True, ConnectionError),
        (None, True, ConnectionError),
        (None, False, OperationTimeoutError),
        (b"\x87\xff\xff\xff\xff", False, OperationTimeoutError),
    ],
)
def test_something_else_listens(
    connect: Connect, tmp_db: Path, strangers: list[Stranger], answer: bytes | None, close: bool, expected: Any
) -> None:
    path = tmp_db.parent / "x.sock"
    strangers.append(Stranger(path, answer, close=close))
    with pytest.raises(expected):
        connect(path, timeout=0.2)


def test_a_full_queue_of_connections_is_waited_for(connect: Connect, server: Daemon, tmp_db: Path) -> None:
    path = tmp_db.parent / "x.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        first = socket.socket(socket.AF_UNIX)
        first.connect(str(path))
        with pytest.raises(OperationTimeoutError):
            connect(path, timeout=0.2)
        result: list[Any] = []
        thread = threading.Thread(target=lambda: result.extend((listener.accept()[0], listener.accept()[0])))
        thread.start()
        with pytest.raises(OperationTimeoutError):
            connect(path, timeout=0.5)  # connected, and silent
        thread.join()
        for item in (first, *result):
            item.close()


def test_over_max_clients(connect: Connect, tmp_db: Path) -> None:
    with Daemon(tmp_db, "--max-clients", "2") as daemon:
        first = connect(daemon.socket, reconnect_timeout=0.05)
        second = connect(daemon.socket)
        with pytest.raises(TooManyClientsError) as caught:
            connect(daemon.socket)
        assert "max-clients" in str(caught.value)
        transaction = first.begin_transaction()
        with pytest.raises(TooManyClientsError):
            first.get("a")
        transaction.abort()
        second.close()
        assert first.get("a") is None


def test_another_uid_is_refused(connect: Connect, tmp_db: Path) -> None:
    with Daemon(tmp_db, "--allow-uid", str(os.geteuid() + 1)) as daemon:
        with pytest.raises(PeerNotAllowedError):
            connect(daemon.socket)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_permission(connect: Connect, tmp_db: Path) -> None:
    tmp_db.parent.chmod(0o755)
    with Daemon(tmp_db, "--socket", str(tmp_db.parent / "x.sock")) as daemon:

        def child() -> str:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            try:
                IpcClient.connect(daemon.socket)
            except ConnectionError as error:
                return str(error)
            return "connected"

        assert in_child(child).startswith("uid 65534 may not connect")
