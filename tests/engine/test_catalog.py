"""The catalog: schemas of tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from toondb.engine.catalog import CreateTable, check_schema, decode_schema, schema_from_record, table_key
from toondb.engine.engine import Engine
from toondb.engine.environment import Space
from toondb_protocol.errors import CorruptionError, TableExistsError, ValidationError

COLUMNS = [("id", 0, False), ("name", 3, 1)]


def test_a_schema_comes_back_as_it_was() -> None:
    schema = check_schema("täble", COLUMNS)
    assert decode_schema("täble", schema.encode()) == schema
    assert [(c.name, int(c.type), c.nullable) for c in schema.columns] == [("id", 0, False), ("name", 3, True)]
    assert schema_from_record("x", None) is None


@pytest.mark.parametrize(
    ("name", "columns", "text"),
    [
        ("", COLUMNS, "empty"),
        ("a/b", COLUMNS, "slash"),
        ("x" * 600, COLUMNS, "too long"),
        ("\ud800", COLUMNS, "Unicode"),
        ("t", [], "0 columns"),
        ("t", [(f"c{n}", 0, False) for n in range(2001)], "2001 columns"),
        ("t", [("a", 0, False), ("a", 0, False)], "used twice"),
        ("t", [("", 0, False)], "empty"),
        ("t", [("\udfff", 0, False)], "Unicode"),
        ("t", [("a", 6, False)], "known: 0 int64"),
    ],
)
def test_what_is_refused(name: str, columns: list[tuple[str, int, bool]], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        check_schema(name, columns)


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x01", b"\x80", b"\x81\xa7columns\x91\x01"])
def test_a_damaged_schema_is_corruption(value: bytes) -> None:
    with pytest.raises(CorruptionError, match="'t'"):
        decode_schema("t", value)


def test_a_table_is_created_once(tmp_path: Path) -> None:
    schema = check_schema("t", COLUMNS)
    with Engine(tmp_path / "db") as engine:
        results = engine.write([CreateTable(schema) for _ in range(2)])
        assert results[0] == 1
        assert isinstance(results[1], TableExistsError)
        assert engine.stats()["bytes_written"] == len(table_key("t")) + len(schema.encode())
        txn = engine.begin()
        txn.put(table_key("t"), b"other", Space.CATALOG)
        engine.abort(txn)
    with Engine(tmp_path / "db") as engine:
        raw = engine.snapshot().record(Space.CATALOG, table_key("t"))
        assert schema_from_record("t", raw) == schema
        assert engine.stats()["keys_count"] == 0
