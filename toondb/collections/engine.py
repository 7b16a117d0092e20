"""The collections of one open store: every operation, inside a transaction or in one of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from toondb.engine.engine import Engine
from toondb.engine.options import Access
from toondb.engine.transaction import State, Transaction
from toondb.sql.write_queue import Patron, Write, WriteQueue
from toondb_protocol.arguments import shown
from toondb_protocol.collections import OPERATIONS, READING
from toondb_protocol.errors import (
    InternalError,
    ToonDBError,
    TransactionConflictError,
    TransactionError,
    ValidationError,
)

from . import catalog
from .background import Background
from .index_file import delete_saved, saved_collections
from .operations import Action, Operations
from .plain_search import PlainSearches
from .reclaim import ReclaimGone
from .search import Searches
from .text import TextIndex
from .vector_caches import VectorCaches

__all__ = ["CollectionsEngine"]

Turn: TypeAlias = list[Write[Action, Any]]

_ATTEMPTS_BESIDE_OTHERS = 20
_ATTEMPTS = 1000
_WRITE_WAIT_SECONDS = 600.0
_MOST_QUEUES = 1024
_LEAVE_RECORDS = ("namespace_delete", "collection_delete")


class _Noticed:
    """Takes part in a transaction that changes collections, to be told of its end.

    Attributes:
        deletes: It deletes a namespace or a collection.
    """

    def __init__(self, told: Callable[[bool], None]) -> None:
        self._told = told
        self.deletes = False

    def flush(self) -> None:
        """Nothing is kept back."""

    def ended(self, lsn: int | None) -> None:
        """The transaction is over."""
        if lsn is not None:
            self._told(self.deletes)


class CollectionsEngine:
    """Carries out the operations of namespaces and collections. All methods may be called from any thread.

    Args:
        engine: The open engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._background = Background(self._tend)
        self._caches = VectorCaches(engine, self._background.wake)
        self._text = TextIndex(engine)
        self._operations = Operations(Searches(self._caches, self._text), self._caches, self._text)
        self._plain = PlainSearches(engine.environment, self._caches)
        self._lock = threading.Lock()
        self._queues: OrderedDict[tuple[str, str], WriteQueue[Action, Any]] = OrderedDict()
        self._hard = threading.Lock()
        # A process before this one may have left something.
        self._sweep = True
        self._background.wake()

    def operate(self, operation: str, arguments: Mapping[str, Any], transaction: Transaction | None = None) -> Any:
        """Carry out an operation.

        Args:
            operation: Its name, one of ``OPERATIONS`` of ``toondb_protocol.collections``.
            arguments: Its arguments by name.
            transaction: What it is part of: it reads its snapshot and what was written in it, and writes into it.
                None = a read sees the newest commit, and a write is committed when this returns; when it conflicts
                with others, it is run again.

        Returns:
            What the operation answers, of plain values that msgpack knows.

        Raises:
            NamespaceNotFoundError, NamespaceExistsError, CollectionNotFoundError, CollectionExistsError: As they say.
            DimensionMismatchError, CollectionConfigError, ValidationError: An argument cannot be.
            TransactionError: The transaction is over, or read-only.
            TransactionConflictError: Only with a transaction that writes words: another one changed these first.
        """
        self._engine.check_open()
        if operation == "search" and transaction is None and (found := self._plain.search(arguments)) is not None:
            return found
        if not isinstance(operation, str) or operation not in OPERATIONS:
            raise ValidationError(
                f"the operation {shown(operation)} is unknown; known: {', '.join(OPERATIONS)}.",
            )
        action = self._operations.action(operation, arguments)
        reads = operation in READING
        if not reads:
            action = self._noticed(action, deletes=operation in _LEAVE_RECORDS)
        if transaction is not None:
            transaction.check_active()
            return action(transaction)
        if reads:
            return self._read(action)
        _ = self._engine.writer  # raises where nothing can be written
        if operation.startswith("document_"):
            return self._queue(arguments).submit(action)
        return self._commit([action])[0]

    def write_later(
        self, operation: str, arguments: Mapping[str, Any], patron: Patron[Action, Any]
    ) -> Callable[[], None]:
        """Have a write of documents done, outside transactions, without waiting for it: for an event loop.

        Args:
            operation: One of ``document_put``, ``document_put_multi`` and ``document_delete``.
            arguments: As for :meth:`operate`.
            patron: Is given the result or error that :meth:`operate` would have.

        Returns:
            What withdraws it, should its turn not have come.

        Raises:
            ToonDBError: As :meth:`operate`, for arguments that cannot be.
        """
        self._engine.check_open()
        action = self._noticed(self._operations.action(operation, arguments), deletes=False)
        _ = self._engine.writer  # raises where nothing can be written
        queue = self._queue(arguments)
        write = queue.submit_later(action, patron)
        return lambda: queue.withdraw(write)

    def operate_at_once(self, operation: str, arguments: Mapping[str, Any]) -> Any:
        """Answer a short search without waiting for anybody: for an event loop, where a thread costs more than it does.

        Args:
            operation: As for :meth:`operate`.
            arguments: As for :meth:`operate`.

        Returns:
            What :meth:`operate` answers; None = let that do it, on a thread. Nothing was changed.

        Raises:
            ToonDBError: As :meth:`operate`.
        """
        if operation != "search":
            return None
        self._engine.check_open()
        return self._plain.search_at_once(arguments)

    def _noticed(self, action: Action, *, deletes: bool) -> Action:
        """A write that this engine is told of when it is committed."""

        def noticed(transaction: Transaction) -> Any:
            if transaction.read_only:
                raise TransactionError("the transaction is read-only.", remediation="Begin it without read_only.")
            notice = transaction.attachments.get(self)
            if not isinstance(notice, _Noticed):
                notice = transaction.attachments[self] = _Noticed(self._changed)
            notice.deletes = notice.deletes or deletes
            return action(transaction)

        return noticed

    def _changed(self, deletes: bool) -> None:
        if deletes:
            self._sweep = True
        if deletes or self._caches:
            self._background.wake()

    def _read(self, action: Action) -> Any:
        transaction = self._engine.begin(read_only=True)
        try:
            return action(transaction)
        finally:
            self._engine.commit_read_only(transaction)

    # Writes of their own

    def _queue(self, arguments: Mapping[str, Any]) -> WriteQueue[Action, Any]:
        """Where writes of a collection wait: those that come while others commit share the next commit."""
        name = (str(arguments.get("namespace")), str(arguments.get("collection")))
        with self._lock:
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = WriteQueue(self._run_turn, _WRITE_WAIT_SECONDS)
            self._queues.move_to_end(name)
            while len(self._queues) > _MOST_QUEUES:
                # One that is in use serves those who have it; others may write beside them.
                self._queues.popitem(last=False)
        return queue

    def _run_turn(self, turn: Turn) -> None:
        """Run the writes of a turn in one commit; when that fails, each in one of its own."""
        if len(turn) > 1:
            try:
                results = self._commit([write.action for write in turn])
            except Exception:
                pass
            else:
                for write, result in zip(turn, results, strict=True):
                    write.result, write.done = result, True
                return
        for write in turn:
            try:
                write.result = self._commit([write.action])[0]
            except Exception as error:
                write.error = error
            write.done = True

    def _commit(self, actions: list[Action]) -> list[Any]:
        """Run actions in one transaction, again and again while it conflicts with others."""
        for attempt in range(1, _ATTEMPTS + 1):
            # Who has lost too often is let through alone, at least in this process.
            with self._hard if attempt > _ATTEMPTS_BESIDE_OTHERS else contextlib.nullcontext():
                try:
                    return self._try_commit(actions)
                except TransactionConflictError:
                    if attempt == _ATTEMPTS:
                        raise
            time.sleep(min(0.1, 0.001 * attempt))
        raise InternalError("unreachable")

    def _try_commit(self, actions: list[Action]) -> list[Any]:
        transaction = self._engine.begin()
        try:
            results = [action(transaction) for action in actions]
            self._engine.commit(transaction)
        except BaseException:
            with contextlib.suppress(ToonDBError):
                if transaction.state is State.ACTIVE:
                    self._engine.abort(transaction)
            raise
        return results

    # In the background

    def _tend(self, stopping: Callable[[], bool]) -> None:
        sweep, self._sweep = self._sweep, False
        try:
            if sweep:
                self._reclaim(stopping)
            self._caches.tend(stopping)
        except ToonDBError:
            self._sweep = self._sweep or sweep
            raise

    def _reclaim(self, stopping: Callable[[], bool]) -> None:
        """Delete what deleted collections have left."""
        with self._viewing() as view:
            gone = catalog.gone_ids(view)
            alive = catalog.all_collections(view)
        if self._engine.access is Access.READ:
            return
        for id in saved_collections(self._engine.folder) - alive:
            delete_saved(self._engine.folder, id)
        self._caches.forget(set(gone))
        for id in gone:
            self._text.forget(id)
            unit = ReclaimGone(id)
            while not unit.finished and not stopping():
                result = self._engine.write([unit])[0]
                if isinstance(result, ToonDBError):
                    raise result

    @contextlib.contextmanager
    def _viewing(self) -> Any:
        transaction = self._engine.begin(read_only=True)
        try:
            yield transaction
        finally:
            self._engine.commit_read_only(transaction)

    def close(self) -> None:
        """Save the indexes and end what runs in the background. Before the engine is closed."""
        self._background.close()
        if not self._engine.closed:
            self._caches.close()
        self._text.close()
