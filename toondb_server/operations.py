"""Operations of namespaces and collections: they run on worker threads, but for short searches and small writes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgpack

from toondb_protocol.collections import MAX_VALUES, OPERATIONS, READING
from toondb_protocol.errors import ValidationError
from toondb_protocol.frames import pack_header
from toondb_protocol.layout import decode_map, decode_parts
from toondb_protocol.opcodes import Reply

from .document_writes import DOCUMENT_WRITES, LONGEST_SMALL, DocumentWrite, is_small
from .parts import Parts
from .requests import Result, boolean, end_stream, only, sql_transaction, uint
from .workers import Last, Steps, Task

if TYPE_CHECKING:
    from .session import Session

__all__ = ["operation_job", "short_search"]

_PART_BYTES = 256 * 1024
_KEYS = frozenset({"op", "args", "more", "part"})


def operation_job(session: Session, transaction_id: int, body: dict[str, Any]) -> Result:
    """A QUERY with ``op``."""
    # Whatever is refused here, or comes in between: the parts before it do not go on.
    before = session.parts.pop("operation", None)
    session.view = None
    only(body, "op", _KEYS)
    operation: str = body["op"]
    if operation not in OPERATIONS:
        raise ValidationError(f"the operation {operation!r:.60} is unknown; known: {', '.join(OPERATIONS)}.")
    transaction = sql_transaction(session, transaction_id) if transaction_id else None
    gathered = Parts.following(before, "operation", operation, transaction_id, uint(body, "part"))
    gathered.add(body.get("args", b""), session.engine.options.max_transaction_bytes, "arguments")
    if boolean(body, "more", default=False):
        session.parts["operation"] = gathered
        session.view = None  # nothing runs yet that uses it
        return end_stream({"rows": 0})
    server = session.server
    collections = server.collections.opened
    if transaction is None and operation in DOCUMENT_WRITES and collections is not None:
        arguments = _small_arguments(gathered.payloads)
        if arguments is not None:
            write = DocumentWrite(session, lambda result: b"".join(_replies(session, result)))
            return write.job(collections, operation, arguments)

    def steps() -> Steps:
        result = server.collections().operate(operation, decode_parts(gathered.payloads, MAX_VALUES), transaction)
        yield from _replies(session, result)

    workers = server.workers if operation in READING else server.writing_workers
    return Task(session, steps(), workers).job()


def _small_arguments(payloads: list[bytes]) -> dict[str, Any] | None:
    """The arguments of a write when it is small; None = it is not."""
    if len(payloads) > 1 or len(payloads[0]) > LONGEST_SMALL:
        return None
    arguments = decode_map(payloads[0])
    return arguments if is_small(arguments) else None


def short_search(session: Session, payload: bytes) -> bytes | None:
    """Answer a search at once; None = it has to go to a thread, or to be looked at closely."""
    result = session.server.short_searches.result(payload)
    if result is None:
        return None
    # As any request does, it ends what was sent in parts.
    session.parts.pop("operation", None)
    session.view = None
    packed: bytes = msgpack.packb(result)
    size = _part_size(session)
    rows = [_row(packed[at : at + size]) for at in range(0, len(packed), size)]
    return b"".join(rows) + _end(len(rows))


def _replies(session: Session, result: Any) -> Iterator[bytes]:
    """A result in frames. The end is in the last piece: a step more is a turn of the event loop more."""
    count = 0
    frames = b""
    for part in _packed(result, _part_size(session)):
        if frames:
            yield frames
        frames = _row(part)
        count += 1
    yield Last(frames + _end(count))


def _part_size(session: Session) -> int:
    return min(_PART_BYTES, max(1, session.server.config.max_frame // 2))


def _row(part: bytes) -> bytes:
    row: bytes = msgpack.packb([part])
    return pack_header(Reply.ROW, len(row)) + row


@lru_cache(16)
def _end(rows: int) -> bytes:
    return end_stream({"rows": rows})


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
