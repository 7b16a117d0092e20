"""Opening a folder: every mistake is one clear error, and errors of LMDB are translated."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import lmdb
import msgpack
import pytest

from tests.support.daemon import SECONDS, child_environ
from toondb.engine.engine import Engine
from toondb.engine.environment import DATA_FILE, Environment, prepare_folder, storage_error
from toondb.engine.options import EngineOptions, SyncMode
from toondb_protocol.errors import (
    ConfigurationError,
    CorruptionError,
    DatabaseClosedError,
    DatabaseError,
    DatabaseNotFoundError,
    InvalidKeyError,
    StorageError,
    StorageFullError,
    ToonDBError,
    TransactionTooLargeError,
)


class TestOptions:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"map_size": 0},
            {"map_size": 1 << 47},
            {"max_transaction_bytes": 0},
            {"transaction_idle_seconds": -1.0},
            {"transaction_age_seconds": float("nan")},
            {"transaction_age_seconds": float("inf")},
            {"max_readers": 0},
            {"sync_mode": "fast"},
        ],
    )
    def test_what_is_out_of_range_is_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(wrong)).partition("_")[2].partition("_")[0] + "|age"):
            EngineOptions(**wrong)  # type: ignore[arg-type]

    def test_a_mode_given_as_text_is_that_mode(self, tmp_path: Path) -> None:
        options = EngineOptions(sync_mode="full")  # type: ignore[arg-type]
        assert options.sync_mode is SyncMode.FULL
        with Engine(tmp_path / "db", options) as engine:
            flags = engine.environment.lmdb.flags()
            assert flags["metasync"]
            assert flags["sync"]


class TestFolder:
    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "db").write_bytes(b"")
        with pytest.raises(ConfigurationError, match="is a file"):
            prepare_folder(tmp_path / "db", create=True)

    def test_a_missing_parent(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="does not exist") as caught:
            prepare_folder(tmp_path / "a" / "b", create=True)
        assert "mkdir -p" in caught.value.remediation

    def test_nothing_there(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "a"):
            with pytest.raises(DatabaseNotFoundError):
                prepare_folder(path, create=False)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, b"bytes"])
    def test_a_path_that_cannot_be(self, path: str) -> None:
        with pytest.raises(ConfigurationError):
            prepare_folder(path, create=True)

    def test_it_is_created_for_its_owner_alone(self, tmp_path: Path) -> None:
        with Engine(tmp_path / "db"):
            assert (tmp_path / "db").stat().st_mode & 0o777 == 0o700
            assert (tmp_path / "db" / DATA_FILE).stat().st_mode & 0o777 == 0o600


AS_NOBODY = """
import os, sys
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions
from toondb_protocol.errors import ToonDBError
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    Engine(sys.argv[1], EngineOptions(create_if_missing=sys.argv[2] == "create"))
except ToonDBError as error:
    print(type(error).__name__, error)
else:
    print("opened")
"""


class TestPermissions:
    """The child gives up root, when it has it, after it has imported what it needs."""

    def open(self, path: Path, how: str = "create") -> str:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", AS_NOBODY, str(path), how],
            env=child_environ(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert "Traceback" not in result.stderr, result.stderr
        return result.stdout

    @pytest.fixture
    def parent(self, tmp_db: Path) -> Path:
        tmp_db.parent.chmod(0o755)
        return tmp_db.parent

    def test_a_folder_that_is_read_only(self, parent: Path) -> None:
        (parent / "db").mkdir(mode=0o555)
        assert "ConfigurationError" in self.open(parent / "db")

    def test_a_parent_that_is_read_only(self, parent: Path) -> None:
        (parent / "in").mkdir(mode=0o555)
        assert "ConfigurationError" in self.open(parent / "in" / "db")

    def test_a_parent_that_may_not_be_searched(self, parent: Path) -> None:
        (parent / "in").mkdir()
        with Engine(parent / "in" / "db"):
            pass
        (parent / "in").chmod(0o000)
        try:
            for how in ("create", "open"):
                assert "ConfigurationError" in self.open(parent / "in" / "db", how)
        finally:
            (parent / "in").chmod(0o700)

    @pytest.mark.parametrize("name", ["toondb.lock", "data.mdb", "lock.mdb"])
    def test_a_file_of_another_owner(self, parent: Path, name: str) -> None:
        db = parent / "db"
        with Engine(db):
            pass
        db.chmod(0o777)
        for file in db.iterdir():
            file.chmod(0o666)
        (db / name).chmod(0o000)
        for how in ("create", "open"):
            text = self.open(db, how)
            assert "ConfigurationError" in text
            assert "Permission denied" in text


class TestContents:
    @pytest.mark.parametrize("content", [b"hello" * 5000, b"short", b"\0" * 8192])
    def test_not_lmdb(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / DATA_FILE).write_bytes(content)
        with pytest.raises(CorruptionError):
            Engine(tmp_path)
        assert (tmp_path / DATA_FILE).read_bytes() == content

    def test_a_file_of_another_program_is_left_alone(self, tmp_path: Path) -> None:
        with lmdb.open(str(tmp_path), max_dbs=4) as other, other.begin(write=True) as txn:
            txn.put(b"theirs", b"1")
        before = (tmp_path / DATA_FILE).read_bytes()
        with pytest.raises(ConfigurationError, match="another program"):
            Engine(tmp_path)
        assert (tmp_path / DATA_FILE).read_bytes() == before

    @pytest.mark.parametrize(
        ("record", "error", "text"),
        [
            (msgpack.packb({"version": 4}), DatabaseError, "format 4"),
            (msgpack.packb({}), CorruptionError, "format record"),
            (b"\xc1", CorruptionError, "format record"),
            (None, CorruptionError, "format record"),
        ],
    )
    def test_another_format(self, tmp_path: Path, record: bytes | None, error: type[ToonDBError], text: str) -> None:
        with Engine(tmp_path / "db") as engine:
            meta = engine.environment.meta
            with engine.environment.lmdb.begin(write=True) as txn:
                if record is None:
                    txn.delete(b"format", db=meta)
                else:
                    txn.put(b"format", record, db=meta)
        with pytest.raises(error, match=text):
            Engine(tmp_path / "db")

    def test_an_empty_file_becomes_a_store(self, tmp_path: Path) -> None:
        (tmp_path / DATA_FILE).touch()
        with Engine(tmp_path) as engine:
            assert engine.put(b"a", b"1") == 1

    def test_a_failed_open_releases_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / DATA_FILE).write_bytes(b"hello" * 5000)
        with pytest.raises(CorruptionError):
            Engine(tmp_path)
        (tmp_path / DATA_FILE).unlink()
        with Engine(tmp_path):
            pass

    def test_the_same_folder_twice_in_one_process(self, tmp_path: Path) -> None:
        environment = Environment(tmp_path, EngineOptions())
        with pytest.raises(ConfigurationError, match="open in this process"):
            Environment(tmp_path, EngineOptions())
        environment.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lmdb.MapFullError("x"), StorageFullError),
        (lmdb.DiskError("mdb_txn_commit: " + os.strerror(errno.ENOSPC)), StorageFullError),
        (lmdb.Error("mdb_txn_commit: " + os.strerror(errno.EDQUOT)), StorageFullError),
        (lmdb.Error("mdb_txn_commit: " + os.strerror(errno.EFBIG)), StorageFullError),
        (lmdb.Error("mdb_txn_commit: " + os.strerror(errno.EIO)), StorageError),
        (lmdb.PanicError("x"), StorageError),
        (lmdb.CorruptedError("x"), CorruptionError),
        (lmdb.PageNotFoundError("x"), CorruptionError),
        (lmdb.ReadersFullError("x"), DatabaseError),
        (lmdb.MemoryError(os.strerror(errno.ENOMEM)), DatabaseError),
        (lmdb.BadValsizeError("x"), InvalidKeyError),
        (lmdb.TxnFullError("x"), TransactionTooLargeError),
        (lmdb.Error("Attempt to operate on closed/deleted/dropped object."), DatabaseClosedError),
    ],
)
def test_errors_of_lmdb(error: lmdb.Error, expected: type[ToonDBError]) -> None:
    translated = storage_error(error, "testing")
    assert type(translated) is expected
    assert "while testing" in translated.message


def test_too_many_snapshots(tmp_path: Path) -> None:
    with Engine(tmp_path / "db", EngineOptions(max_readers=4)) as engine:
        held = []
        with pytest.raises(DatabaseError, match="too many snapshots"):
            for _ in range(10):
                held.append(engine.snapshot())  # noqa: PERF401 - what was taken before the error counts
        assert engine.put(b"a", b"1") == 1  # writing does not need a reader slot
        for snapshot in held:
            snapshot.close()
        assert engine.get(b"a") == b"1"
