"""The client's side of a connection, without any I/O.

Replies come in the order of their requests. The core counts what was sent, cuts what was received into
replies, and collects the ROW frames of a stream with the END_STREAM or ERROR that closes it. The sync
and the async transports only move bytes between this object and a socket.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import msgpack

from .errors import ConnectionLostError, ProtocolError, ToonDBError, error_from_wire
from .frames import HEADER_SIZE, MAX_MAX_FRAME, FrameReader, unpack_header
from .opcodes import Reply

__all__ = ["ClientCore", "ReplyFrame", "decode_error", "raise_error", "unexpected"]

_ROW = int(Reply.ROW)
_END_STREAM = int(Reply.END_STREAM)
_ERROR = int(Reply.ERROR)
_CLOSES_STREAM = frozenset({int(Reply.END_STREAM), _ERROR})
_KNOWN = frozenset(int(reply) for reply in Reply)
_NO_ROWS: tuple[bytes, ...] = ()
# NamedTuple's own constructor costs as much as the rest of receiving a reply.
_new_tuple = tuple.__new__


class ReplyFrame(NamedTuple):
    """One complete reply.

    Attributes:
        code: Its reply code, a value of :class:`Reply`.
        payload: The payload of the closing frame.
        rows: Payloads of the ROW frames before it.
    """

    code: int
    payload: bytes
    rows: Sequence[bytes] = ()


def decode_error(payload: bytes) -> ToonDBError:
    """The error of an ERROR frame, classic or extended; never raises."""
    if payload[:1] >= b"\x80":
        try:
            return error_from_wire(msgpack.unpackb(payload, raw=False))
        except (ValueError, msgpack.UnpackException, RecursionError):
            return ProtocolError("the server sent an ERROR frame that cannot be decoded")
    return error_from_wire(payload.decode(errors="replace"))


def raise_error(reply: ReplyFrame) -> NoReturn:
    """Raise what a reply says when it is an ERROR, or a ProtocolError when it has no business here."""
    if reply.code == _ERROR:
        raise decode_error(reply.payload)
    unexpected(reply)


def unexpected(reply: ReplyFrame) -> NoReturn:
    """Raise for a reply that does not answer its request."""
    raise ProtocolError(f"the server answered with an unexpected reply 0x{reply.code:02x}")


class ClientCore:
    """State of one client connection.

    Args:
        max_frame: Largest reply that is accepted, in bytes; servers keep their own cap on what they send.
    """

    __slots__ = ("_broken", "_outstanding", "_reader", "_rows", "goodbye", "replies")

    def __init__(self, max_frame: int = MAX_MAX_FRAME) -> None:
        self._reader = FrameReader(max_frame)
        self._outstanding = 0
        self._rows: list[bytes] = []
        self.replies: deque[ReplyFrame] = deque()
        self.goodbye: ToonDBError | None = None
        self._broken: ProtocolError | None = None

    @property
    def outstanding(self) -> int:
        """Requests sent whose replies are not complete."""
        return self._outstanding

    @property
    def clean(self) -> bool:
        """Whether nothing is under way, so that the connection can serve another call."""
        return not (self._outstanding or self.replies or self._reader.buffered or self.goodbye or self._broken)

    def sent(self, requests: int) -> None:
        """Note that ``requests`` more requests were (or will be) written."""
        self._outstanding += requests

    def receive(self, data: bytes) -> None:
        """Take received bytes; complete replies are appended to ``replies``.

        Raises:
            ProtocolError: The server sent what no request asked for, an unknown reply, or a reply over
                ``max_frame``. The stream is then lost: the core is never clean again and every later
                call raises the same.
        """
        if self._broken is not None:
            raise self._broken
        try:
            size = len(data) - HEADER_SIZE
            if size >= 0 and self._outstanding == 1 and not self._rows and not self._reader.buffered:
                # The usual case of a call: its one reply, whole, in one piece.
                code, length = unpack_header(data)
                if length == size and code in _KNOWN and code != _ROW and length <= self._reader.max_frame:
                    self._outstanding = 0
                    self.replies.append(_new_tuple(ReplyFrame, (code, data[HEADER_SIZE:], _NO_ROWS)))
                    return
                if code == _ROW and length <= size - HEADER_SIZE and length <= self._reader.max_frame:
                    # Or one row, and the end behind it.
                    end = HEADER_SIZE + length
                    code, length = unpack_header(data, end)
                    if code == _END_STREAM and end + length == size and length <= self._reader.max_frame:
                        self._outstanding = 0
                        rows = [data[HEADER_SIZE:end]]
                        self.replies.append(_new_tuple(ReplyFrame, (code, data[end + HEADER_SIZE :], rows)))
                        return
            self._receive(data)
        except ProtocolError as error:
            self._broken = error
            raise

    def _receive(self, data: bytes) -> None:
        append = self.replies.append
        for code, payload in self._reader.feed(data):
            if not self._outstanding:
                if code == _ERROR:
                    # The server explains why it is about to close: too many clients, shutdown.
                    self.goodbye = self.goodbye or decode_error(payload)
                    continue
                raise ProtocolError(f"the server sent reply 0x{code:02x} without a request")
            if code == _ROW:
                self._rows.append(payload)
                continue
            if code not in _KNOWN:
                raise ProtocolError(f"the server sent unknown reply 0x{code:02x}")
            self._outstanding -= 1
            if self._rows:
                if code not in _CLOSES_STREAM:
                    raise ProtocolError(f"the server closed a stream of rows with reply 0x{code:02x}")
                append(ReplyFrame(code, payload, self._rows))
                self._rows = []
            else:
                append(_new_tuple(ReplyFrame, (code, payload, _NO_ROWS)))

    def lost(self, message: str) -> ToonDBError:
        """The error to raise when the peer closed the connection or it broke."""
        if self.goodbye is not None:
            return self.goodbye
        return ConnectionLostError(message)
