"""Damage in the pages of SQL is found like damage in keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from toondb import Database
from toondb.engine import maintenance
from toondb.errors import CorruptionError

TEXT = b"a text that is in the tables alone"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "db"
    with Database.open(folder) as db:
        db.put("key", b"value")
        db.execute("CREATE TABLE texts (id INTEGER PRIMARY KEY, body TEXT)")
        db.executemany("INSERT INTO texts (body) VALUES (?)", [(TEXT.decode(),) for _ in range(1000)])
    return folder


def test_pages_count_as_records(folder: Path) -> None:
    with Database.open(folder) as db:
        pages = db.execute("PRAGMA page_count")[0]["page_count"]
    report = maintenance.check(folder)
    assert report.ok
    assert report.records == 1 + pages


def test_a_flipped_byte_of_a_row_is_found(folder: Path, tmp_path: Path) -> None:
    file = folder / "data.mdb"
    data = bytearray(file.read_bytes())
    data[data.index(TEXT) + 3] ^= 1
    file.write_bytes(data)
    report = maintenance.check(folder)
    assert [(damage.kind, damage.database) for damage in report.damages] == [("record", "sql")]
    with pytest.raises(CorruptionError):
        maintenance.backup(folder, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
