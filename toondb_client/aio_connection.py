"""One asyncio connection: moves bytes between a transport and the protocol core."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import cast

from toondb_protocol.backoff import delays
from toondb_protocol.client_core import ClientCore, ReplyFrame
from toondb_protocol.errors import (
    ConfigurationError,
    ConnectionError,
    ConnectionLostError,
    OperationTimeoutError,
    ToonDBError,
)
from toondb_protocol.frames import MAX_MAX_FRAME
from toondb_protocol.hello import ServerHello

from . import calls, forks
from .connection import MAX_PATH, LostBeforeSending, check_frames, connect_error

__all__ = ["AsyncConnection"]

_STEP_BYTES = 256 * 1024


async def _connected(path: str) -> socket.socket:
    """A connected socket.

    Connecting to a Unix socket never waits in the kernel: it succeeds, fails, or finds the server's queue of new
    connections full, which no event tells the end of.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        for delay in delays():
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:
                await asyncio.sleep(delay)
    except BaseException:
        sock.close()
        raise
    raise AssertionError("unreachable")


def _last_words(sock: socket.socket) -> ToonDBError | None:
    """Why the server closed a connection, when it said so and the transport, failing to write, did not read it."""
    core = ClientCore()
    try:
        core.receive(sock.recv(65536, socket.MSG_DONTWAIT))
    except (OSError, ToonDBError):
        return None
    return core.goodbye


class AsyncConnection(asyncio.Protocol):
    """A connection of an async client. Used by one task at a time.

    Make one with :meth:`open`.
    """

    hello: ServerHello

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self._loop = loop
        self._timeout = timeout
        self._cap = MAX_MAX_FRAME
        self._core = ClientCore()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._wanted = 0
        self._frames = 0
        self._unsent = False
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._lost: ToonDBError | None = None
        self._paused = False
        self.generation = forks.generation()

    @classmethod
    async def open(cls, path: str, timeout: float, deadline: float) -> AsyncConnection:
        """Connect and exchange hellos.

        Args:
            path: Socket path.
            timeout: Seconds that one call may take.
            deadline: ``loop.time()`` until which this may take.

        Raises:
            ConnectionError, OperationTimeoutError, ProtocolError: No ToonDB server answered.
        """
        if len(os.fsencode(path)) > MAX_PATH:
            raise ConfigurationError(
                f"the socket path has {len(os.fsencode(path))} bytes, the system allows {MAX_PATH}.",
                remediation="Use a shorter or a relative path.",
            )
        loop = asyncio.get_running_loop()
        connection: AsyncConnection | None = None
        spare: socket.socket | None = None
        try:
            async with asyncio.timeout_at(deadline):
                sock = await _connected(path)
                try:
                    spare = sock.dup()
                    _, connection = await loop.create_unix_connection(lambda: cls(loop, timeout), sock=sock)
                except BaseException:
                    sock.close()
                    raise
                call = calls.hello()
                connection.hello = call.decode((await connection.exchange([call.frame]))[0])
                connection._cap = connection.hello.max_frame
        except TimeoutError as error:
            if connection is not None:
                connection.close()
            if isinstance(error, ToonDBError):
                raise
            raise OperationTimeoutError(f"connecting to {path} took too long.") from None
        except (LostBeforeSending, ToonDBError) as error:
            if connection is not None:
                connection.close()
            refusal = None if spare is None else _last_words(spare)
            if refusal is not None:
                raise refusal from None
            if isinstance(error, LostBeforeSending):
                raise ConnectionError(f"the peer at {path} closed the connection at once.") from None
            raise
        except OSError as error:
            raise connect_error(path, error) from None
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        finally:
            if spare is not None:
                spare.close()
        return connection

    # Transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._core.receive(data)
        except ToonDBError as error:
            self._fail(error)
            return
        if self._core.goodbye is not None:
            self._fail(self._core.goodbye)
        elif self._waiter is not None and len(self._core.replies) >= self._wanted:
            self._wake(self._waiter)

    def eof_received(self) -> None:
        self._fail(self._core.lost("the server closed the connection before it answered."))

    def connection_lost(self, exc: Exception | None) -> None:
        # A frame that was not sent to its end was not executed.
        self._unsent = isinstance(exc, BrokenPipeError) and self._frames == 1
        self._fail(self._core.lost(f"the connection broke: {exc}." if exc else "the connection was closed."))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._room is not None:
            self._wake(self._room)

    def _fail(self, error: ToonDBError) -> None:
        if self._lost is None:
            self._lost = error
        for waiter in (self._waiter, self._room):
            if waiter is not None:
                self._wake(waiter)
        self._transport.abort()

    @staticmethod
    def _wake(waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    # Calls

    @property
    def clean(self) -> bool:
        """Whether the next call can use it."""
        return self._lost is None and self._core.clean and not self._transport.is_closing()

    async def roundtrip(self, frame: bytes) -> ReplyFrame:
        """Send one request and receive its reply; see :meth:`exchange`."""
        return (await self.exchange([frame]))[0]

    async def exchange(self, frames: list[bytes]) -> list[ReplyFrame]:
        """Send requests and receive all their replies, in order.

        Raises:
            LostBeforeSending: The peer was gone already.
            ConnectionLostError, OperationTimeoutError, ProtocolError: The connection is closed then, as it
                is when the caller is cancelled: a late reply must never answer another call.
        """
        if self._lost is not None or self._transport.is_closing():
            if self._core.goodbye is not None:
                raise self._core.goodbye
            raise LostBeforeSending
        check_frames(frames, self._cap)
        if len(frames) > 1:
            # The loop may not have seen yet that the peer is gone. With one frame the failure to send tells.
            await asyncio.sleep(0)
            if self._lost is not None:
                raise LostBeforeSending
        core = self._core
        core.sent(len(frames))
        self._frames = len(frames)
        timer = self._loop.call_later(self._timeout, self._timed_out)
        try:
            if len(frames) == 1:
                self._transport.write(frames[0])
            else:
                await self._send(frames)
            self._wanted = len(frames)
            if len(core.replies) < self._wanted:
                self._waiter = self._loop.create_future()
                await self._waiter
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
            self._waiter = None
        if len(core.replies) < len(frames):
            assert self._lost is not None
            raise LostBeforeSending if self._unsent else self._lost
        return [core.replies.popleft() for _ in frames]

    async def _send(self, frames: list[bytes]) -> None:
        """Write in steps that the transport drains, so that memory holds what the socket does not take."""
        step: list[bytes] = []
        size = 0
        for frame in frames:
            step.append(frame)
            size += len(frame)
            if size >= _STEP_BYTES:
                self._transport.write(b"".join(step))
                step, size = [], 0
                if self._paused and self._lost is None:
                    self._room = self._loop.create_future()
                    try:
                        await self._room
                    finally:
                        self._room = None
                if self._lost is not None:
                    raise self._lost
        if step:
            self._transport.write(b"".join(step))

    def _timed_out(self) -> None:
        self._fail(
            OperationTimeoutError(
                f"the server did not answer within {self._timeout:g} s.", details={"timeout_seconds": self._timeout}
            )
        )

    def close(self) -> None:
        """Close at once. Idempotent."""
        if self._lost is None:
            self._lost = ConnectionLostError("the connection was closed.")
        if not self._loop.is_closed():  # its end closed the transports
            self._transport.abort()

    def _reset_in_child(self, null: int) -> None:
        """In a forked child: let go of the parent's socket, so that the server sees when the parent closes it.

        The descriptor stays taken, because the inherited transport may close that number at any time.

        Args:
            null: A descriptor to put in its place.
        """
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            os.dup2(null, sock.fileno(), inheritable=False)
