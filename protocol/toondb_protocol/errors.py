"""The one error hierarchy of ToonDB, shared by the engine, the daemon and the clients.

Every error has a stable ``code`` that travels over the wire, so the same mistake raises the same class
whether the store is embedded or behind a socket::

    ToonDBError
    ├── ConnectionError                 (also a builtin ConnectionError)
    │   ├── ConnectionLostError         the peer went away during a call
    │   ├── TooManyClientsError         the daemon is at --max-clients
    │   ├── PeerNotAllowedError         refused by --allow-uid
    │   ├── ForkedProcessError          a handle from the parent process used in a child
    │   └── PoolTimeoutError            no pooled connection became free in time
    ├── OperationTimeoutError           (also a builtin TimeoutError)
    ├── ProtocolError
    │   ├── MalformedRequestError       framing is intact, the payload is not
    │   ├── UnknownOpcodeError
    │   └── FrameTooLargeError
    ├── DatabaseError
    │   ├── DatabaseNotFoundError       no database there and create_if_missing is off
    │   ├── DatabaseClosedError
    │   ├── StorageError                the disk failed; writes stop, reads go on
    │   │   ├── StorageFullError        map full, disk full or quota reached
    │   │   └── CorruptionError         damage found in the files
    │   ├── TableExistsError
    │   ├── SqlError                    a statement cannot be run, or failed
    │   │   ├── SqlConstraintError      it breaks a constraint
    │   │   ├── SqlForbiddenError       it asks for what SQL may not do here
    │   │   └── SqlInterruptedError     it ran for too long, or was stopped
    │   ├── HistoryTrimmedError         a watch asks for changes that are no longer kept
    │   └── UnsupportedFeatureError
    ├── TransactionError
    │   ├── TransactionConflictError    another transaction committed first: run it again
    │   ├── TransactionExpiredError     idle or open for too long, aborted
    │   ├── TransactionNotFoundError
    │   ├── TransactionClosedError      used after commit or abort
    │   ├── TransactionTooLargeError    the write set is over its cap
    │   ├── TransactionOutcomeUnknownError  the connection was lost during commit
    │   ├── SnapshotExpiredError        a scan or snapshot was held open for too long
    │   └── CursorNotFoundError
    ├── ValidationError                 (also a ValueError)
    │   ├── InvalidKeyError
    │   │   └── KeyTooLargeError
    │   ├── ValueTooLargeError
    │   ├── InvalidPathError
    │   ├── ConfigurationError
    │   └── DimensionMismatchError
    ├── NamespaceError
    │   ├── NamespaceNotFoundError
    │   └── NamespaceExistsError
    ├── CollectionError
    │   ├── CollectionNotFoundError
    │   ├── CollectionExistsError
    │   └── CollectionConfigError
    ├── LockError
    │   ├── DatabaseLockedError         another process owns the folder
    │   ├── LockTimeoutError
    │   ├── EpochMismatchError
    │   └── SplitBrainError
    ├── PluginError                     a plugin's handler failed
    ├── TriggerAbort                    a plugin's handler refused the change; its code is the plugin's own
    └── InternalError                   a defect in ToonDB; please report it
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import Any, ClassVar

__all__ = [
    "CollectionConfigError",
    "CollectionError",
    "CollectionExistsError",
    "CollectionNotFoundError",
    "ConfigurationError",
    "ConnectionError",
    "ConnectionLostError",
    "CorruptionError",
    "CursorNotFoundError",
    "DatabaseClosedError",
    "DatabaseError",
    "DatabaseLockedError",
    "DatabaseNotFoundError",
    "DimensionMismatchError",
    "EpochMismatchError",
    "ErrorCode",
    "ForkedProcessError",
    "FrameTooLargeError",
    "HistoryTrimmedError",
    "InternalError",
    "InvalidKeyError",
    "InvalidPathError",
    "KeyTooLargeError",
    "LockError",
    "LockTimeoutError",
    "MalformedRequestError",
    "NamespaceError",
    "NamespaceExistsError",
    "NamespaceNotFoundError",
    "OperationTimeoutError",
    "PeerNotAllowedError",
    "PluginError",
    "PoolTimeoutError",
    "ProtocolError",
    "SnapshotExpiredError",
    "SplitBrainError",
    "SqlConstraintError",
    "SqlError",
    "SqlForbiddenError",
    "SqlInterruptedError",
    "StorageError",
    "StorageFullError",
    "TableExistsError",
    "TooManyClientsError",
    "ToonDBError",
    "TransactionClosedError",
    "TransactionConflictError",
    "TransactionError",
    "TransactionExpiredError",
    "TransactionNotFoundError",
    "TransactionOutcomeUnknownError",
    "TransactionTooLargeError",
    "TriggerAbort",
    "UnknownOpcodeError",
    "UnsupportedFeatureError",
    "ValidationError",
    "ValueTooLargeError",
    "error_class",
    "error_from_wire",
]


class ErrorCode(StrEnum):
    """Stable identifiers of errors, as they travel in ERROR frames. Never renamed, never reused."""

    GENERIC = "ERROR"
    CONNECTION = "CONNECTION"
    CONNECTION_LOST = "CONNECTION_LOST"
    TOO_MANY_CLIENTS = "TOO_MANY_CLIENTS"
    PEER_NOT_ALLOWED = "PEER_NOT_ALLOWED"
    FORKED_PROCESS = "FORKED_PROCESS"
    POOL_TIMEOUT = "POOL_TIMEOUT"
    OPERATION_TIMEOUT = "OPERATION_TIMEOUT"
    PROTOCOL = "PROTOCOL"
    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    UNKNOWN_OPCODE = "UNKNOWN_OPCODE"
    FRAME_TOO_LARGE = "FRAME_TOO_LARGE"
    DATABASE = "DATABASE"
    DATABASE_NOT_FOUND = "DATABASE_NOT_FOUND"
    DATABASE_CLOSED = "DATABASE_CLOSED"
    STORAGE_FAILED = "STORAGE_FAILED"
    STORAGE_FULL = "STORAGE_FULL"
    CORRUPTION = "CORRUPTION"
    TABLE_EXISTS = "TABLE_EXISTS"
    HISTORY_TRIMMED = "HISTORY_TRIMMED"
    SQL = "SQL"
    SQL_CONSTRAINT = "SQL_CONSTRAINT"
    SQL_FORBIDDEN = "SQL_FORBIDDEN"
    SQL_INTERRUPTED = "SQL_INTERRUPTED"
    UNSUPPORTED = "UNSUPPORTED"
    TRANSACTION = "TRANSACTION"
    TRANSACTION_CONFLICT = "TRANSACTION_CONFLICT"
    TRANSACTION_EXPIRED = "TRANSACTION_EXPIRED"
    TRANSACTION_NOT_FOUND = "TRANSACTION_NOT_FOUND"
    TRANSACTION_CLOSED = "TRANSACTION_CLOSED"
    TRANSACTION_TOO_LARGE = "TRANSACTION_TOO_LARGE"
    TRANSACTION_OUTCOME_UNKNOWN = "TRANSACTION_OUTCOME_UNKNOWN"
    SNAPSHOT_EXPIRED = "SNAPSHOT_EXPIRED"
    CURSOR_NOT_FOUND = "CURSOR_NOT_FOUND"
    VALIDATION = "VALIDATION"
    INVALID_KEY = "INVALID_KEY"
    KEY_TOO_LARGE = "KEY_TOO_LARGE"
    VALUE_TOO_LARGE = "VALUE_TOO_LARGE"
    INVALID_PATH = "INVALID_PATH"
    CONFIGURATION = "CONFIGURATION"
    DIMENSION_MISMATCH = "DIMENSION_MISMATCH"
    NAMESPACE = "NAMESPACE"
    NAMESPACE_NOT_FOUND = "NAMESPACE_NOT_FOUND"
    NAMESPACE_EXISTS = "NAMESPACE_EXISTS"
    COLLECTION = "COLLECTION"
    COLLECTION_NOT_FOUND = "COLLECTION_NOT_FOUND"
    COLLECTION_EXISTS = "COLLECTION_EXISTS"
    COLLECTION_CONFIG = "COLLECTION_CONFIG"
    LOCK = "LOCK"
    DATABASE_LOCKED = "DATABASE_LOCKED"
    LOCK_TIMEOUT = "LOCK_TIMEOUT"
    EPOCH_MISMATCH = "EPOCH_MISMATCH"
    SPLIT_BRAIN = "SPLIT_BRAIN"
    PLUGIN = "PLUGIN"
    TRIGGER_ABORT = "TRIGGER_ABORT"
    INTERNAL = "INTERNAL"


_CLASSES: dict[str, type[ToonDBError]] = {}


class ToonDBError(Exception):
    """Base of every error that ToonDB raises.

    Args:
        message: What went wrong, with the offending value where that helps.
        remediation: What the caller can do next; the class default when omitted.
        details: Machine-readable facts (msgpack-able), for example ``{"limit": 511, "actual": 600}``.

    Attributes:
        code: The stable :class:`ErrorCode` of the class (of a :class:`TriggerAbort`, the code that the plugin gave).
    """

    code: ClassVar[ErrorCode] = ErrorCode.GENERIC
    default_remediation: ClassVar[str] = ""

    def __init__(
        self, message: str = "", *, remediation: str | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message or type(self).__name__
        self.remediation = self.default_remediation if remediation is None else remediation
        self.details: dict[str, Any] = dict(details or {})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            known = _CLASSES.get(cls.code)
            if known is not None and known.__module__ == cls.__module__:
                raise TypeError(f"{cls.__name__} and {known.__name__} share the error code {cls.code}")
            _CLASSES.setdefault(cls.code, cls)

    def __str__(self) -> str:
        return f"{self.message} {self.remediation}".rstrip() if self.remediation else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.remediation, self.details))

    def to_wire(self) -> dict[str, Any]:
        """The map that an extended ERROR frame carries: code, message, remediation, details.

        It can always be encoded: text that is not valid Unicode, and details that msgpack has no plain
        type for, are replaced by something readable.
        """
        return {
            "code": str(type(self).code),
            "message": _sendable_text(self.message),
            "remediation": _sendable_text(self.remediation),
            "details": {_sendable_text(str(key)): _sendable(value) for key, value in self.details.items()},
        }

    def to_text(self) -> str:
        """The text that a classic ERROR frame carries: ``CODE: message remediation``."""
        return _sendable_text(f"{type(self).code}: {self}")


_CLASSES[ErrorCode.GENERIC] = ToonDBError


def _sendable_text(text: str) -> str:
    # File names that are not UTF-8 reach messages as lone surrogates, which UTF-8 cannot carry.
    return text.encode(errors="backslashreplace").decode()


def _sendable(value: object, depth: int = 8) -> Any:
    if value is None or isinstance(value, (bool, float, bytes)):
        return value
    if isinstance(value, str):
        return _sendable_text(value)
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        return int(value)
    if depth and isinstance(value, Mapping):
        return {_sendable_text(str(key)): _sendable(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple)):
        return [_sendable(item, depth - 1) for item in value]
    return _sendable_text(_shown(value))


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # too deeply nested, or a repr() that fails: an error must stay reportable
        return f"<{type(value).__name__}>"


def _rebuild(cls: type[ToonDBError], message: str, remediation: str, details: dict[str, Any]) -> ToonDBError:
    return cls(message, remediation=remediation, details=details)


class ConnectionError(ToonDBError, builtins.ConnectionError):
    """The daemon cannot be reached, or the connection to it is unusable."""

    code = ErrorCode.CONNECTION
    default_remediation = "Check that toondb-server runs on this socket: toondb-server status --socket PATH."


class ConnectionLostError(ConnectionError):
    """The peer closed the connection during a call.

    ``details["maybe_applied"]`` is true when a write was already sent and its outcome is unknown.
    """

    code = ErrorCode.CONNECTION_LOST
    default_remediation = "The client reconnects by itself on the next call."


class TooManyClientsError(ConnectionError):
    """The daemon already serves ``--max-clients`` connections."""

    code = ErrorCode.TOO_MANY_CLIENTS
    default_remediation = "Close idle clients, share one client per process, or raise --max-clients."


class PeerNotAllowedError(ConnectionError):
    """The daemon was started with ``--allow-uid`` and this user is not among them."""

    code = ErrorCode.PEER_NOT_ALLOWED
    default_remediation = "Run as an allowed user, or add the uid with --allow-uid."


class ForkedProcessError(ConnectionError):
    """A handle made in the parent process was used in a forked child."""

    code = ErrorCode.FORKED_PROCESS
    default_remediation = "Open a new client or database in the child process."


class PoolTimeoutError(ConnectionError):
    """All pooled connections stayed in use until the deadline."""

    code = ErrorCode.POOL_TIMEOUT
    default_remediation = "End open transactions and scans, or raise max_connections."


class OperationTimeoutError(ToonDBError, builtins.TimeoutError):
    """A call did not finish before its deadline; its connection was closed."""

    code = ErrorCode.OPERATION_TIMEOUT
    default_remediation = "Raise timeout=, or look at toondb-server stats for what keeps the daemon busy."


class ProtocolError(ToonDBError):
    """The peer broke the wire protocol."""

    code = ErrorCode.PROTOCOL
    default_remediation = "Check that both sides speak the protocol of protocol/SPEC.md."


class MalformedRequestError(ProtocolError):
    """A payload does not have the layout of its opcode. The connection stays usable."""

    code = ErrorCode.MALFORMED_REQUEST
    default_remediation = "See the payload layout of this opcode in protocol/SPEC.md."


class UnknownOpcodeError(ProtocolError):
    """The opcode is not one of the 14 requests."""

    code = ErrorCode.UNKNOWN_OPCODE
    default_remediation = "See the list of opcodes in protocol/SPEC.md."


class FrameTooLargeError(ProtocolError):
    """A frame, or the reply it asks for, is over the frame cap."""

    code = ErrorCode.FRAME_TOO_LARGE
    default_remediation = "Send less at once, or raise --max-frame on the server."


class DatabaseError(ToonDBError):
    """The database refused or failed an operation."""

    code = ErrorCode.DATABASE


class DatabaseNotFoundError(DatabaseError):
    """There is no database in that folder."""

    code = ErrorCode.DATABASE_NOT_FOUND
    default_remediation = "Check the path."


class DatabaseClosedError(DatabaseError):
    """The database handle was closed."""

    code = ErrorCode.DATABASE_CLOSED
    default_remediation = "Open it again."


class StorageError(DatabaseError):
    """The storage device failed. Nothing unacknowledged was kept; writes stay refused until a restart."""

    code = ErrorCode.STORAGE_FAILED
    default_remediation = "Check the disk and the kernel log, run toondb-server check, then restart."


class StorageFullError(StorageError):
    """There is no room for this write: the map, the disk or a quota is full. Reads go on."""

    code = ErrorCode.STORAGE_FULL
    default_remediation = "Free disk space, delete data, or restart with a larger --map-size."


class CorruptionError(StorageError):
    """The files are damaged."""

    code = ErrorCode.CORRUPTION
    default_remediation = "Run toondb-server check, and restore a backup with toondb-server restore."


class TableExistsError(DatabaseError):
    """A table of that name exists already."""

    code = ErrorCode.TABLE_EXISTS
    default_remediation = "Choose another name."


class SqlError(DatabaseError):
    """A SQL statement cannot be run, or failed. Nothing of it was kept; a transaction around it goes on."""

    code = ErrorCode.SQL
    default_remediation = "Correct the statement."


class SqlConstraintError(SqlError):
    """A SQL statement breaks a constraint: UNIQUE, NOT NULL, CHECK, a key or a foreign key."""

    code = ErrorCode.SQL_CONSTRAINT
    default_remediation = "Change the values, or what the statement does on a conflict."


class SqlForbiddenError(SqlError):
    """A SQL statement asks for something that is not allowed here."""

    code = ErrorCode.SQL_FORBIDDEN
    default_remediation = ""


class SqlInterruptedError(SqlError):
    """A SQL statement was stopped before its end."""

    code = ErrorCode.SQL_INTERRUPTED
    default_remediation = "Make it do less, add an index, or allow it more time."


class HistoryTrimmedError(DatabaseError):
    """A watch asks for changes that the bounded history no longer has.

    ``details`` has ``oldest_lsn``, the LSN after which history is complete, and ``lsn``, the newest commit.
    """

    code = ErrorCode.HISTORY_TRIMMED
    default_remediation = "Read the keys anew, then watch from the LSN of before that; watchers must not lag that far."


class UnsupportedFeatureError(DatabaseError):
    """The request is valid but this version or mode cannot serve it."""

    code = ErrorCode.UNSUPPORTED


class TransactionError(ToonDBError):
    """A transaction cannot go on."""

    code = ErrorCode.TRANSACTION


class TransactionConflictError(TransactionError):
    """Another transaction that touched the same keys committed first; nothing of this one was applied."""

    code = ErrorCode.TRANSACTION_CONFLICT
    default_remediation = "Run the transaction again; run_transaction() does that for you."


class TransactionExpiredError(TransactionError):
    """The transaction was idle or open for too long and was aborted."""

    code = ErrorCode.TRANSACTION_EXPIRED
    default_remediation = "Run it again, and keep transactions short."


class TransactionNotFoundError(TransactionError):
    """No open transaction with that id belongs to this connection."""

    code = ErrorCode.TRANSACTION_NOT_FOUND
    default_remediation = "Begin a transaction on this connection first."


class TransactionClosedError(TransactionError):
    """The transaction was already committed or aborted."""

    code = ErrorCode.TRANSACTION_CLOSED
    default_remediation = "Begin a new transaction."


class TransactionTooLargeError(TransactionError):
    """The write set of the transaction is over its cap. The transaction stays open without this write."""

    code = ErrorCode.TRANSACTION_TOO_LARGE
    default_remediation = "Commit in smaller parts, or raise the cap on a transaction's writes."


class TransactionOutcomeUnknownError(TransactionError):
    """The connection was lost while the commit was under way: it may or may not have been applied."""

    code = ErrorCode.TRANSACTION_OUTCOME_UNKNOWN
    default_remediation = "Read the keys back to learn the outcome before running it again."


class SnapshotExpiredError(TransactionError):
    """A snapshot or cursor was held open for longer than the server allows."""

    code = ErrorCode.SNAPSHOT_EXPIRED
    default_remediation = "Read faster, read in ranges, or raise the age limit."


class CursorNotFoundError(TransactionError):
    """No open cursor with that id belongs to this connection."""

    code = ErrorCode.CURSOR_NOT_FOUND
    default_remediation = "Start the scan again."


class ValidationError(ToonDBError, ValueError):
    """An argument is not acceptable."""

    code = ErrorCode.VALIDATION


class InvalidKeyError(ValidationError):
    """A key is empty or of the wrong type."""

    code = ErrorCode.INVALID_KEY
    default_remediation = "Keys are 1 to 511 bytes."


class KeyTooLargeError(InvalidKeyError):
    """A key is longer than 511 bytes."""

    code = ErrorCode.KEY_TOO_LARGE
    default_remediation = "Keys are 1 to 511 bytes; store a hash of a longer name."


class ValueTooLargeError(ValidationError):
    """A value is larger than this mode can store."""

    code = ErrorCode.VALUE_TOO_LARGE
    default_remediation = "Split the value, or raise --max-frame on the server."


class InvalidPathError(ValidationError):
    """A path is empty, has an empty segment, or a segment that contains a slash."""

    code = ErrorCode.INVALID_PATH
    default_remediation = "Write paths like users/alice/email, or give a list of segments."


class ConfigurationError(ValidationError):
    """An option is unknown or its value is not acceptable."""

    code = ErrorCode.CONFIGURATION


class DimensionMismatchError(ValidationError):
    """A vector does not have the dimension of its index.

    Attributes:
        expected: The dimension of the index.
        actual: The dimension of the vector.
    """

    code = ErrorCode.DIMENSION_MISMATCH

    @property
    def expected(self) -> int | None:
        value = self.details.get("expected")
        return value if isinstance(value, int) else None

    @property
    def actual(self) -> int | None:
        value = self.details.get("actual")
        return value if isinstance(value, int) else None


class NamespaceError(ToonDBError):
    """A namespace operation failed."""

    code = ErrorCode.NAMESPACE


class NamespaceNotFoundError(NamespaceError):
    """There is no namespace of that name."""

    code = ErrorCode.NAMESPACE_NOT_FOUND


class NamespaceExistsError(NamespaceError):
    """A namespace of that name exists already."""

    code = ErrorCode.NAMESPACE_EXISTS


class CollectionError(ToonDBError):
    """A collection operation failed."""

    code = ErrorCode.COLLECTION


class CollectionNotFoundError(CollectionError):
    """There is no collection of that name."""

    code = ErrorCode.COLLECTION_NOT_FOUND


class CollectionExistsError(CollectionError):
    """A collection of that name exists already."""

    code = ErrorCode.COLLECTION_EXISTS


class CollectionConfigError(CollectionError):
    """A collection was configured in a way that cannot work."""

    code = ErrorCode.COLLECTION_CONFIG


class LockError(ToonDBError):
    """The owner lock of a database folder could not be taken or was lost."""

    code = ErrorCode.LOCK


class DatabaseLockedError(LockError):
    """Another process owns the folder; ``details`` names its pid, role and socket."""

    code = ErrorCode.DATABASE_LOCKED


class LockTimeoutError(LockError):
    """The lock did not become free in time."""

    code = ErrorCode.LOCK_TIMEOUT


class EpochMismatchError(LockError):
    """The folder was taken over by another owner since it was opened."""

    code = ErrorCode.EPOCH_MISMATCH


class SplitBrainError(LockError):
    """Two owners of one folder were detected."""

    code = ErrorCode.SPLIT_BRAIN


class PluginError(ToonDBError):
    """The handler of a plugin failed, or returned something unusable.

    ``details`` names the ``plugin``, the ``handler``, the ``table`` and the ``event``; the exception of the handler is
    the ``__cause__``.
    """

    code = ErrorCode.PLUGIN
    default_remediation = "Correct the code of the plugin, or unregister it."


class TriggerAbort(ToonDBError):
    """The handler of a plugin refused the change.

    Args:
        message: Why, for the one who asked for the change.
        code: A code of the plugin's own, such as ``"INVALID_AGE"``.
        remediation: What to do next.
        details: Machine-readable facts. The code travels in them, as ``details["code"]``.

    Attributes:
        code: The code that the plugin gave, ``ErrorCode.TRIGGER_ABORT`` when it gave none.
    """

    code = ErrorCode.TRIGGER_ABORT

    def __init__(
        self,
        message: str = "",
        code: str | None = None,
        *,
        remediation: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, remediation=remediation, details=details)
        if code is not None:
            self.details["code"] = str(code.value if isinstance(code, Enum) else code)
        own = self.details.get("code")
        if isinstance(own, str):
            # Only on the instance: the class keeps its code, which says on the wire which class this is.
            self.__dict__["code"] = own


class InternalError(ToonDBError):
    """A defect in ToonDB itself."""

    code = ErrorCode.INTERNAL
    default_remediation = "Please report this with the server's log."


def error_class(code: str) -> type[ToonDBError]:
    """The class for a code; :class:`ToonDBError` for a code this version does not know."""
    return _CLASSES.get(code, ToonDBError)


def error_from_wire(wire: object) -> ToonDBError:
    """Build the error that an ERROR frame describes.

    Args:
        wire: The decoded map of an extended ERROR, or the text of a classic one.

    Returns:
        An instance of the class that the code names. A foreign or damaged map gives a plain
        :class:`ToonDBError` that shows what was received; this function never raises.
    """
    if isinstance(wire, Mapping):
        code, message = wire.get("code"), wire.get("message")
        remediation, details = wire.get("remediation"), wire.get("details")
        error = error_class(code if isinstance(code, str) else "")(
            message if isinstance(message, str) else _shown(dict(wire)),
            remediation=remediation if isinstance(remediation, str) else "",
            details=details if isinstance(details, Mapping) else None,
        )
        if type(error) is ToonDBError and isinstance(code, str) and code != ErrorCode.GENERIC:
            error.details.setdefault("code", code)
        return error
    text = wire if isinstance(wire, str) else _shown(wire)
    code, separator, message = text.partition(": ")
    if separator and code in _CLASSES:
        return _CLASSES[code](message, remediation="")
    return ToonDBError(text)
