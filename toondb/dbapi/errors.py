"""The exceptions of PEP 249, each of which is the ToonDB error that caused it as well.

::

    Warning
    Error                   (also a ToonDBError)
    ├── InterfaceError
    └── DatabaseError
        ├── DataError
        ├── OperationalError
        ├── IntegrityError
        ├── InternalError
        ├── ProgrammingError
        └── NotSupportedError

What is raised is an instance of two classes: a broken constraint is caught by ``except dbapi.IntegrityError`` and by
``except toondb.SqlConstraintError``, and has the code, message, remediation and details of the latter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from toondb_protocol import errors as toon

__all__ = [
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Warning",
    "mapped",
    "translated",
]


class Warning(Exception):
    """An important warning. Never raised; PEP 249 wants it."""


class Error(toon.ToonDBError):
    """Base of the errors of this module.

    Attributes:
        code: The stable code of the ToonDB error.
        message: What went wrong.
        remediation: What the caller can do next.
        details: Machine-readable facts.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # The classes that are raised are made when first needed, so a pickle names the two that they are made of.
        kind, cause = _parts(type(self))
        return (_rebuilt, (kind, cause, self.args, self.__dict__))


class InterfaceError(Error):
    """An error of this interface rather than of the database."""


class DatabaseError(Error):
    """An error of the database."""


class DataError(DatabaseError):
    """A value cannot be processed: it is too large, or of the wrong kind for its place."""


class OperationalError(DatabaseError):
    """The database could not do it now: a conflict, a timeout, a lost connection, a full disk."""


class IntegrityError(DatabaseError):
    """A constraint forbids it."""


class InternalError(DatabaseError):
    """A defect of the database."""


class ProgrammingError(DatabaseError):
    """The statement, its parameters or the order of the calls is wrong."""


class NotSupportedError(DatabaseError):
    """It is not possible here."""


# The nearest class of an error's ancestry decides.
_KINDS: dict[type[toon.ToonDBError], type[Error]] = {
    toon.ToonDBError: DatabaseError,
    toon.ConnectionError: OperationalError,
    toon.OperationTimeoutError: OperationalError,
    toon.ProtocolError: InternalError,
    toon.FrameTooLargeError: DataError,
    toon.DatabaseNotFoundError: OperationalError,
    toon.DatabaseClosedError: ProgrammingError,
    toon.StorageError: OperationalError,
    toon.TableExistsError: ProgrammingError,
    toon.SqlError: ProgrammingError,
    toon.SqlConstraintError: IntegrityError,
    toon.SqlForbiddenError: NotSupportedError,
    toon.SqlInterruptedError: OperationalError,
    toon.UnsupportedFeatureError: NotSupportedError,
    toon.TransactionError: OperationalError,
    toon.ValidationError: ProgrammingError,
    toon.ValueTooLargeError: DataError,
    toon.LockError: OperationalError,
    toon.PluginError: OperationalError,
    toon.TriggerAbort: IntegrityError,
    toon.InternalError: InternalError,
}

# Result codes of SQLite (https://www.sqlite.org/rescode.html) that are not a mistake in the statement.
_SQLITE_KINDS: dict[object, type[Error]] = {
    2: InternalError,  # SQLITE_INTERNAL
    5: OperationalError,  # SQLITE_BUSY
    6: OperationalError,  # SQLITE_LOCKED
    7: OperationalError,  # SQLITE_NOMEM
    8: OperationalError,  # SQLITE_READONLY
    10: OperationalError,  # SQLITE_IOERR
    11: OperationalError,  # SQLITE_CORRUPT
    13: OperationalError,  # SQLITE_FULL
    18: DataError,  # SQLITE_TOOBIG
    20: IntegrityError,  # SQLITE_MISMATCH
}

_CONFLICT = "Call rollback() and run the transaction again; run_transaction() of the connection does both."
_EXPIRED = (
    "Call rollback() and run the transaction again, and keep transactions short; "
    "a connection that only reads needs none with autocommit=True."
)


def translated(error: toon.ToonDBError) -> Error:
    """The error of PEP 249 for one of ToonDB; one that is of both already is answered as it is."""
    if isinstance(error, Error):
        return error
    kind = next(_KINDS[base] for base in type(error).__mro__ if base in _KINDS)
    if type(error) is toon.SqlError:
        kind = _SQLITE_KINDS.get(error.details.get("sqlite_code"), kind)
    given = _rebuilt(kind, type(error), error.args, error.__dict__)
    if isinstance(error, toon.TransactionConflictError):
        given.remediation = _CONFLICT
    elif isinstance(error, toon.TransactionExpiredError):
        given.remediation = _EXPIRED
    else:
        given.remediation = given.remediation.replace("execute_script()", "executescript()")  # its name here
    return given


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Raise the errors of ToonDB in the block as those of PEP 249."""
    try:
        yield
    except Error:
        raise
    except toon.ToonDBError as error:
        # That of a plugin has the exception of its handler as its cause.
        raise translated(error) from error.__cause__


_made: dict[tuple[type[Error], type[toon.ToonDBError]], type[Error]] = {}


def _both(kind: type[Error], cause: type[toon.ToonDBError]) -> type[Error]:
    made = _made.get((kind, cause))
    if made is None:
        # It carries the name of PEP 249: tracebacks show it, and SQLAlchemy goes by it.
        names = {"__doc__": kind.__doc__, "__module__": "toondb.dbapi", "__qualname__": kind.__name__}
        made = _made.setdefault((kind, cause), type(kind.__name__, (kind, cause), names))
    return made


def _parts(cls: type[Error]) -> tuple[type[Error], type[toon.ToonDBError] | None]:
    if cls.__module__ != "toondb.dbapi":
        return cls, None
    kind, cause = cls.__bases__
    return kind, cause


def _rebuilt(
    kind: type[Error], cause: type[toon.ToonDBError] | None, args: tuple[Any, ...], attributes: dict[str, Any]
) -> Error:
    cls = kind if cause is None else _both(kind, cause)
    # Not by its constructor: those of ToonDB's classes differ.
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error
