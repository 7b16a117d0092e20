"""Deleting what deleted namespaces and collections have left, a little at a time."""

from __future__ import annotations

from itertools import islice, takewhile

from toondb.engine.environment import Space
from toondb.engine.snapshot import records
from toondb.engine.write_batch import WriteBatch

from .catalog import gone_key

__all__ = ["ReclaimGone"]

_AT_ONCE = 1000
_SPACES = (Space.DOCUMENTS, Space.NAMESPACE_KV, Space.TEXT)


class ReclaimGone:
    """A unit for the writer: deletes some of the records of something deleted, and at the end its mark.

    Args:
        id: Its number.
        limit: How many records at the most.

    Attributes:
        finished: Nothing of it is left.
    """

    def __init__(self, id: int, limit: int = _AT_ONCE) -> None:
        self._id = id
        self._limit = limit
        self.finished = False

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        """Delete some of them, as one commit."""
        self.finished = True
        mark = gone_key(self._id)
        if batch.get(mark, Space.CATALOG) is None:
            return lsn  # another process was quicker
        prefix = self._id.to_bytes(4, "big")
        left = self._limit
        for space in _SPACES:
            pairs = records(batch.txn, batch.database(space), prefix, None, values=False)
            keys = [key for key, _ in islice(takewhile(lambda pair: pair[0].startswith(prefix), pairs), left)]
            for key in keys:
                batch.put_record(space, key, None, lsn + 1)
            left -= len(keys)
        if left and batch.forget_log(prefix, left):
            batch.put_record(Space.CATALOG, mark, None, lsn + 1)
        else:
            self.finished = False
        return lsn + 1
