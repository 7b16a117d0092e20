"""Operations of namespaces and collections: each runs on a worker thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgpack

from toondb_protocol.collections import MAX_VALUES, OPERATIONS, READING
from toondb_protocol.errors import MalformedRequestError, TransactionTooLargeError, ValidationError
from toondb_protocol.layout import decode_parts

from .requests import Result, boolean, end_stream, find_transaction, only, row_frames, uint
from .workers import Last, Steps, Task

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Parts", "operation_job"]

_PART_BYTES = 256 * 1024
_PART_OVERHEAD = 100
_KEYS = frozenset({"op", "args", "more", "part"})


class Parts:
    """The arguments of an operation, in parts as they came.

    Args:
        operation: Its name.
        transaction: The transaction it is in, 0 = none.

    Attributes:
        touched_at: ``time.monotonic()`` of its latest part.
    """

    def __init__(self, operation: str, transaction: int) -> None:
        self._operation = operation
        self._transaction = transaction
        self.touched_at = time.monotonic()
        self._parts: list[bytes] = []
        self._size = 0

    def goes_on(self, operation: str, transaction: int, part: int) -> bool:
        """Whether a request is the next part."""
        return (operation, transaction, part) == (self._operation, self._transaction, len(self._parts))

    def add(self, data: bytes, limit: int) -> None:
        """Keep a part."""
        self.touched_at = time.monotonic()
        self._size += len(data) + _PART_OVERHEAD
        if self._size > limit:
            raise TransactionTooLargeError(
                f"the arguments have {self._size} bytes, the cap of a transaction is {limit}.",
                details={"limit": limit, "actual": self._size},
            )
        self._parts.append(data)

    def arguments(self) -> dict[str, Any]:
        """All of them, once."""
        return decode_parts(self._parts, MAX_VALUES)


def operation_job(session: Session, transaction_id: int, body: dict[str, Any]) -> Result:
    """A QUERY with ``op``."""
    # Whatever is refused here, or comes in between: the parts before it do not go on.
    parts, session.parts = session.parts, None
    session.view = None
    only(body, "op", _KEYS)
    operation: str = body["op"]
    if operation not in OPERATIONS:
        raise ValidationError(f"the operation {operation!r:.60} is unknown; known: {', '.join(OPERATIONS)}.")
    transaction = find_transaction(session, transaction_id) if transaction_id else None
    if transaction is not None:
        transaction.snapshot.touched_at = time.monotonic()
    number = uint(body, "part")
    if not number:
        parts = Parts(operation, transaction_id)
    elif parts is None or not parts.goes_on(operation, transaction_id, number):
        raise MalformedRequestError(f"part {number} does not follow part {number - 1} of the same operation")
    parts.add(body.get("args", b""), session.engine.options.max_transaction_bytes)
    if boolean(body, "more", default=False):
        session.parts = parts
        return end_stream({"rows": 0})
    gathered = parts
    if transaction is not None:
        session.view = transaction.snapshot
        session.uses_sql = True  # a text is indexed in pages that its commit has to write
    server = session.server

    def steps() -> Steps:
        result = server.collections().operate(operation, gathered.arguments(), transaction)
        count = 0
        step = min(_PART_BYTES, max(1, server.config.max_frame // 2))
        frames = b""
        for part in _packed(result, step):
            if frames:
                yield frames
            frames = b"".join(row_frames(session, [part], 1))
            count += 1
        # With the end in the same step: a step more is a turn of the event loop more.
        yield Last(frames + end_stream({"rows": count}))

    workers = server.workers if operation in READING else server.writing_workers
    return Task(session, steps(), workers).job()


def _packed(result: Any, size: int) -> Iterator[bytes]:
    """A result as msgpack, in parts of a size. The items of a list are packed a few at a time, as they are sent."""
    pending = bytearray()
    if isinstance(result, list) and result:
        packer = msgpack.Packer()
        pending += packer.pack_array_header(len(result))
        for item in result:
            pending += packer.pack(item)
            while len(pending) >= size:
                yield bytes(pending[:size])
                del pending[:size]
    else:
        pending += msgpack.packb(result)
    for at in range(0, len(pending), size):
        yield bytes(pending[at : at + size])
