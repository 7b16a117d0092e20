"""ToonDB by the Python Database API 2.0 (PEP 249), over an embedded folder or a daemon.

::

    from toondb import dbapi

    connection = dbapi.connect("./data")
    with connection:
        connection.execute("INSERT INTO users (name) VALUES (?)", ["Alice"])

Differences between drivers of this API are where PEP 249 leaves room; docs/dbapi.md has what they are here.

Attributes:
    apilevel: ``"2.0"``.
    threadsafety: 2: threads may share the module and connections.
    paramstyle: ``"qmark"``; named parameters (``:name``, given as a mapping) are accepted as well.
    sqlite_version: Version of the SQL engine of this process, as text; that of a daemon may differ.
    sqlite_version_info: The same as three numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .connection import Connection, connect
from .cursor import Cursor
from .errors import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,
)
from .values import (
    BINARY,
    DATETIME,
    NUMBER,
    ROWID,
    STRING,
    Binary,
    Date,
    DateFromTicks,
    Time,
    TimeFromTicks,
    Timestamp,
    TimestampFromTicks,
)

if TYPE_CHECKING:
    sqlite_version: str
    sqlite_version_info: tuple[int, int, int]

__all__ = [
    "BINARY",
    "DATETIME",
    "NUMBER",
    "ROWID",
    "STRING",
    "Binary",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "Warning",
    "apilevel",
    "connect",
    "paramstyle",
    "threadsafety",
]

apilevel = "2.0"
threadsafety = 2
paramstyle = "qmark"


def __getattr__(name: str) -> Any:
    # Loads the engine, which a connection to a daemon does without.
    if name not in ("sqlite_version", "sqlite_version_info"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import apsw

    version = apsw.sqlite_lib_version()
    return version if name == "sqlite_version" else tuple(map(int, version.split(".")))
