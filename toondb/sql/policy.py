"""What SQL may do: the authorizer and the limits of a connection.

SQL comes from programs, and through the daemon from any client, so it is never trusted: there are no other files, no
extensions, no changes of how the database works. Each refusal names what was refused.
"""

from __future__ import annotations

from collections.abc import Callable

import apsw

__all__ = [
    "OWN_SAVEPOINT",
    "READ_PRAGMAS",
    "SET_PRAGMAS",
    "VACUUM_REFUSED",
    "VIRTUAL_TABLES",
    "Policy",
    "apply_limits",
]

READ_PRAGMAS = frozenset(
    {
        "application_id",
        "collation_list",
        "compile_options",
        "data_version",
        "database_list",
        "encoding",
        "foreign_key_check",
        "foreign_key_list",
        "foreign_keys",
        "freelist_count",
        "function_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "module_list",
        "page_count",
        "page_size",
        "pragma_list",
        "quick_check",
        "schema_version",
        "table_info",
        "table_list",
        "table_xinfo",
        "user_version",
    }
)
"""Pragmas that may be asked."""

VACUUM_REFUSED = "VACUUM is not a statement here: `toondb-server compact` makes the file of a database smaller."

OWN_SAVEPOINT = "toondb_statement"
"""The savepoint around several statements that are one to the caller."""

# None that the connection would keep: the next statement on it is perhaps of somebody else.
SET_PRAGMAS = frozenset({"application_id", "user_version", "optimize", "defer_foreign_keys"})
"""Pragmas that may be set, or run."""

_ARGUMENT_PRAGMAS = frozenset(
    {
        "foreign_key_check",
        "foreign_key_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "quick_check",
        "table_info",
        "table_list",
        "table_xinfo",
    }
)
_FORBIDDEN_FUNCTIONS = frozenset(
    {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "lsdir", "fsdir"}
)
_CHANGES = frozenset({apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE})
_QUICK_ACTIONS = frozenset({apsw.SQLITE_SELECT, apsw.SQLITE_READ})
_QUICK_FUNCTIONS = frozenset(
    {
        "abs",
        "avg",
        "coalesce",
        "count",
        "ifnull",
        "iif",
        "length",
        "lower",
        "max",
        "min",
        "nullif",
        "round",
        "sum",
        "total",
        "typeof",
        "upper",
    }
)
VIRTUAL_TABLES = frozenset({"fts5", "fts5vocab", "fts4", "fts3", "rtree", "rtree_i32", "geopoly"})
"""Kinds of virtual tables that may be made."""

_LIMITS = {
    apsw.SQLITE_LIMIT_ATTACHED: 0,
    apsw.SQLITE_LIMIT_SQL_LENGTH: 4 * 1024 * 1024,
    apsw.SQLITE_LIMIT_LENGTH: 256 * 1024 * 1024,
    apsw.SQLITE_LIMIT_COLUMN: 2000,
    apsw.SQLITE_LIMIT_EXPR_DEPTH: 500,
    apsw.SQLITE_LIMIT_COMPOUND_SELECT: 500,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    apsw.SQLITE_LIMIT_TRIGGER_DEPTH: 100,
    apsw.SQLITE_LIMIT_WORKER_THREADS: 0,
}


def apply_limits(connection: apsw.Connection) -> None:
    """Set the limits of a connection."""
    for limit, value in _LIMITS.items():
        connection.limit(limit, value)


class Policy:
    """The authorizer of one connection; SQLite asks it while it prepares a statement.

    Args:
        only_quick: Refuse what :attr:`quick` says.

    Attributes:
        refused: What was refused last, with what to do instead; empty when nothing was.
        internal: The statement is ours.
        in_transaction: Savepoints make sense.
        savepoint: The statement is about a savepoint.
        savepoints: The open savepoints of a script, which may use no others; None = any.
        repeated: The statement is run many times.
        writes: The statement writes, though SQLite takes it for one that reads.
        row_id: The statement asks for the row id of the last insert.
        changes: The statement, or what it sets off, updates or deletes rows.
        inserts: The statement inserts rows itself, not only by triggers.
        triggers: The statement fires triggers.
        looks: How often it was asked; a view has as many parts as it likes, however short the statement is.
        quick: The statement does nothing that takes long in one step of SQLite's virtual machine.
    """

    def __init__(self, *, only_quick: bool = False) -> None:
        self._only_quick = only_quick
        self.quick = True
        self.looks = 0
        self.refused = ""
        self.internal = False
        self.in_transaction = False
        self.savepoint = False
        self.triggers = False
        self.savepoints: list[str] | None = None
        self.repeated = self.writes = self.row_id = self.inserts = self.changes = False
        self._new_trigger = ""

    def begin(self, *, in_transaction: bool) -> None:
        """Another statement is prepared from now on."""
        self.refused = ""
        self.in_transaction = in_transaction
        self.savepoint = self.triggers = False
        self.repeated = self.writes = self.row_id = self.inserts = self.changes = False
        self._new_trigger = ""
        self.quick = True
        self.looks = 0

    def __call__(
        self, action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
    ) -> int:
        if self.internal:
            return apsw.SQLITE_OK
        self.looks += 1
        if trigger is not None:
            self.triggers = True
        if action not in _QUICK_ACTIONS and not (action == apsw.SQLITE_FUNCTION and second in _QUICK_FUNCTIONS):
            self.quick = False
            if self._only_quick:
                return apsw.SQLITE_DENY
        if action == apsw.SQLITE_INSERT and trigger is None:
            self.inserts = True
        elif action in _CHANGES:
            self.changes = True
        check = _CHECKS.get(action)
        # CREATE TABLE temp.t is no CREATE TEMP TABLE to SQLite, and makes the same. That of a trigger is seen only by
        # where it is noted.
        if action == apsw.SQLITE_CREATE_TRIGGER:
            self._new_trigger = first or ""
        if database == "temp" and action in _CREATES:
            check = _temporary
        elif self._new_trigger and first == "sqlite_temp_master" and action == apsw.SQLITE_INSERT:
            first, check = self._new_trigger, _temporary
        if check is None:
            return apsw.SQLITE_OK
        why = check(self, first or "", second)
        if not why:
            return apsw.SQLITE_OK
        self.refused = why
        return apsw.SQLITE_DENY


def _transaction(policy: Policy, operation: str, _: str | None) -> str:
    return (
        f"{operation} is not a statement here: use transaction() of the database or client, with commit() and abort()."
    )


def _savepoint(policy: Policy, operation: str, name: str | None) -> str:
    policy.savepoint = True
    if (name or "").lower() == OWN_SAVEPOINT:
        return f"a savepoint cannot be called {OWN_SAVEPOINT}."
    if not policy.in_transaction:
        return "a savepoint needs a transaction around it: use transaction() of the database or client."
    if policy.repeated:
        return "a savepoint is no statement for executemany(): use execute() or execute_script()."
    if policy.savepoints is None:
        return ""
    return _savepoint_of_script(policy.savepoints, operation, name or "")


def _savepoint_of_script(opened: list[str], operation: str, name: str) -> str:
    folded = name.lower()
    if operation == "BEGIN":
        opened.append(folded)
        return ""
    if folded not in opened:
        return (
            f"the savepoint {name!r} is not of this script, which is undone as a whole when it fails: use {operation} "
            "with execute()."
        )
    at = len(opened) - 1 - opened[::-1].index(folded)
    del opened[at if operation == "RELEASE" else at + 1 :]
    return ""


def _attach(policy: Policy, name: str, _: str | None) -> str:
    if not name:
        return VACUUM_REFUSED  # how SQLite does it
    return "ATTACH and VACUUM INTO are forbidden: SQL has no access to files."


def _detach(policy: Policy, name: str, _: str | None) -> str:
    return "DETACH is forbidden: there are no attached databases."


def _temporary(policy: Policy, name: str, _: str | None) -> str:
    return (
        f"the temporary table, view, index or trigger {name!r} is forbidden: statements share connections, which would "
        "keep it. Use a table, or WITH (a common table expression)."
    )


def _function(policy: Policy, _: str, name: str | None) -> str:
    lower = (name or "").lower()
    if lower == "last_insert_rowid":
        policy.row_id = True
    elif lower == "optimize":
        policy.writes = True  # of FTS3: it merges what it has in its tables
    if lower in _FORBIDDEN_FUNCTIONS:
        return f"the function {name}() is forbidden: SQL has no access to files or extensions."
    return ""


def _pragma(policy: Policy, name: str, value: str | None) -> str:
    lower = name.lower()
    if lower == "optimize":
        policy.writes = True  # it runs ANALYZE
    if value is None and (lower in READ_PRAGMAS or lower == "optimize"):
        return ""
    if value is not None and lower in SET_PRAGMAS | _ARGUMENT_PRAGMAS:
        return ""
    if lower == "foreign_keys":
        return "PRAGMA foreign_keys cannot be set: use the config foreign_keys, or the daemon with --foreign-keys."
    return f"PRAGMA {name} is forbidden; known here are: {', '.join(sorted(READ_PRAGMAS | SET_PRAGMAS))}."


def _virtual_table(policy: Policy, table: str, module: str | None) -> str:
    if (module or "").lower() in VIRTUAL_TABLES:
        return ""
    return f"virtual tables of the kind {module!r} are forbidden; known here are: {', '.join(sorted(VIRTUAL_TABLES))}."


_CREATES = frozenset(
    {
        apsw.SQLITE_CREATE_INDEX,
        apsw.SQLITE_CREATE_TABLE,
        apsw.SQLITE_CREATE_TRIGGER,
        apsw.SQLITE_CREATE_VIEW,
        apsw.SQLITE_CREATE_VTABLE,
    }
)
_CHECKS: dict[int, Callable[[Policy, str, str | None], str]] = {
    apsw.SQLITE_TRANSACTION: _transaction,
    apsw.SQLITE_SAVEPOINT: _savepoint,
    apsw.SQLITE_ATTACH: _attach,
    apsw.SQLITE_DETACH: _detach,
    apsw.SQLITE_FUNCTION: _function,
    apsw.SQLITE_PRAGMA: _pragma,
    apsw.SQLITE_CREATE_VTABLE: _virtual_table,
    **dict.fromkeys(
        (
            apsw.SQLITE_CREATE_TEMP_INDEX,
            apsw.SQLITE_CREATE_TEMP_TABLE,
            apsw.SQLITE_CREATE_TEMP_TRIGGER,
            apsw.SQLITE_CREATE_TEMP_VIEW,
        ),
        _temporary,
    ),
}
