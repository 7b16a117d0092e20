"""The server: admits sessions, hands writes to the engine and answers back, sweeps for limits, counts."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from toondb.collections.opening import LazyCollections
from toondb.engine.conditional import Conditional, Expire
from toondb.engine.engine import Engine
from toondb.engine.options import Isolation
from toondb.engine.transaction import Transaction
from toondb.engine.writer import Unit, WriteRequest
from toondb.sql.opening import LazySql
from toondb_protocol.errors import PeerNotAllowedError, TooManyClientsError, ToonDBError
from toondb_protocol.hello import FEATURES, ServerHello
from toondb_protocol.layout import encode_map
from toondb_protocol.opcodes import PROTOCOL_VERSION

from . import __version__
from .config import ServerConfig
from .listener import peer_credentials
from .mailbox import Mailbox
from .reply_cache import ReplyCache
from .requests import Parked
from .session import Session
from .short_reads import ShortReads
from .short_searches import ShortSearches
from .sql import SqlCursor
from .workers import Task, Workers

if TYPE_CHECKING:
    from toondb.sql.connection import Bindings, Outcome
    from toondb.sql.quick import QuickReader

__all__ = ["Server"]

_READING_THREADS = 8
_WRITING_THREADS = 32
_LONGEST_STEP_SECONDS = 10.0
_SWEEPS_PER_TIMEOUT = 4
_MIN_SWEEP_SECONDS = 0.02
_MAX_SWEEP_SECONDS = 1.0
_LONE_WRITER_STREAK = 4
_LONE_WRITER_UNITS = 64
_LONE_WRITER_BYTES = 64 * 1024
_LONE_WRITER_KEYS = 256
_LONE_WRITER_SECONDS = 0.005
_LONE_WRITER_PAUSE = 0.1


class Server:
    """All connections of one daemon.

    Args:
        engine: The open engine.
        config: The daemon's options.
        loop: The running event loop.
        log: Logger.
        activated: The socket came from a service manager.
    """

    def __init__(
        self,
        engine: Engine,
        config: ServerConfig,
        loop: asyncio.AbstractEventLoop,
        log: Any,
        *,
        activated: bool = False,
    ) -> None:
        self.engine = engine
        self.config = config
        self.loop = loop
        self.log = log
        self.reader = engine.reader()
        self.sessions: set[Session] = set()
        self.draining = False
        self._drained = asyncio.Event()
        self._started = time.monotonic()
        # Commits were made: a view from before them must not pin old pages while nobody reads.
        self._finished = Mailbox(loop, self.reader.release, self._deliver)
        self._stepped = Mailbox(loop, self.reader.release_old, self._task_stepped)
        self._sweep_seconds = min(
            _MAX_SWEEP_SECONDS, max(_MIN_SWEEP_SECONDS, config.timeout_ms / 1000 / _SWEEPS_PER_TIMEOUT)
        )
        self._sweeper: asyncio.TimerHandle | None = None
        self.on_sweep: Callable[[], None] = lambda: None
        self.cache = ReplyCache(engine.environment, config.cache_size)
        self.find_reply = self.cache.find
        # SQL runs on threads: a heavy query must not keep anybody waiting.
        self.sql = LazySql(engine, config.sql_options())
        self.collections = LazyCollections(engine)
        self.workers = Workers(_READING_THREADS, "toondb-sql")
        self.writing_workers = Workers(_WRITING_THREADS, "toondb-sql-write")
        self._quick: QuickReader | None = None
        self.short_reads: ShortReads | None = None
        self.short_searches = ShortSearches(self)
        self.tasks: set[Task] = set()
        self.sql_cursors: set[SqlCursor] = set()
        # Sessions whose job sleeps until a step of its task is done.
        self._waiting: set[Session] = set()
        # Sessions whose job sleeps until a commit, each with what ends its sleep at the latest.
        self._parked: dict[Session, asyncio.TimerHandle] = {}
        self._waking = False
        engine.writer.on_commit += (self.cache.committed, self._commit_announced)
        # Who sent something last, and how many times in a row it wrote.
        self.active: Session | None = None
        self.streak = 0
        # Sessions that wait for their next turn, and those that run a job.
        self.turns_due = 0
        self.jobs = 0
        self._no_lone_writer_before = 0.0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.requests_total = 0
        self.requests_error = 0
        self.connections_total = 0
        self.connections_rejected = 0
        self.connections_dropped = 0
        self.hello = ServerHello(
            version=PROTOCOL_VERSION,
            features=frozenset(FEATURES),
            software=f"toondb-server/{__version__}",
            pid=os.getpid(),
            database=str(engine.folder),
            socket="" if activated else config.socket_path,
            max_frame=config.max_frame,
            timeout_ms=config.timeout_ms,
            instance=uuid.uuid4().hex,
            sync_mode=str(config.sync_mode),
        )
        self.hello_payload = encode_map(self.hello.to_wire())

    # Sessions

    def admit(self, session: Session, transport: asyncio.Transport) -> ToonDBError | None:
        """Register a new connection, or say why it is refused."""
        self.connections_total += 1
        sock = transport.get_extra_info("socket")
        peer = peer_credentials(sock) if sock is not None else None
        session.peer = f"pid {peer.pid} uid {peer.uid}" if peer is not None else "unknown"
        allowed = self.config.allow_uids
        refusal: ToonDBError | None = None
        if allowed and (peer is None or peer.uid not in allowed):
            refusal = PeerNotAllowedError(f"uid {peer.uid if peer else 'unknown'} may not use this server.")
        elif self.draining:
            refusal = TooManyClientsError("the server is stopping.", remediation="Connect again in a moment.")
        elif len(self.sessions) >= self.config.max_clients:
            refusal = TooManyClientsError(f"the server already serves {self.config.max_clients} clients.")
        if refusal is not None:
            self.connections_rejected += 1
            self.log.warning("connection refused", peer=session.peer, code=str(refusal.code))
            return refusal
        self.sessions.add(session)
        self.log.debug("connected", peer=session.peer, connections=len(self.sessions))
        return None

    def forget(self, session: Session, exc: Exception | None) -> None:
        """Note that a connection is gone."""
        if session in self.sessions:
            self.sessions.discard(session)
            if self.active is session:
                self.active = None
            self.log.debug("disconnected", peer=session.peer, connections=len(self.sessions), error=_text(exc))
        if self.draining and not self.sessions:
            self._drained.set()

    def count(self, requests: int, errors: int) -> None:
        """Count executed requests and those answered with an ERROR."""
        self.requests_total += requests
        self.requests_error += errors

    # Writes

    def commit_now(self, session: Session, units: list[Unit]) -> list[int | ToonDBError] | None:
        """Commit on the event loop when one client alone keeps writing and nobody else waits; else None.

        A client that begins to talk meanwhile waits for that one sync at the most: what it sends ends the
        streak. A slow device ends this for a while.
        """
        if self.active is not session:
            self.active = session
            self.streak = 0
        self.streak += 1
        if self.streak < _LONE_WRITER_STREAK or len(units) > _LONE_WRITER_UNITS or not all(map(_is_small, units)):
            return None
        # Another client's scan or held input; its writes would keep the writer busy.
        if self.turns_due or self.jobs:
            return None
        started = time.monotonic()
        if started < self._no_lone_writer_before:
            return None
        results = self.engine.commit_now(units)
        if results is not None:
            self.reader.release()
            now = time.monotonic()
            if now - started > _LONE_WRITER_SECONDS or any(isinstance(result, ToonDBError) for result in results):
                self._no_lone_writer_before = now + _LONE_WRITER_PAUSE
        return results

    def writes_done(self, request: WriteRequest) -> None:
        """Called on the writer thread: bring the results to the event loop, once per batch of them."""
        self._finished.put(request)

    def _deliver(self, request: WriteRequest) -> None:
        session, styles = request.tag
        self._guarded(session, lambda: session.writes_done(request, styles))

    def _guarded(self, session: Session, act: Callable[[], object]) -> None:
        """Act for a session; the others behind it must get their answers."""
        try:
            act()
        except Exception as error:
            self.log.error("internal error", peer=session.peer, exc_info=error)
            session.drop()

    @property
    def threads_busy(self) -> bool:
        """Whether a worker thread has something to do."""
        return self.workers.busy or self.writing_workers.busy

    # Jobs that wait for a commit

    def park(self, session: Session, parked: Parked) -> None:
        """Let the job of a session sleep until a commit comes, or its time is over."""
        self._parked[session] = self.loop.call_later(parked.seconds, self.wake, session)
        # A sleeping job keeps nobody waiting.
        self.jobs -= 1
        # In this order: a commit that is announced from now on finds the session.
        if self.engine.environment.announced_lsn > parked.lsn or self.draining:
            self.wake(session)

    def quick_sql(self, text: str, params: Bindings) -> Outcome | None:
        """Run a short read here and now; None = it has to go to a thread."""
        if self._quick is None:
            from toondb.sql.quick import QuickReader

            self._quick = QuickReader(self.sql())
            self.short_reads = ShortReads(self._quick, self.config.max_frame, self.config.cache_size // 4)
        return self._quick.run(text, params)

    def wait_for_task(self, session: Session) -> None:
        """Let the job of a session sleep until a step of its task is done."""
        self._waiting.add(session)
        self.jobs -= 1

    def task_stepped(self, session: Session) -> None:
        """Called on the worker thread when a step of a session's task is done."""
        self._stepped.put(session)

    def _task_stepped(self, session: Session) -> None:
        if self.unpark(session):
            self._guarded(session, session.step)

    def unpark(self, session: Session) -> bool:
        """Wake the job of a session without stepping it; whether it slept."""
        if session in self._waiting:
            self._waiting.discard(session)
            self.jobs += 1
            return True
        timer = self._parked.pop(session, None)
        if timer is None:
            return False
        timer.cancel()
        self.jobs += 1
        return True

    def wake(self, session: Session) -> None:
        """Step the job of a session if it sleeps."""
        if self.unpark(session):
            session.step_soon()

    def _commit_announced(self, keys: Iterable[bytes]) -> None:
        """Called by whoever committed."""
        if self._quick is not None:
            self._quick.committed()
        if self._parked and not self._waking:
            self._waking = True
            try:
                self.loop.call_soon_threadsafe(self._wake_parked)
            except RuntimeError:
                pass  # the loop is closed: a shutdown was forced

    def _wake_parked(self) -> None:
        self._waking = False
        for session in list(self._parked):
            self.wake(session)

    # Limits

    def start(self) -> None:
        """Begin to sweep."""
        self._sweeper = self.loop.call_later(self._sweep_seconds, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(self._sweep_seconds, self._sweep)
        now = self.loop.time()
        timeout = self.config.timeout_ms / 1000
        for session in list(self.sessions):
            if session.abandoned():
                session.drop()
                continue
            why = session.overdue(now, timeout)
            if why is not None:
                self.connections_dropped += 1
                self.log.warning("connection dropped", peer=session.peer, reason=why)
                session.drop(why)
        ended = self.engine.expire() + self._expire_statements()
        if ended:
            self.log.warning("expired transactions or cursors", count=ended)
        if not self.draining:
            self.on_sweep()

    def _expire_statements(self) -> int:
        now = time.monotonic()
        options = self.engine.options
        ended = 0
        for cursor in list(self.sql_cursors):
            if cursor.expired:
                continue
            if cursor.paused and now - cursor.touched_at > options.transaction_idle_seconds:
                cursor.expire(f"idle for more than {options.transaction_idle_seconds:g} s")
            elif not cursor.transaction and now - cursor.opened_at > options.transaction_age_seconds:
                cursor.expire(f"open for more than {options.transaction_age_seconds:g} s")
            else:
                continue
            ended += 1
        for session in self.sessions:
            for kind, parts in list(session.parts.items()):
                if now - parts.touched_at > options.transaction_idle_seconds:
                    del session.parts[kind]
                    ended += 1
        return ended

    async def drain(self, grace: float) -> None:
        """Finish what was received on every connection, then close them all.

        Args:
            grace: Seconds after which the rest is cut off.
        """
        self.draining = True
        self._wake_parked()
        for session in list(self.sessions):
            session.drain()
        if self.sessions:
            try:
                await asyncio.wait_for(self._drained.wait(), grace)
            except TimeoutError:
                self.log.warning("connections cut off", count=len(self.sessions))
                for session in list(self.sessions):
                    session.drop()
                await asyncio.sleep(0)

    def stop(self) -> None:
        """Stop sweeping and let the cached view go."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in list(self.tasks):
            task.cancel()
        # Some functions of SQLite cannot be interrupted.
        deadline = time.monotonic() + _LONGEST_STEP_SECONDS
        for workers in (self.workers, self.writing_workers):
            workers.close()
        for workers in (self.workers, self.writing_workers):
            workers.join(deadline)
        if self._quick is not None:
            self._quick.close()
        self.collections.close()
        self.sql.close()
        self.reader.release()

    # Statistics

    def stats(self) -> dict[str, Any]:
        """Counters of the server and of the storage engine."""
        engine = self.engine.stats()
        engine["bytes_read"] += self.reader.bytes_read
        # What the reply cache answers is counted once, there.
        requests = self.requests_total + self.cache.hits
        return {
            "connections_active": len(self.sessions),
            "connections_total": self.connections_total,
            "connections_rejected": self.connections_rejected,
            "connections_dropped": self.connections_dropped,
            "requests_success": requests - self.requests_error,
            "requests_error": self.requests_error,
            "requests_total": requests,
            "cache_hits": self.cache.hits,
            "cache_misses": self.cache.misses,
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
            "uptime_secs": int(time.monotonic() - self._started),
            "pid": os.getpid(),
            "version": __version__,
            "max_clients": self.config.max_clients,
            "cache_entries": self.cache.entries,
            "open_cursors": sum(len(session.cursors) + len(session.sql_cursors) for session in self.sessions),
            **engine,
        }


def _text(exc: Exception | None) -> str | None:
    return None if exc is None else f"{type(exc).__name__}: {exc}"


def _is_small(unit: Unit) -> bool:
    """Whether a write is certain to keep the event loop busy only for as long as the device needs."""
    if isinstance(unit, tuple):
        return unit[1] is None or len(unit[1]) <= _LONE_WRITER_BYTES
    if isinstance(unit, Conditional):
        # Another time to live writes the value again, whatever size it has.
        return unit.size <= _LONE_WRITER_BYTES and not isinstance(unit, Expire)
    return (
        isinstance(unit, Transaction)
        and unit.isolation is Isolation.SNAPSHOT
        and unit.size <= _LONE_WRITER_BYTES
        and unit.written_count <= _LONE_WRITER_KEYS
    )
