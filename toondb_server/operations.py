"""Operations of namespaces and collections: each runs on a worker thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgpack

from toondb_protocol.collections import MAX_VALUES, OPERATIONS, READING
from toondb_protocol.errors import ValidationError
from toondb_protocol.layout import decode_parts

from .parts import Parts
from .requests import Result, boolean, end_stream, find_transaction, only, row_frames, uint
from .workers import Last, Steps, Task

if TYPE_CHECKING:
    from .session import Session

__all__ = ["operation_job"]

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
    transaction = find_transaction(session, transaction_id) if transaction_id else None
    if transaction is not None:
        transaction.snapshot.touched_at = time.monotonic()
    gathered = Parts.following(before, "operation", operation, transaction_id, uint(body, "part"))
    gathered.add(body.get("args", b""), session.engine.options.max_transaction_bytes, "arguments")
    if boolean(body, "more", default=False):
        session.parts["operation"] = gathered
        return end_stream({"rows": 0})
    if transaction is not None:
        session.view = transaction.snapshot
        session.uses_sql = True  # a text is indexed in pages that its commit has to write
    server = session.server

    def steps() -> Steps:
        result = server.collections().operate(operation, decode_parts(gathered.payloads, MAX_VALUES), transaction)
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
