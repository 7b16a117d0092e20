"""The embedded database: the engine in this process, without a server."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from toondb import toon
from toondb.collections.opening import LazyCollections
from toondb.config import OpenOptions, open_options
from toondb.embedded import (
    EmbeddedStore,
    TransactionStore,
    answer_query,
    check_ttl,
    has_tables,
    pairs_of,
    put_pairs,
    seconds_left,
    timed,
)
from toondb.engine.conditional import Conditional, DeleteTree
from toondb.engine.engine import Engine
from toondb.engine.environment import prepare_folder
from toondb.engine.options import Access, Isolation
from toondb.engine.snapshot import Snapshot
from toondb.engine.transaction import State
from toondb.engine.transaction import Transaction as EngineTransaction
from toondb.interrupts import finished
from toondb.pipeline import Pipeline, PipelineWrite
from toondb.sql.opening import LazySql
from toondb_protocol.arguments import (
    Items,
    ScanRange,
    answer_by_given,
    check_isolation,
    given_keys,
    pairs_as_dict,
    wait_seconds,
    whole_number,
)
from toondb_protocol.backoff import conflict_delays
from toondb_protocol.changes import Change
from toondb_protocol.errors import (
    ConfigurationError,
    DatabaseClosedError,
    ForkedProcessError,
    ToonDBError,
    TransactionClosedError,
    TransactionConflictError,
    ValidationError,
)
from toondb_protocol.keys import BytesLike, KeyLike, as_key, as_prefix, as_value, prefix_end
from toondb_protocol.paths import path_key
from toondb_protocol.query_builder import QueryAnswer

if TYPE_CHECKING:
    from toondb.plugins import PluginRegistry
    from toondb.sql.engine import SqlEngine, SqlSession

__all__ = ["Database", "Transaction"]

T = TypeVar("T")

_WATCH_WAIT_SECONDS = 1.0


# One engine for each folder: LMDB must not be opened twice in one process.


class _Shared:
    """An open engine and the handles that share it."""

    def __init__(self, engine: Engine, options: OpenOptions, *, concurrent: bool) -> None:
        self.engine = engine
        self.collections = LazyCollections(engine)
        self.options = options
        self.concurrent = concurrent
        self.handles = 1

    def close(self) -> None:
        """Close the engine, and before it what works on it."""
        try:
            self.collections.close()
        finally:
            self.engine.close()


_FolderId = tuple[int, int]

_lock = threading.Lock()
_opening: dict[_FolderId, threading.Lock] = {}
_shared: dict[_FolderId, _Shared] = {}
_inherited: set[_FolderId] = set()


def _after_fork() -> None:
    global _lock, _opening, _shared
    _inherited.update(_shared)
    # Kept alive: what is collected would be closed, under the parent that still uses it.
    _leaked.append(_shared)
    _lock, _opening, _shared = threading.Lock(), {}, {}


_leaked: list[dict[_FolderId, _Shared]] = []
os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _close_all() -> None:
    for shared in list(_shared.values()):
        with contextlib.suppress(ToonDBError):
            shared.close()


def _share(path: str | os.PathLike[str], options: OpenOptions, *, concurrent: bool) -> tuple[_FolderId, _Shared]:
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigurationError(f"the database path must be text or a path, not {type(path).__name__}.")
    folder = prepare_folder(path, create=options.engine.create_if_missing)
    found = os.stat(folder)
    identity = (found.st_dev, found.st_ino)
    if identity in _inherited:
        raise ForkedProcessError(
            f"the database {folder} was opened by the parent process, and cannot be opened again in its child.",
            remediation="Open it after the fork, or start the process by spawn (multiprocessing.get_context('spawn')).",
        )
    with _lock:
        opening = _opening.setdefault(identity, threading.Lock())
    # Not under the lock of all folders: an owner that is about to leave is waited for.
    with opening:
        with _lock:
            shared = _shared.get(identity)
            if shared is not None and not shared.engine.closed:
                _check_same(folder, shared, options, concurrent=concurrent)
                shared.handles += 1
                return identity, shared
        role = "concurrent" if concurrent else "embedded"
        shared = _Shared(Engine(folder, options.engine, role=role, shared=concurrent), options, concurrent=concurrent)
        with _lock:
            _shared[identity] = shared
        return identity, shared


def _check_same(folder: os.PathLike[str], shared: _Shared, options: OpenOptions, *, concurrent: bool) -> None:
    if shared.concurrent is not concurrent:
        other = "open_concurrent()" if shared.concurrent else "open()"
        raise ConfigurationError(
            f"the database {folder} is open in this process with Database.{other} already.",
            remediation="Open it the same way, or share that handle.",
        )
    if shared.options != options:
        raise ConfigurationError(
            f"the database {folder} is open in this process with another config already.",
            remediation="Give the same config, or share that handle.",
        )


def _unshare(identity: _FolderId, shared: _Shared) -> None:
    with _lock:
        opening = _opening.setdefault(identity, threading.Lock())
    # Whoever opens the folder meanwhile waits here: until it is closed it would look like another owner's.
    with opening:
        with _lock:
            shared.handles -= 1
            if shared.handles:
                return
        try:
            shared.close()
        finally:
            with _lock:
                if _shared.get(identity) is shared:
                    del _shared[identity]


def _unshare_dropped(identity: _FolderId, shared: _Shared, token: object, sql: LazySql) -> None:
    """Close what a handle that nobody closed has left."""
    with contextlib.suppress(ToonDBError):
        Transaction._end_all(shared.engine, token)
        sql.close()
        _unshare(identity, shared)


class Database(EmbeddedStore):
    """A database in this process: the same store as behind a daemon, without one. Safe to share between threads.

    Make one with :meth:`open` (this process alone) or :meth:`open_concurrent` (together with other processes). Several
    handles of one folder in one process share one engine. It cannot be used in a forked child.
    """

    def __init__(self, identity: _FolderId, shared: _Shared) -> None:
        self._identity = identity
        self._shared = shared
        self._engine = shared.engine
        self._close_lock = threading.Lock()
        self._closed = False
        self._plugins: PluginRegistry | None = None
        self._sql = LazySql(shared.engine, shared.options.sql)
        # Marks the transactions of this handle: they must not keep it alive.
        self._token = object()

    @classmethod
    def open(cls, path: str | os.PathLike[str], config: Mapping[str, Any] | None = None) -> Database:
        """Open a database for this process alone; the folder is created when missing (its parent is not).

        Args:
            path: The database folder.
            config: See :func:`toondb.config.open_options`: ``create_if_missing``, ``sync_mode``, ``wal_enabled``,
                ``memtable_size_bytes``, ``map_size_bytes``, ``change_history_bytes``, ``foreign_keys``,
                ``statement_timeout_ms``.

        Raises:
            DatabaseLockedError: Another process has it open; the error names it, and the daemon's socket.
            ConfigurationError: The folder or the config cannot be.
            DatabaseNotFoundError: There is none, and ``create_if_missing`` is False.
            CorruptionError, StorageError: Its files cannot be used.
        """
        return cls._opened(path, open_options(config), concurrent=False)

    @classmethod
    def open_concurrent(cls, path: str | os.PathLike[str], config: Mapping[str, Any] | None = None) -> Database:
        """Open a database together with other processes that do the same.

        Each sees the commits of the others at once, and conflicts between them are found as between threads. Beside
        a daemon it is opened for reading only. An exclusive owner (:meth:`open`, or a maintenance command) is waited
        for, for 5 seconds at the most.

        Args:
            path: The database folder.
            config: See :meth:`open`. The same in every process, as far as it says how data is stored.

        Raises:
            DatabaseLockedError: An exclusive owner stayed.
            ConfigurationError, DatabaseNotFoundError, CorruptionError, StorageError: See :meth:`open`.
        """
        return cls._opened(path, open_options(config), concurrent=True)

    @classmethod
    def _opened(cls, path: str | os.PathLike[str], options: OpenOptions, *, concurrent: bool) -> Database:
        return finished(lambda: cls(*_share(path, options, concurrent=concurrent)), cls.close)

    @staticmethod
    def to_toon(
        table: str,
        records: Iterable[Mapping[str, Any]],
        fields: Sequence[str] | None = None,
        *,
        dialect: str = "classic",
    ) -> str:
        """Records as TOON text; see :func:`toondb.toon.to_toon`."""
        return toon.to_toon(table, records, fields, dialect=dialect)

    @staticmethod
    def from_toon(text: str, *, dialect: str = "classic") -> tuple[str, list[str], list[dict[str, Any]]]:
        """The table name, fields and records of a TOON text; see :func:`toondb.toon.from_toon`."""
        return toon.from_toon(text, dialect=dialect)

    @property
    def path(self) -> str:
        """The absolute path of the database folder."""
        return str(self._engine.folder)

    @property
    def is_concurrent(self) -> bool:
        """Whether other processes may have it open, too."""
        return self._engine.access is not Access.EXCLUSIVE

    @property
    def read_only(self) -> bool:
        """Whether it was opened beside a daemon, for reading only."""
        return self._engine.access is Access.READ

    @property
    def plugins(self) -> PluginRegistry:
        """The plugins of this handle: Python code that is called when its SQL changes rows."""
        if self._plugins is None:
            from toondb.plugins import PluginRegistry

            with self._close_lock:
                if self._plugins is None:
                    plugins = PluginRegistry()
                    self._sql.fire(plugins)
                    self._plugins = plugins
        return self._plugins

    # Keys

    def get(self, key: KeyLike) -> bytes | None:
        return self._engine.get(key if type(key) is bytes else as_key(key))

    def put(self, key: KeyLike, value: BytesLike, *, ttl: float | None = None) -> None:
        self._write([(as_key(key), timed(as_value(value), ttl))])

    def delete(self, key: KeyLike) -> None:
        self._write([(as_key(key), None)])

    def _write(self, units: list[Any]) -> None:
        result = self._engine.write(units)[0]
        if isinstance(result, ToonDBError):
            raise result

    def exists(self, key: KeyLike) -> bool:
        return self._engine.get(as_key(key)) is not None

    def _decide(self, unit: Conditional) -> Any:
        return self._engine.apply(unit)

    def ttl(self, key: KeyLike) -> float | None:
        return seconds_left(*self._engine.get_with_expiry(as_key(key)))

    def delete_path(self, path: str | Sequence[str], *, recursive: bool = False) -> None:
        key = as_key(path_key(path))
        if recursive:
            # Decided by the writer: a commit beside it is deleted as a whole, or comes after it as a whole.
            self._write([DeleteTree(key)])
        else:
            self._write([(key, None)])

    def get_many(self, keys: Iterable[KeyLike]) -> dict[Any, bytes]:
        given = given_keys(keys)
        snapshot = self._engine.snapshot()
        try:
            found = {name: value for name, _ in given if (value := snapshot.get(name)) is not None}
        finally:
            snapshot.close()
        self._engine.bytes_read += sum(map(len, found.values()))
        return answer_by_given(given, found)

    def put_many(self, items: Items, *, ttl: float | None = None) -> int:
        check_ttl(ttl)
        values, count = pairs_as_dict(items)
        if values:
            self._atomically(lambda transaction: put_pairs(transaction, values, ttl))
        return count

    def delete_many(self, keys: Iterable[KeyLike]) -> int:
        names = [name for name, _ in given_keys(keys)]

        def delete(transaction: EngineTransaction) -> None:
            for name in names:
                transaction.delete(name)

        if names:
            self._atomically(delete)
        return len(names)

    def _atomically(self, write: Callable[[EngineTransaction], None]) -> None:
        """Run writes in a transaction of their own. To the caller it is one plain write, which never conflicts."""
        transaction = self._engine.begin()
        transaction.blind = True
        try:
            write(transaction)
            self._engine.commit(transaction)
        except BaseException:
            with contextlib.suppress(ToonDBError):
                self._engine.abort(transaction)
            raise

    def _batches(self, scan: ScanRange) -> Iterator[list[tuple[bytes, bytes]]]:
        engine = self._engine
        yield from pairs_of(engine.scan(scan.start, scan.end, reverse=scan.reverse), scan.limit, scan.batch, engine)

    def _with_sql(self, action: Callable[[SqlEngine | SqlSession], T]) -> T:
        self._engine.check_open()
        return action(self._sql())

    def _operate(self, operation: str, arguments: dict[str, Any]) -> Any:
        self._engine.check_open()
        return self._shared.collections().operate(operation, arguments)

    def _answer_query(self, body: Mapping[str, Any]) -> QueryAnswer:
        engine = self._engine
        snapshot = engine.snapshot()
        try:
            if not self._names_table(snapshot, body["prefix"]):
                return answer_query(snapshot, body, engine, None)
        finally:
            snapshot.close()
        from toondb.sql.table import find_table

        transaction = engine.begin(read_only=True)
        try:
            table = find_table(self._sql().session(transaction), body["prefix"])
            return answer_query(transaction, body, engine, table)
        finally:
            engine.commit_read_only(transaction)

    def _names_table(self, snapshot: Snapshot, name: bytes) -> bool:
        if not has_tables(snapshot):
            return False
        sql = self._sql()
        names = sql.table_names(snapshot)
        if names is None:
            sql.learn_tables()
            names = sql.table_names(snapshot)
        # When the schema changes just now, the one that is read decides.
        return names is None or name in names

    def pipeline(self) -> Pipeline:
        """Gather requests and execute them together; see :class:`Pipeline`."""
        return Pipeline(self, lambda writes: self._engine.write(list(writes)))

    # Changes

    def watch(
        self, prefix: KeyLike = b"", *, since_lsn: int | None = None, timeout: float | None = None
    ) -> Iterator[Change]:
        """The changes of the keys that start with ``prefix``, as they are committed.

        Args:
            prefix: Of the keys; empty = all.
            since_lsn: Begin with the changes after this commit; None = after now.
            timeout: End when no change came for so many seconds, 0 = with those that are there; None = never end.

        Yields:
            A :class:`Change` for each, in the order of the commits. The history is bounded: a watcher that lags too
            far behind is told.

        Raises:
            HistoryTrimmedError: The changes after ``since_lsn`` are no longer all there.
        """
        start = as_prefix(prefix)
        seconds = wait_seconds(timeout)
        # Asked for in any case: a closed database must not look like one without changes.
        _, now = _all(self._engine.read_changes(None))
        lsn = now if since_lsn is None else whole_number("since_lsn", since_lsn)
        return self._watch(lsn, start, prefix_end(start), seconds)

    def _watch(self, lsn: int, start: bytes, end: bytes | None, seconds: float | None) -> Iterator[Change]:
        engine = self._engine
        touched = time.monotonic()
        while not self.closed:
            before = lsn
            try:
                changes, lsn = _all(engine.read_changes(lsn, start, end))
            except DatabaseClosedError:
                return  # by its owner, or by the end of the process
            if changes:
                yield from changes
                touched = time.monotonic()
                continue
            if lsn != before:
                continue  # there may be more already
            left = _WATCH_WAIT_SECONDS if seconds is None else touched + seconds - time.monotonic()
            if left <= 0:
                return
            with contextlib.suppress(DatabaseClosedError):
                engine.wait_for_commit(lsn, min(left, _WATCH_WAIT_SECONDS))

    # Transactions

    def begin_transaction(self, isolation: str = "snapshot", *, read_only: bool = False) -> Transaction:
        """Begin a transaction; use it with ``with`` or end it by ``commit()`` or ``abort()``.

        Args:
            isolation: ``"snapshot"`` (first committer wins on written keys) or ``"serializable"`` (also
                whatever was read must be unchanged at commit).
            read_only: Refuse writes.
        """
        inner = self._engine.begin(Isolation(check_isolation(str(isolation))), read_only=read_only or self.read_only)
        return Transaction(self._engine, inner, self._token, self._sql, self._shared.collections)

    transaction = begin_transaction

    def run_transaction(
        self,
        function: Callable[[Transaction], T],
        *,
        isolation: str = "snapshot",
        attempts: int = 20,
    ) -> T:
        """Call ``function(transaction)`` and commit; on conflict, again from the start.

        Args:
            function: Must be safe to call again. It may commit or abort the transaction itself.
            isolation: See :meth:`begin_transaction`.
            attempts: Tries at the most; then the conflict is raised.

        Returns:
            What the function returned.
        """
        waits = conflict_delays(attempts)
        while True:
            transaction = self.begin_transaction(isolation)
            try:
                with transaction:
                    return function(transaction)
            except TransactionConflictError:
                wait = next(waits, None)
                if wait is None:
                    raise
            time.sleep(wait)

    def commit(self, transaction: Transaction | int) -> int:
        """Commit a transaction given as the object or its id; answers the LSN."""
        return Transaction._find(self._engine, transaction).commit()

    def abort(self, transaction: Transaction | int) -> None:
        """Abort a transaction given as the object or its id."""
        Transaction._find(self._engine, transaction).abort()

    # State

    def ping(self) -> float:
        """The time that a read of the newest commit takes, in seconds; over IPC it is the round trip."""
        started = time.perf_counter()
        _all(self._engine.read_changes(None))
        return time.perf_counter() - started

    def checkpoint(self) -> int:
        """Make everything committed so far durable, in any sync mode; answers the LSN."""
        return self._engine.checkpoint()

    def stats(self) -> dict[str, Any]:
        """The counters of the storage engine since it was opened; sizes in bytes.

        ``cache_hits`` and ``cache_misses`` are those of the daemon's reply cache. Embedded there is no cache but the
        page cache of the system, so both are 0.
        """
        return {**self._engine.stats(), "cache_hits": 0, "cache_misses": 0, "access": str(self._engine.access)}

    # End

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Close it. Idempotent.

        Its open transactions are aborted. The folder is given up with its last handle in this process.

        Raises:
            StorageError: Writes that were acknowledged in a lazy sync mode could not be synced. It is closed.
        """
        if self._engine.environment.forked or self._closed:
            return
        finished(self._close)

    def _close(self) -> None:
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            engine, self._engine = self._engine, _ClosedEngine(self._engine)  # type: ignore[assignment]
        # Other handles may keep the engine open.
        Transaction._end_all(engine, self._token)
        self._sql.close()
        del engine
        _unshare(self._identity, self._shared)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or self._engine.environment.forked:
            return
        self._closed = True
        left = self._identity, self._shared, self._token, self._sql
        if sys.is_finalizing() or self._engine.closed:
            _unshare_dropped(*left)
        else:
            # The collector runs anywhere, also on a thread that closing waits for, or under a lock that it takes.
            threading.Thread(target=_unshare_dropped, args=left, name="toondb-close", daemon=True).start()
        warnings.warn(f"the database {self.path} was not closed", ResourceWarning, stacklevel=2)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Database cannot be pickled; send its path and open it there")

    def __repr__(self) -> str:
        how = "closed" if self._closed else str(self._engine.access)
        return f"<Database {self.path} {how}>"


class _ClosedEngine:
    """What a closed handle has in the place of its engine, which other handles may still use."""

    def __init__(self, engine: Engine) -> None:
        self.folder, self.access, self.environment = engine.folder, engine.access, engine.environment

    def __getattr__(self, name: str) -> NoReturn:
        raise DatabaseClosedError("the database is closed.")


def _all(pages: Any) -> tuple[list[Change], int]:
    """The changes that a history gives, and where it ends."""
    changes: list[Change] = []
    while True:
        try:
            changes += next(pages)
        except StopIteration as stop:
            return changes, stop.value


class Transaction(TransactionStore):
    """A transaction of a :class:`Database`: a snapshot of when it began, with its own writes over it.

    With ``with`` it commits when the block ends and aborts when it raises. After its end every call raises
    ``TransactionError``.
    """

    _open: ClassVar[weakref.WeakValueDictionary[tuple[int, int], Transaction]] = weakref.WeakValueDictionary()

    def __init__(
        self, engine: Engine, inner: EngineTransaction, token: object, sql: LazySql, collections: LazyCollections
    ) -> None:
        # First what __del__ needs: Ctrl-C may come between any two of these.
        self._engine = engine
        self._token = token
        super().__init__(inner, engine, sql, collections)
        self._open[id(engine), inner.id] = self

    @classmethod
    def _find(cls, engine: Engine, transaction: Transaction | int) -> Transaction:
        """The transaction that an object or id means."""
        if isinstance(transaction, Transaction):
            return transaction
        if isinstance(transaction, bool) or not isinstance(transaction, int):
            raise ValidationError(f"a transaction or its id is needed, got {transaction!r:.60}.")
        found = cls._open.get((id(engine), transaction))
        if found is None or not found.active:
            raise TransactionClosedError(f"transaction {transaction!r} is not open here.")
        return found

    @classmethod
    def _end_all(cls, engine: Engine, token: object) -> None:
        """Abort the open transactions of a handle that is closed."""
        for reference in cls._open.valuerefs():
            transaction = reference()
            if transaction is not None and transaction._token is token:
                with contextlib.suppress(ToonDBError):  # its commit is under way
                    engine.abort(transaction._inner, DatabaseClosedError("the database was closed."))

    @property
    def id(self) -> int:
        """Its id, unique as long as the database is open."""
        return self._inner.id

    @property
    def active(self) -> bool:
        """Whether it can still be used."""
        return self._inner.state is State.ACTIVE

    def pipeline(self) -> Pipeline:
        """Gather requests inside this transaction and execute them together."""
        return Pipeline(self, self._put_all)

    def _put_all(self, writes: list[PipelineWrite]) -> list[object]:
        results: list[object] = []
        with self._guard:
            for write in writes:
                try:
                    if isinstance(write, tuple):
                        self._inner.put(*write)
                    else:
                        write.result = write.apply_in(self._inner)
                    results.append(None)
                except ToonDBError as error:
                    results.append(error)
        return results

    def commit(self) -> int:
        """Commit.

        Returns:
            The LSN of the commit.

        Raises:
            TransactionConflictError: Another transaction committed first; nothing of this one was applied.
        """
        with self._guard:
            return self._engine.commit(self._inner)

    def abort(self) -> None:
        """End it without applying anything. No error when it was aborted already."""
        with self._guard:
            if self._inner.state is State.COMMITTED:
                raise TransactionClosedError(f"transaction {self.id} is already committed.")
            self._engine.abort(self._inner)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is None:
            # One that was lost must not look committed because the block went on after the error.
            if self.active or self._inner.lost:
                self.commit()
            return
        if self.active:
            with contextlib.suppress(ToonDBError):  # the caller's exception matters more
                self.abort()

    def __del__(self) -> None:
        # Its snapshot would keep old pages of the file until the database is closed.
        inner = getattr(self, "_inner", None)
        if inner is None or inner.state is not State.ACTIVE or self._engine.environment.forked:
            return
        # Not by the engine, whose locks a collector on this thread may have met held.
        with contextlib.suppress(ToonDBError):
            if inner.abort():
                self._engine.transactions_aborted += 1
        warnings.warn(f"transaction {inner.id} was neither committed nor aborted", ResourceWarning, stacklevel=2)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a transaction cannot be pickled or copied")

    def __repr__(self) -> str:
        return f"<Transaction {self.id} {self._inner.state.value}>"
