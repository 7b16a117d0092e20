"""A file system that is really full, and one that limits the size of files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import SECONDS, Daemon, child_environ
from toondb.engine.engine import Engine
from toondb.engine.file_check import check_file
from toondb_client import IpcClient
from toondb_protocol.errors import StorageFullError

MEGABYTE = 1 << 20


@pytest.fixture
def small_disk(tmp_db: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_db.parent / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_never_taken_for_a_failed_one(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(MEGABYTE))
    db = small_disk / "db"
    kept: dict[bytes, bytes] = {}
    with Daemon(db) as daemon, IpcClient.connect(daemon.socket) as client:
        # Pages of many sizes, so that the disk fills in the middle of a write, which LMDB calls an I/O error.
        with pytest.raises(StorageFullError) as caught:
            while True:
                value = bytes([len(kept)]) * (9_000 + 1_001 * len(kept))
                client.put(b"%d" % len(kept), value)
                kept[b"%d" % len(kept)] = value
        assert "disk is full" in caught.value.message
        for _ in range(3):
            with pytest.raises(StorageFullError):
                client.put("large", bytes(2 * MEGABYTE))
            with pytest.raises(StorageFullError):
                with client.transaction() as txn:
                    for n in range(40):
                        txn.put(f"txn{n}", bytes(50_000))
        assert dict(client.scan("")) == kept
        assert client.stats()["storage_failed"] is None
        ballast.unlink()
        client.put("large", bytes(MEGABYTE // 2))
    # A restart on a full disk serves what is there.
    with Daemon(db) as daemon, IpcClient.connect(daemon.socket) as client:
        ballast.write_bytes(b"")
        with pytest.raises(OSError, match="No space"), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    with Daemon(db) as daemon, IpcClient.connect(daemon.socket) as client:
        assert client.get("large") == bytes(MEGABYTE // 2)
        assert all(client.get(key) == value for key, value in kept.items())
        with pytest.raises(StorageFullError):
            client.put("large", bytes(MEGABYTE))
        client.delete("0")
        assert client.get("0") is None
    assert check_file(db / "data.mdb").damages == []


LIMITED = """
import resource, sys
from toondb.engine.engine import Engine
from toondb_protocol.errors import StorageFullError

resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
with Engine(sys.argv[1]) as engine:
    count = 0
    try:
        while True:
            engine.put(b"%d" % count, bytes(10_000))
            count += 1
    except StorageFullError:
        pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    engine.put(b"after", bytes(100_000))
    print(count)
"""


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIMITED, str(tmp_path / "db")],
        env=child_environ(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    with Engine(tmp_path / "db") as engine:
        assert engine.stats()["keys_count"] == int(result.stdout) + 1
        assert engine.get(b"after") == bytes(100_000)
