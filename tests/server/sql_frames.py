"""SQL requests as raw frames, and their replies as rows."""

from __future__ import annotations

from typing import Any

import msgpack

from tests.server.raw import QUERY, Answer, frame

__all__ = ["COUNT_UP", "ENDLESS", "many", "rows", "sql"]

COUNT_UP = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
ENDLESS = f"SELECT 1 WHERE 0 = ({COUNT_UP} SELECT count(*) FROM n)"
"""Never ends by itself, and reads nothing; a SELECT, so it needs a thread for reading."""


def sql(text: str, *, txn: int = 0, **body: Any) -> bytes:
    """A QUERY with SQL."""
    return frame(QUERY, msgpack.packb({"sql": text, **body}), txn=txn)


def many(text: str, values: list[Any], *, txn: int = 0, runs: int | None = None, **body: Any) -> bytes:
    """A QUERY that runs a statement for each two values."""
    return sql(text, txn=txn, params=values, runs=len(values) // 2 if runs is None else runs, **body)


def rows(answer: Answer) -> list[tuple[Any, ...]]:
    """The rows of a statement, without the names of its columns."""
    count: int = answer.end["rows"]
    names, flat = divmod(len(answer.rows), count + 1)
    assert not flat, "rows that do not fit their columns"
    items = iter(answer.rows[names:])
    return list(zip(*[items] * names, strict=True)) if count else []
