"""What SQLite and its binding raise, as errors that say what to do."""

from __future__ import annotations

import apsw

from toondb_protocol.errors import (
    SqlConstraintError,
    SqlError,
    SqlForbiddenError,
    SqlInterruptedError,
    ToonDBError,
    TransactionTooLargeError,
    ValidationError,
)
from toondb_protocol.sql_values import BAD_VALUES

from .policy import VACUUM_REFUSED

__all__ = ["of_engine", "of_values"]


def of_engine(error: apsw.Error, *, refused: str, handled: int, out_of_time: bool) -> ToonDBError:
    """The error for what SQLite raised.

    Args:
        error: What it raised.
        refused: What the policy refused, in words; empty = nothing.
        handled: ``id`` of the exception that the caller was handling already when it ran the statement.
        out_of_time: The statement ran for longer than it may.
    """
    cause: BaseException | None = error
    # What the caller was handling already when it ran the statement is no cause of this error.
    while cause is not None and id(cause) != handled:
        if isinstance(cause, ToonDBError):
            return cause  # the store refused a page
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if refused or isinstance(error, apsw.AuthError):
        # SQLite tells of some refusals, such as that of a function, as if they were mistakes.
        return SqlForbiddenError(refused or text)
    if isinstance(error, apsw.InterruptError):
        if not out_of_time:
            return SqlInterruptedError("the statement was interrupted.")
        return SqlInterruptedError("the statement ran for longer than it may.")
    if isinstance(error, apsw.ConstraintError):
        return SqlConstraintError(f"{text}.", details={"extended_code": getattr(error, "extendedresult", None)})
    if "VACUUM" in text:
        return SqlForbiddenError(VACUUM_REFUSED)
    details = {"sqlite_code": getattr(error, "result", None)}
    if isinstance(error, apsw.NoMemError):
        return SqlError(
            "the statement needs more memory than SQL may take.",
            remediation="Ask for less at a time, or start the server with a larger --sql-memory.",
            details=details,
        )
    if isinstance(error, apsw.TooBigError):
        return SqlError(
            f"{text}.",
            remediation="Make it less; behind a daemon a text or blob has --max-frame bytes at the most.",
            details=details,
        )
    if isinstance(error, apsw.FullError):
        return TransactionTooLargeError(f"{text}.")
    return SqlError(f"{text}.", details=details)


def of_values(error: Exception) -> ToonDBError | None:
    """The error for what went wrong with values on their way into a statement or out of it; None = it is no such."""
    if isinstance(error, (apsw.BindingsError, LookupError, TypeError, OverflowError, UnicodeEncodeError)):
        return _bad_binding(error)
    if isinstance(error, UnicodeDecodeError):
        return SqlError(
            "a text of the result is not valid UTF-8.", remediation="Ask for it as a blob: CAST(column AS BLOB)."
        )
    return None


def _bad_binding(error: Exception) -> ValidationError:
    why = str(error).rstrip(".!")
    if isinstance(error, OverflowError):
        why = "an integer does not fit into 64 bits"
    elif isinstance(error, LookupError):
        why = f"there is no value for {error}"
    elif isinstance(error, UnicodeEncodeError):
        why = "a text is not valid Unicode"
    return ValidationError(
        f"the values do not fit the parameters of the statement: {why}.",
        remediation=BAD_VALUES,
    )
