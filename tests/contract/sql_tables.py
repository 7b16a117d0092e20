"""What tests of SQL in every mode share."""

from __future__ import annotations

from typing import Any

__all__ = ["COUNT_UP", "drop_all", "names", "one"]

COUNT_UP = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"

_OF_USERS = "SELECT name, type FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"


def drop_all(client: Any) -> None:
    """Drop every table and view."""
    found = client.execute_sql(f"{_OF_USERS} AND type IN ('table', 'view', 'virtual')").tuples
    for name, kind in sorted(found, key=lambda pair: pair[1] != "view"):
        client.execute_sql(f'DROP {"VIEW" if kind == "view" else "TABLE"} IF EXISTS "{name}"')


def names(client: Any) -> list[str]:
    """The tables and views that there are."""
    return [name for name, _ in client.execute_sql(f"{_OF_USERS} ORDER BY name").tuples]


def one(store: Any, sql: str, params: Any = None) -> Any:
    """The one value of a statement."""
    ((value,),) = store.execute_sql(sql, params).tuples
    return value
