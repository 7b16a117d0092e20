"""The rows that statements changed, without those that triggers, cascades and virtual tables change beside."""

from __future__ import annotations

import apsw

__all__ = ["RunCounter", "rows_changed"]


def rows_changed(db: apsw.Connection, before: int) -> int:
    """The rows that the last statement changed; ``before`` are all changes before it."""
    return db.changes() if db.total_changes() != before else 0


class RunCounter:
    """Counts the rows of many runs of one statement; made before the first.

    Args:
        db: Where it runs.
        one_by_one: It may change rows beside, so the sum of all changes is not the answer.
    """

    def __init__(self, db: apsw.Connection, *, one_by_one: bool) -> None:
        self._db = db
        self._one_by_one = one_by_one
        self._runs = 0
        self._counted = 0
        self._before = self._counted_to = db.total_changes()

    def next(self, *, triggers: bool) -> bool:
        """Called before each run, as long as runs have to be counted one by one; True = this was the last time.

        Args:
            triggers: The statement fires triggers.
        """
        self._runs += 1
        self._one_by_one = self._one_by_one or triggers
        total = self._db.total_changes()
        last = rows_changed(self._db, self._counted_to)
        if self._runs == 2 and not self._one_by_one and total - self._counted_to == last:
            # It changes nothing beside, so the sum will do. And it is the same statement for every set of values: that
            # it may run needs no more looking at.
            return True
        if self._runs == 2:
            self._one_by_one = True
        self._counted += last
        self._counted_to = total
        return False

    def affected(self) -> int:
        """The rows of all runs."""
        # What is changed beside is not counted, where there is anything.
        if self._one_by_one or self._runs == 1:
            return self._counted + rows_changed(self._db, self._counted_to)
        return self._db.total_changes() - self._before
