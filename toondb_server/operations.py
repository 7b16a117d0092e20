"""Operations of namespaces and collections: each runs on a worker thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgpack

from toondb_protocol.collections import OPERATIONS, READING
from toondb_protocol.errors import MalformedRequestError, TransactionTooLargeError, ValidationError
from toondb_protocol.frames import pack_header
from toondb_protocol.layout import decode_map, encode_map
from toondb_protocol.opcodes import Reply

from .requests import Job, boolean, find_transaction, only, row_frames, uint
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
        """All of them."""
        return decode_map(b"".join(self._parts))


def operation_job(session: Session, transaction_id: int, body: dict[str, Any]) -> Job:
    """A QUERY with ``op``."""
    only(body, "op", _KEYS)
    operation: str = body["op"]
    if operation not in OPERATIONS:
        raise ValidationError(f"the operation {operation!r:.60} is unknown; known: {', '.join(OPERATIONS)}.")
    parts = session.parts
    session.parts = None
    number = uint(body, "part")
    if not number:
        parts = Parts(operation, transaction_id)
    elif parts is None or not parts.goes_on(operation, transaction_id, number):
        raise MalformedRequestError(f"part {number} does not follow part {number - 1} of the same operation")
    parts.add(body.get("args", b""), session.engine.options.max_transaction_bytes)
    if boolean(body, "more", default=False):
        session.parts = parts
        return _one(_end(0))
    gathered = parts
    transaction = find_transaction(session, transaction_id) if transaction_id else None
    session.view = None if transaction is None else transaction.snapshot
    if transaction is not None:
        session.uses_sql = True  # a text is indexed in pages that its commit has to write
    server = session.server

    def steps() -> Steps:
        result = server.collections().operate(operation, gathered.arguments(), transaction)
        packed: bytes = msgpack.packb(result)
        count = 0
        step = min(_PART_BYTES, max(1, server.config.max_frame // 2))
        for at in range(0, len(packed), step):
            yield b"".join(row_frames(session, [packed[at : at + step]], 1))
            count += 1
        yield Last(_end(count))

    workers = server.workers if operation in READING else server.writing_workers
    return Task(session, steps(), workers).job()


def _end(rows: int) -> bytes:
    payload = encode_map({"rows": rows})
    return pack_header(Reply.END_STREAM, len(payload)) + payload


def _one(reply: bytes) -> Job:
    yield reply
