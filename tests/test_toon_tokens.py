"""The counts of tokens in ``benchmarks/tokens.py``: every format holds the same records. No tokenizer is needed."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from benchmarks.tokens import FORMATS, SHAPES, format_results, main, measure, spread, texts_of
from toondb.toon import from_toon

FLAT: list[dict[str, Any]] = [{"id": 1, "name": 'a "b", c'}, {"id": 2, "name": "x\ny", "tag": "é"}]


def test_spread() -> None:
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread(range(3), 10) == [0, 1, 2]
    assert spread([], 10) == []


def test_every_format_holds_the_same_records() -> None:
    texts = texts_of("t", FLAT, flat=True)
    assert set(texts) == set(FORMATS)
    assert json.loads(texts["JSON"]) == json.loads(texts["JSON indented"]) == {"t": FLAT}
    assert from_toon(texts["classic TOON"]) == ("t", ["id", "name", "tag"], FLAT)
    assert from_toon(texts["spec TOON"], dialect="spec") == ("t", ["id", "name", "tag"], FLAT)
    rows = list(csv.DictReader(io.StringIO(texts["CSV"])))
    assert rows == [{"id": "1", "name": 'a "b", c', "tag": ""}, {"id": "2", "name": "x\ny", "tag": "é"}]


def test_nested_records_have_no_csv() -> None:
    result = measure("nested", "t", [{"a": {"b": [1]}}], len, flat=False)
    assert set(result.tokens) == set(FORMATS) - {"CSV"}
    assert result.tokens["JSON"] == len('{"t":[{"a":{"b":[1]}}]}')
    assert result.change("classic TOON") == result.tokens["classic TOON"] / result.tokens["JSON"] - 1


def test_the_table_of_results() -> None:
    flat = measure("flat", "t", [{"a": 1}] * 1000, len, flat=True)
    nested = measure("nested", "t", [{"a": {}}], len, flat=False)
    lines = format_results([flat, nested]).splitlines()
    assert lines[0] == "| records | JSON | JSON indented | CSV | classic TOON | spec TOON |"
    assert lines[2].startswith("| flat, 1,000 | 8,007 | ")
    assert "| 2,002 (-75%) |" in lines[2]
    assert lines[3].startswith("| nested, 1 | 16 | ")
    assert "|  |" in lines[3]
    assert {line.count("|") for line in lines} == {7}


@pytest.mark.parametrize("name", ["long text", "sparse"])
def test_the_standard_library_is_enough_for_a_thousand_records(name: str) -> None:
    shape = SHAPES[name]
    records = spread(list(shape.records()), 1000)
    assert len(records) == 1000
    text = texts_of(shape.table, records, flat=shape.flat)["spec TOON"]
    assert from_toon(text, dialect="spec")[2] == records


@pytest.mark.parametrize("size", ["0", "1001", "-1"])
def test_wrong_sizes(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--sizes", size])
    assert "--sizes are from 1 to 1000" in capsys.readouterr().err
