"""One client connection: cuts frames, keeps replies in request order, applies backpressure both ways.

The order of replies is kept by executing in order. Reads are answered in the receiving callback. Consecutive
writes are gathered into one request to the writer thread, so a pipelining client shares one commit; whatever
comes after them waits until they are answered. A scan or query runs as a job, a generator that is stepped
between other connections' events and only while the client drains its replies.
"""

from __future__ import annotations

import asyncio
import select
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import lmdb

from toondb.engine.conditional import Conditional
from toondb.engine.environment import storage_error
from toondb.engine.transaction import State, Transaction
from toondb.engine.writer import Unit, WriteRequest
from toondb_protocol.errors import (
    FrameTooLargeError,
    InternalError,
    OperationTimeoutError,
    ToonDBError,
    UnknownOpcodeError,
    error_from_wire,
)
from toondb_protocol.frames import HEADER_SIZE, pack_header, unpack_header
from toondb_protocol.layout import encode_map
from toondb_protocol.opcodes import EXTENDED, Opcode, Reply

from .handlers import HANDLERS, PURE, result_frame
from .parts import Parts
from .reply_cache import is_cacheable
from .requests import Answered, Job, Kind, Parked, Refused, Volatile, Waiting, Write
from .sql import SqlCursor, drop_sql_cursor
from .streams import Cursor

if TYPE_CHECKING:
    from toondb.engine.snapshot import Snapshot

    from .server import Server

__all__ = ["Session", "error_frame"]

_MAX_REQUESTS_PER_TURN = 512
_MAX_REPLY_BYTES_PER_TURN = 256 * 1024
_MAX_WRITES_PER_REQUEST = 4096
_MAX_HELD_BYTES = 1024 * 1024
_WRITE_HIGH_WATER = 1024 * 1024
_MAX_BYTES_PER_TURN = 256 * 1024
_MAX_CHUNKS = 256
_MAX_ERROR_BYTES = 4096
_SHORT = 200
_UNKNOWN = Kind.UNKNOWN  # a global is found faster than a member of an enum, for every request

_OK = pack_header(Reply.OK, 0)
_TXN_ID_HEADER = pack_header(Reply.TXN_ID, 8)
_NO_TXN = bytes(8)


def error_frame(error: ToonDBError, *, extended: bool, max_frame: int) -> bytes:
    """An ERROR frame in the form of the request it answers, never over the frame cap."""
    payload = encode_map(error.to_wire()) if extended else error.to_text().encode()
    if len(payload) > min(max_frame, _MAX_ERROR_BYTES):
        # A message may quote what was sent, which may be anything.
        wire = {**error.to_wire(), "message": error.message[:_SHORT] + " ...", "details": {}}
        short = error_from_wire({**wire, "remediation": error.remediation[:_SHORT]})
        payload = encode_map(short.to_wire()) if extended else short.to_text().encode()
    return pack_header(Reply.ERROR, len(payload)) + payload


def _not_connected(data: bytes) -> None:
    raise AssertionError("the session is not connected")


class Session(asyncio.Protocol):
    """The server's side of one connection."""

    __slots__ = (
        "_awaiting",
        "_chunks",
        "_closing",
        "_drained",
        "_eof",
        "_held",
        "_job",
        "_job_extended",
        "_joined",
        "_loop",
        "_max_frame",
        "_need",
        "_partial_since",
        "_reading_paused",
        "_sent",
        "_server",
        "_skip",
        "_step_due",
        "_stuck_since",
        "_transport",
        "_write",
        "_writing_paused",
        "_yielded",
        "cursors",
        "engine",
        "next_cursor",
        "parts",
        "peer",
        "reader",
        "sql_cursors",
        "transactions",
        "uses_sql",
        "view",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self.engine = server.engine
        self.reader = server.reader
        self._loop = server.loop
        self._max_frame = server.config.max_frame
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._write: Callable[[bytes], None] = _not_connected
        self.peer: str = ""
        self.transactions: dict[int, Transaction] = {}
        self.cursors: dict[int, Cursor] = {}
        self.sql_cursors: dict[int, SqlCursor] = {}
        # Requests whose last part is still to come, one of each kind.
        self.parts: dict[str, Parts] = {}
        # A transaction of this session may have SQL to write at its commit, which is then no plain write.
        self.uses_sql = False
        self.next_cursor = 1
        # Input that is not processed yet: an incomplete frame, or anything while the session is busy.
        self._chunks: list[bytes] = []
        self._joined = 0
        self._held = 0
        self._need = HEADER_SIZE
        self._skip = 0
        self._partial_since: float | None = None
        self._stuck_since: float | None = None
        self._sent = 0
        self._drained = 0
        self._awaiting = False
        self._yielded = False
        self._step_due = False
        self._job: Job | None = None
        self._job_extended = False
        # What the latest job reads; kept from expiring while the client makes progress with its rows.
        self.view: Snapshot | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._closing = False
        self._eof = False

    @property
    def server(self) -> Server:
        """The server this session belongs to."""
        return self._server

    # Transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write = self._transport.write
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        refusal = self._server.admit(self, self._transport)
        if refusal is not None:
            self._closing = True
            self._transport.write(error_frame(refusal, extended=False, max_frame=self._max_frame))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        job = self._end_job()
        if job is not None:
            job.close()
        for cursor in self.cursors.values():
            cursor.scan.close()
        self.cursors.clear()
        for statement in list(self.sql_cursors.values()):
            drop_sql_cursor(self, statement)
        self.parts.clear()
        for transaction in self.transactions.values():
            # One that is with the writer thread is settled when the writer answers.
            if transaction.state is State.ACTIVE:
                self.engine.abort(transaction)
        self.transactions.clear()
        self._chunks.clear()
        self._held = 0
        self._server.forget(self, exc)

    def eof_received(self) -> bool:
        self._eof = True
        if self._busy and self._peer_gone():
            # Nobody is left to answer: a long query need not run to its end first.
            self._transport.abort()
        elif not self._busy:
            self._chunks.clear()
            self._transport.close()
        else:
            # A client that sends no more waits for its answers: nothing sleeps for it any longer.
            self._server.wake(self)
        return True

    @property
    def input_ended(self) -> bool:
        """Whether the client has said that it sends no more."""
        return self._eof

    def _peer_gone(self) -> bool:
        """Whether the peer closed altogether, and not only its sending side to wait for the replies."""
        if sys.platform != "linux":
            return False
        waiter = select.poll()
        # Linux reports POLLHUP on a Unix socket when both directions are shut, see unix_poll().
        waiter.register(self._transport.get_extra_info("socket").fileno(), 0)
        return bool(waiter.poll(0))

    def abandoned(self) -> bool:
        """Whether a job runs for a peer that is gone; nothing tells of its end while its input is not read."""
        return self._job is not None and (self._eof or self._reading_paused) and self._peer_gone()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        # Not at once: a transport that is closed within this call by asyncio's own loop (CPython 3.11 to 3.14)
        # reports its end twice.
        if self._job is not None:
            self.step_soon()
        elif not self._awaiting and not self._yielded:
            self._yield()

    def data_received(self, data: bytes) -> None:
        server = self._server
        size = len(data)
        server.bytes_received += size
        if server.active is not self:
            server.active = self
            server.streak = 0
        if self._closing:
            return
        if not (
            size < HEADER_SIZE
            or self._held
            or self._skip
            or self._awaiting
            or self._yielded
            or self._writing_paused
            or self._job is not None
        ):
            hit = server.find_reply(data)
            if hit is not None:
                sent = len(hit)
                self._sent += sent
                server.bytes_sent += sent
                self._write(hit)
                return
            opcode, length = unpack_header(data)
            if length == size - HEADER_SIZE and (pure := PURE.get(opcode)) and length <= self._max_frame:
                # The usual case of a read: one frame, whole, and nothing under way. It is executed again
                # below when it fails, which is safe because it changes nothing.
                mark = self.engine.environment.mark
                try:
                    reply = pure(self, data[HEADER_SIZE:])
                except Exception:
                    reply = None
                if type(reply) is bytes or type(reply) is Volatile:
                    if type(reply) is bytes and is_cacheable(opcode, data):
                        server.cache.fill(data, reply, mark)
                    server.requests_total += 1
                    self._sent += len(reply)
                    server.bytes_sent += len(reply)
                    self._transport.write(reply)
                    return
        if self._held or self._busy:
            self._hold(data)
            if self._busy:
                if self._held > _MAX_HELD_BYTES and not self._reading_paused:
                    self._reading_paused = True
                    self._transport.pause_reading()
                return
            if self._held < self._need:
                return
            data = self._take_held()
        if self._skip:
            data = self._skip_oversized(data)
            if not data:
                return
        self._process(data)

    # Input

    @property
    def _busy(self) -> bool:
        return self._awaiting or self._yielded or self._writing_paused or self._job is not None

    def _hold(self, data: bytes) -> None:
        """Keep input that is not processed yet."""
        chunks = self._chunks
        chunks.append(data)
        self._held += len(data)
        if len(chunks) - self._joined > _MAX_CHUNKS:
            # A trickle of tiny pieces would take many times its size; every byte is copied once more, not again
            # and again.
            chunks[self._joined :] = [b"".join(chunks[self._joined :])]
            self._joined += 1

    def _take_held(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._joined = 0
        self._held = 0
        return data

    def _resume(self) -> None:
        """Go on with held input after whatever kept the session busy."""
        if self._closing and not self._held:
            self._finish()
            return
        if self._transport.is_closing():
            return
        if self._partial_since is not None:
            # Time that the server needed is not the client's.
            self._partial_since = self._loop.time()
        data = self._take_held()
        if self._skip and data:
            data = self._skip_oversized(data)
        if data:
            self._process(data)
        if self._reading_paused and not self._busy and not self._closing:
            self._reading_paused = False
            self._transport.resume_reading()
        if not self._busy and (self._eof or self._closing):
            self._finish()

    def _finish(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()

    def _skip_oversized(self, data: bytes) -> bytes:
        """Drop the payload of a frame over the cap, unread; what follows it is input again."""
        if len(data) <= self._skip:
            self._skip -= len(data)
            if not self._skip:
                self._partial_since = None
            return b""
        rest = data[self._skip :]
        self._skip = 0
        self._partial_since = None
        return rest

    def _process(self, data: bytes) -> None:
        """Execute the complete frames in ``data`` in order, as far as this turn allows."""
        out: list[bytes] = []
        out_bytes = 0
        writes: list[Unit] = []
        styles: list[Write] = []
        at, size = 0, len(data)
        need = HEADER_SIZE
        requests = errors = 0
        max_frame = self._max_frame
        turn_over = waits = False
        while size - at >= HEADER_SIZE:
            opcode, length = unpack_header(data, at)
            handler, kind = HANDLERS[opcode]
            if length > max_frame or kind is _UNKNOWN:
                # Answered on the header; the payload is never kept.
                if writes:
                    need = 0
                    break
                requests += 1
                errors += 1
                refusal = self._refused(opcode, length, known=kind is not _UNKNOWN)
                out.append(refusal)
                out_bytes += len(refusal)
                if kind is _UNKNOWN and length > max_frame:
                    # Nothing says where the next frame begins.
                    self._closing = True
                    at = size
                    break
                at += HEADER_SIZE
                self._skip = max(0, length - (size - at))
                at = min(size, at + length)
                if self._skip:
                    self._partial_since = self._loop.time()
                elif requests >= _MAX_REQUESTS_PER_TURN or out_bytes > _MAX_REPLY_BYTES_PER_TURN:
                    turn_over = True
                    break
                continue
            end = at + HEADER_SIZE + length
            if end > size:
                need = end - at
                break
            if writes and (
                kind is Kind.READ
                or (kind is Kind.COMMIT and self.uses_sql)
                or (kind is Kind.WRITE_IF_AUTOCOMMIT and data[at + HEADER_SIZE : at + HEADER_SIZE + 8] != _NO_TXN)
                or len(writes) >= _MAX_WRITES_PER_REQUEST
            ):
                need = 0
                break
            if (requests >= _MAX_REQUESTS_PER_TURN or at > _MAX_BYTES_PER_TURN) and not writes:
                turn_over = True
                break
            requests += 1
            payload = data[at + HEADER_SIZE : end]
            at = end
            try:
                reply: Any = handler(self, payload)
            except Exception as error:
                failure = error if isinstance(error, ToonDBError) else self._internal(error, opcode)
                if writes:
                    writes.append(Refused(failure))
                    styles.append(Write.EXTENDED if opcode & EXTENDED else Write.CLASSIC)
                    continue
                errors += 1
                reply = error_frame(failure, extended=bool(opcode & EXTENDED), max_frame=max_frame)
            if isinstance(reply, bytes):
                out.append(reply)
                out_bytes += len(reply)
            elif type(reply) is tuple:
                unit, style = reply
                if type(unit) is Answered and not writes:
                    out.append(_TXN_ID_HEADER + unit.lsn.to_bytes(8, "little"))
                    continue
                writes.append(unit)
                styles.append(style)
            else:
                # Most scans end within one turn; only a longer one becomes the session's job.
                failed = False
                while out_bytes <= _MAX_REPLY_BYTES_PER_TURN:
                    frame, ended, failed = self._next_frame(reply, extended=bool(opcode & EXTENDED))
                    if isinstance(frame, Waiting):
                        waits = True
                        frame = None
                    elif isinstance(frame, Parked):
                        frame = None  # it asks again when it is stepped as a job
                    if frame is not None:
                        out.append(frame)
                        out_bytes += len(frame)
                    if ended:
                        break
                    if frame is None:
                        self._job = reply
                        break
                else:
                    self._job = reply
                errors += failed
                if self._job is not None:
                    self._server.jobs += 1
                    self._job_extended = bool(opcode & EXTENDED)
                    break
            if out_bytes > _MAX_REPLY_BYTES_PER_TURN:
                turn_over = True
                break
        rest = data[at:] if at else data
        if rest:
            self._hold(rest)
        self._need = need
        if rest and need and not turn_over and self._job is None:
            if requests or self._partial_since is None:
                self._partial_since = self._loop.time()
        elif not self._skip:
            self._partial_since = None
        self._server.count(requests, errors)
        if out:
            self._send(b"".join(out) if len(out) > 1 else out[0])
        if writes:
            self._awaiting = True
            try:
                results = self._server.commit_now(self, writes)
                if results is not None:
                    self._answer_writes(results, writes, styles)
                    self._yield()
                    return
                self.engine.submit(writes, self._server.writes_done, (self, styles))
            except ToonDBError as error:
                self._answer_writes([error] * len(writes), writes, styles)
                self._yield()
        elif waits:
            self._server.wait_for_task(self)
        elif self._job is not None:
            self.step_soon()
        elif turn_over and not self._writing_paused:
            self._yield()
        elif self._closing:
            self._finish()

    def _yield(self) -> None:
        """Go on after other connections had their turn."""
        self._yielded = True
        self._server.turns_due += 1
        self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._yielded = False
        self._server.turns_due -= 1
        if not self._transport.is_closing() and not self._busy:
            self._resume()

    def _refused(self, opcode: int, length: int, *, known: bool) -> bytes:
        error: ToonDBError
        extended = bool(opcode & EXTENDED)
        if known:
            error = FrameTooLargeError(
                f"the frame announces {length} bytes, the cap is {self._max_frame}.",
                details={"limit": self._max_frame, "actual": length},
            )
        elif length <= self._max_frame:
            error = UnknownOpcodeError(f"opcode 0x{opcode:02x} is not one of the 14 requests.")
        else:
            extended = False
            error = UnknownOpcodeError(
                f"opcode 0x{opcode:02x} is unknown and its frame announces {length} bytes: the stream is not "
                "the ToonDB protocol and the connection is closed."
            )
        return error_frame(error, extended=extended, max_frame=self._max_frame)

    def _internal(self, error: Exception, opcode: int) -> ToonDBError:
        if isinstance(error, lmdb.Error):
            return storage_error(error, "reading")
        self._server.log.error("internal error", opcode=f"0x{opcode:02x}", peer=self.peer, exc_info=error)
        return InternalError(f"the server failed on this request: {type(error).__name__}.")

    # Output

    def _send(self, data: bytes) -> None:
        self._server.bytes_sent += len(data)
        self._sent += len(data)
        self._transport.write(data)

    def writes_done(self, request: WriteRequest, styles: list[Write]) -> None:
        """Answer a run of writes, on the event loop."""
        self._answer_writes(request.results, request.units, styles)
        if self._transport.is_closing():
            return
        if not self._writing_paused:
            self._resume()

    def _answer_writes(self, results: list[int | ToonDBError], units: list[Unit], styles: list[Write]) -> None:
        self._awaiting = False
        out: list[bytes] = []
        errors = 0
        for result, unit, style in zip(results, units, styles, strict=True):
            if type(unit) is Transaction:
                self.engine.settle(unit, result)
            elif type(unit) is Answered and not isinstance(result, ToonDBError):
                result = unit.lsn
            if isinstance(result, ToonDBError):
                errors += 1
                out.append(error_frame(result, extended=bool(style & Write.EXTENDED), max_frame=self._max_frame))
            elif style & Write.RESULT:
                out.append(result_frame(cast(Conditional, unit).result))
            elif style & Write.LSN:
                out.append(_TXN_ID_HEADER + result.to_bytes(8, "little"))
            else:
                out.append(_OK)
        self._server.count(0, errors)
        if not self._transport.is_closing():
            self._send(b"".join(out))

    def step_soon(self) -> None:
        """Step the job after other connections had their turn. Any number of calls before that make one step.

        A second one would wake a job that parked in the first.
        """
        if not self._step_due:
            self._step_due = True
            self._loop.call_soon(self.step)

    def step(self) -> None:
        """Run the job until it ends or parks, the client must drain, or its turn is over."""
        self._step_due = False
        self._server.unpark(self)  # whatever woke it
        job = self._job
        if job is None or self._writing_paused or self._transport.is_closing():
            return
        sent = 0
        while True:
            frame, ended, failed = self._next_frame(job, extended=self._job_extended)
            if failed:
                self._server.count(0, 1)
            if isinstance(frame, Parked):
                self._server.park(self, frame)
                return
            if isinstance(frame, Waiting):
                self._server.wait_for_task(self)
                return
            if frame is not None:
                self._send(frame)
                sent += len(frame)
            if ended:
                break
            if self._must_wait():
                return
            if frame is None or sent >= _MAX_REPLY_BYTES_PER_TURN:
                self.step_soon()
                return
        self._end_job()
        if not self._writing_paused:
            self._resume()

    def _end_job(self) -> Job | None:
        job, self._job = self._job, None
        if job is not None:
            self._server.unpark(self)
            self._server.jobs -= 1
        return job

    def _must_wait(self) -> bool:
        # Sending may pause writing from inside the transport.
        return self._writing_paused

    def _next_frame(self, job: Job, *, extended: bool) -> tuple[bytes | Parked | Waiting | None, bool, bool]:
        """Step a job: its next frame (None = it only yields, or it sleeps), whether it ended, whether it failed."""
        try:
            return next(job), False, False
        except StopIteration:
            return None, True, False
        except ToonDBError as error:
            return error_frame(error, extended=extended, max_frame=self._max_frame), True, True
        except Exception as error:
            failure = self._internal(error, Opcode.SCAN)
            return error_frame(failure, extended=extended, max_frame=self._max_frame), True, True

    # Limits and end, called by the server

    def overdue(self, now: float, timeout: float) -> str | None:
        """What this connection failed to do within ``timeout`` seconds, or None. Called regularly."""
        pending = self._transport.get_write_buffer_size()
        drained = self._sent - pending
        if not pending:
            self._stuck_since = None
        elif self._stuck_since is None or drained != self._drained:
            self._stuck_since = now
        elif now - self._stuck_since > timeout:
            return "did not read its replies"
        self._drained = drained
        if self._job is not None and self.view is not None and self._stuck_since in (None, now):
            # Waiting for a slow client that does read is not idleness.
            self.view.touched_at = time.monotonic()
        if self._partial_since is not None and not self._busy and now - self._partial_since > timeout:
            return "did not complete a frame"
        return None

    def drop(self, why: str = "") -> None:
        """Close without waiting for the peer, unless it can be told in passing.

        Args:
            why: What it failed to do.
        """
        if why and not self._closing and not self._transport.get_write_buffer_size():
            # Between two replies, so the ERROR can be read. If it is not, the next sweeps see to it.
            self._closing = True
            error = OperationTimeoutError(
                f"the connection {why} within {self._server.config.timeout_ms} ms and is closed.",
                remediation="Send whole frames and read replies within --timeout-ms.",
            )
            self._partial_since = None
            self._send(error_frame(error, extended=False, max_frame=self._max_frame))
            self._finish()
        else:
            self._transport.abort()

    def drain(self) -> None:
        """Finish what was received, flush the replies, then close."""
        self._closing = True
        if not self._busy:
            self._finish()
