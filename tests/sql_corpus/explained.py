"""Why a record is not run, and where a result other than the script's is right."""

from __future__ import annotations

from typing import NamedTuple

from .script import Condition, Record

__all__ = ["DIFFERENCES", "ENGINE", "Difference", "difference_of", "skip_reason"]

ENGINE = "sqlite"
"""Records for this engine are for ToonDB, whose SQL is SQLite's."""

_NAMES = {"mysql": "MySQL", "mssql": "SQL Server", "oracle": "Oracle", "postgresql": "PostgreSQL", "sqlite": "SQLite"}


class Difference(NamedTuple):
    """Records whose result is another one, on purpose; one that gives the script's result is a failure.

    Attributes:
        file: The script.
        lines: Where the records begin.
        everywhere: Plain SQLite differs in the same way; otherwise only ToonDB does.
        reason: Why.
    """

    file: str
    lines: frozenset[int]
    everywhere: bool
    reason: str


DIFFERENCES = (
    Difference(
        "evidence/slt_lang_aggfunc.test",
        frozenset({478, 482, 489, 493}),
        True,
        "the script records no result; plain SQLite of the same version does the same as ToonDB",
    ),
    Difference(
        "evidence/slt_lang_createview.test",
        frozenset({48, 52, 115, 119}),
        False,
        "temporary views are refused: statements share connections, which would keep them",
    ),
)


def skip_reason(conditions: tuple[Condition, ...]) -> str:
    """Why a record is not for this engine; empty when it is."""
    for condition in conditions:
        if condition.skips(ENGINE):
            name = _NAMES.get(condition.engine, condition.engine)
            return f"{condition}: {'only for' if condition.word == 'onlyif' else 'not for'} {name}"
    return ""


def difference_of(file: str, record: Record, *, plain_sqlite: bool) -> str:
    """Why the result of a record is another one than the script's; empty when it must be the script's."""
    for difference in DIFFERENCES:
        if difference.file == file and record.line in difference.lines and (difference.everywhere or not plain_sqlite):
            return difference.reason
    return ""
