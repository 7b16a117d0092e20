"""Fixtures: a database with a namespace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from toondb import Database
from toondb_protocol.collections import Namespace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture
def db(folder: Path) -> Iterator[Database]:
    with Database.open(folder) as opened:
        yield opened


@pytest.fixture
def ns(db: Database) -> Namespace:
    return db.create_namespace("ns")
