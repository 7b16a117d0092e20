"""A view of the newest commit, for one short read within one call."""

from __future__ import annotations

from typing import Any

import lmdb

from toondb_protocol.record import live_value

from .environment import Environment, Space, storage_error
from .snapshot import begin_view, records_of

__all__ = ["View"]


class View:
    """A context manager: what a :class:`Snapshot` is, for one thread that is through with it in a moment.

    Nobody else can use or end it, so it needs no lock and no place in the table of what is open.

    Args:
        environment: The open environment.

    Attributes:
        environment: The open environment.
        lsn: The last commit it sees.
        txn: The LMDB transaction, for what reads other sub-databases.

    Raises:
        ToonDBError: There is none: the database is closed, or too many are open.
    """

    __slots__ = ("environment", "lsn", "txn")

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.txn: Any
        self.txn, self.lsn = begin_view(environment)
        environment.seen(self.lsn)

    def __enter__(self) -> View:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.environment.end_view(self.txn)

    def get(self, key: bytes, space: Space = Space.KV) -> bytes | None:
        """The value of a key, or None."""
        try:
            raw: bytes | None = self.txn.get(key, db=self.environment.spaces[space])
        except lmdb.Error as error:
            raise storage_error(error, "reading") from None
        return live_value(raw)

    def records_of(self, space: Space, keys: list[bytes]) -> list[bytes | None]:
        """The raw records of several keys, None where there is none."""
        return records_of(self.environment, self.txn, space, keys)
