"""``toondb.connect``: one entry for every mode."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

import toondb
from tests.support.daemon import Daemon
from toondb import Database, IpcClient
from toondb.connecting import MODES
from toondb_protocol.errors import (
    ConfigurationError,
    ConnectionError,
    DatabaseLockedError,
    DatabaseNotFoundError,
    UnsupportedFeatureError,
)


def test_a_folder_is_opened_here(tmp_db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_db.parent)
    monkeypatch.setenv("HOME", str(tmp_db.parent))
    targets: tuple[Any, ...] = (tmp_db, str(tmp_db), f"{tmp_db}/", "db", "./db", "~/db", Path("~/db"))
    for n, target in enumerate(targets):
        with toondb.connect(target) as store:
            assert isinstance(store, Database)
            assert not store.is_concurrent
            assert store.increment("n") == n + 1
    tmp_db.with_name("a.sock").mkdir()
    with toondb.connect("a.sock") as store:  # a folder, whatever its name is
        assert isinstance(store, Database)
    (tmp_db.parent / "localhost:50051").mkdir()
    with toondb.connect("localhost:50051") as store:
        assert isinstance(store, Database)


def test_a_socket_is_a_daemon(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    link = daemon.db.parent / "link"
    link.symlink_to(daemon.socket)
    odd = daemon.db.parent / "no-suffix"
    os.link(daemon.socket, odd)
    monkeypatch.chdir(daemon.db)
    monkeypatch.setenv("HOME", str(daemon.db))
    targets: tuple[Any, ...] = (
        daemon.socket, str(daemon.socket), "toondb.sock", "./toondb.sock", "~/toondb.sock", link, odd,
        f"toondb+unix://{daemon.socket}",
    )  # fmt: skip
    for n, target in enumerate(targets):
        with toondb.connect(target) as store:
            assert isinstance(store, IpcClient)
            assert store.increment("n") == n + 1


def test_the_mode_may_be_told(daemon: Daemon, tmp_db: Path) -> None:
    with toondb.connect(tmp_db, "ipc") as store, toondb.connect(tmp_db, mode="concurrent") as reader:
        assert isinstance(store, IpcClient)
        assert isinstance(reader, Database)
        assert reader.read_only
        store.put("k", b"v")
        assert reader.get("k") == b"v"
    with toondb.connect(daemon.socket, "ipc", {"timeout": 5, "max_connections": 2, "direct_reads": True}) as store:
        assert isinstance(store, IpcClient)
        assert store.get("k") == b"v"
    own = tmp_db.with_name("own")
    with toondb.connect(own, mode="concurrent") as store:
        assert isinstance(store, Database)
        assert store.is_concurrent
        assert not store.read_only
    with toondb.connect(tmp_db.with_name("host:1"), mode="embedded", config={"sync_mode": "full"}) as store:
        assert isinstance(store, Database)
        assert store.stats()["sync_mode"] == "full"


def test_a_served_folder(daemon: Daemon, tmp_db: Path) -> None:
    with pytest.raises(DatabaseLockedError) as caught:
        toondb.connect(tmp_db)
    assert str(daemon.socket) in caught.value.remediation
    assert caught.value.details["socket"] == str(daemon.socket)
    assert caught.value.details["pid"] == daemon.pid


@pytest.mark.parametrize("target", ["localhost:50051", "db.example.org:443", "127.0.0.1:1", "[::1]:50051", "a-b:65535"])
def test_a_host_and_port(target: str, tmp_db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_db.mkdir()
    monkeypatch.chdir(tmp_db)
    for mode in (None, "grpc"):
        with pytest.raises(UnsupportedFeatureError, match="gRPC") as caught:
            toondb.connect(target, mode)
        assert target in caught.value.message
    assert list(tmp_db.iterdir()) == []


def test_nobody_listens(tmp_db: Path) -> None:
    tmp_db.mkdir()
    with pytest.raises(ConnectionError):
        toondb.connect(tmp_db / "toondb.sock")
    with pytest.raises(ConnectionError):
        toondb.connect(tmp_db, "ipc")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_db / "left"))
    with pytest.raises(ConnectionError):
        toondb.connect(tmp_db / "left")
    (tmp_db / "file").write_text("text")
    with pytest.raises(ConnectionError):
        toondb.connect(tmp_db / "file")
    assert sorted(os.listdir(tmp_db)) == ["file", "left"]


def test_mistakes(tmp_db: Path, daemon: Daemon) -> None:
    wrong: Any
    for wrong in (None, 5, b"path", ["a"]):
        for mode in (None, *MODES):
            with pytest.raises(ConfigurationError, match="text or a path"):
                toondb.connect(wrong, mode)
    for wrong in ("", "a\0b"):
        for mode in (None, "embedded", "concurrent", "ipc"):
            with pytest.raises(ConfigurationError):
                toondb.connect(wrong, mode)
    for wrong in ("http://localhost", "toondb://x", "toondb+unix://host/x"):
        with pytest.raises(ConfigurationError):
            toondb.connect(wrong)
    for wrong in ("Embedded", "", 5, ["ipc"], b"ipc"):
        with pytest.raises(ConfigurationError, match="known: embedded, concurrent, ipc, grpc"):
            toondb.connect(tmp_db, wrong)


def test_config_of_the_wrong_kind(tmp_db: Path, daemon: Daemon) -> None:
    own = tmp_db.with_name("own")
    wrong: Any
    config: Any
    for config, told in (
        ({"sync_mode": "often"}, "full, normal, off"),
        ({"timeout": 5}, "create_if_missing, sync_mode, wal_enabled, memtable_size_bytes"),
        ("full", "mapping"),
    ):
        wrong = config
        for mode in (None, "embedded", "concurrent"):
            with pytest.raises(ConfigurationError) as caught:
                toondb.connect(own, mode, wrong)
            assert told in str(caught.value)
    assert not own.exists()
    with pytest.raises(DatabaseNotFoundError):
        toondb.connect(own, config={"create_if_missing": False})
    for config, told in (
        ({"sync_mode": "full"}, "timeout, max_connections, reconnect_timeout, retry_writes, direct_reads"),
        ({"timeout": 0}, "positive number of seconds"),
        ({"timeout": "5"}, "positive number of seconds"),
        ({"direct_reads": 1}, "True or False"),
        ({5: 1}, "unknown"),
        ("full", "mapping"),
    ):
        wrong = config
        for target in (daemon.socket, f"toondb+unix://{daemon.socket}"):
            with pytest.raises(ConfigurationError) as caught:
                toondb.connect(target, config=wrong)
            assert told in str(caught.value)
