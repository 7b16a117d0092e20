"""What handlers share: the kinds of results, and reading the bodies of requests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from enum import Enum, IntFlag
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgpack

from toondb.engine.transaction import Transaction
from toondb.engine.write_batch import WriteBatch
from toondb.engine.writer import Unit
from toondb_protocol.errors import (
    FrameTooLargeError,
    MalformedRequestError,
    ToonDBError,
    TransactionNotFoundError,
)
from toondb_protocol.frames import REPLY_SLACK, pack_header
from toondb_protocol.layout import decode_map, encode_map
from toondb_protocol.messages import MapKey, check_body
from toondb_protocol.opcodes import Reply

if TYPE_CHECKING:
    from .session import Session

__all__ = [
    "WAITING",
    "Answered",
    "Handler",
    "Job",
    "Kind",
    "Parked",
    "Refused",
    "Result",
    "Volatile",
    "Waiting",
    "Write",
    "binary",
    "boolean",
    "end_stream",
    "exactly_u64",
    "expect_empty",
    "find_transaction",
    "frames_of_rows",
    "map_body",
    "only",
    "row_frames",
    "sql_transaction",
    "txn_id",
    "uint",
]

_MAX_BODY_BYTES = 4 * 1024 * 1024
_MAX_CONTAINERS = 4096
_FEW_CONTAINERS = 8
_MAX_ITEMS = 262_144
_MAX_NAMES = 65_536


class Parked(NamedTuple):
    """What a job yields to sleep until a commit comes after ``lsn``, for ``seconds`` at the most."""

    lsn: int
    seconds: float


class Waiting:
    """What a job yields to sleep until something that it waits for wakes its session."""


WAITING = Waiting()


class Volatile(bytes):
    """A complete reply that is true only now: it must not be kept for the next who asks."""


Job: TypeAlias = Generator[bytes | Parked | Waiting | None, None, None]


class Kind(Enum):
    """How a request is ordered against gathered writes."""

    READ = 0
    WRITE = 1
    WRITE_IF_AUTOCOMMIT = 2
    COMMIT = 3
    UNKNOWN = 4


class Write(IntFlag):
    """How a write is answered."""

    CLASSIC = 0
    EXTENDED = 1
    LSN = 2
    RESULT = 4


class Refused:
    """A unit that is refused in its place among other writes."""

    __slots__ = ("error",)

    def __init__(self, error: ToonDBError) -> None:
        self.error = error

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        raise self.error


class Answered:
    """A unit whose LSN is known already."""

    __slots__ = ("lsn",)

    def __init__(self, lsn: int) -> None:
        self.lsn = lsn

    def apply(self, batch: WriteBatch, lsn: int) -> int:
        """Nothing to write: the LSN after it is the LSN before it, which is not the one that is answered."""
        return lsn


Result: TypeAlias = bytes | tuple[Unit, Write] | Job
Handler: TypeAlias = "Callable[[Session, bytes], Result]"


# Bodies


def txn_id(payload: bytes) -> int:
    """The transaction id that an extended payload starts with; 0 = none."""
    if len(payload) < 8:
        raise MalformedRequestError(f"an extended request starts with 8 bytes of transaction id, got {len(payload)}")
    return int.from_bytes(payload[:8], "little")


def find_transaction(session: Session, transaction_id: int) -> Transaction:
    """The open transaction of that id of a connection."""
    transaction = session.transactions.get(transaction_id)
    if transaction is None:
        raise TransactionNotFoundError(f"no transaction {transaction_id} is open on this connection.")
    return transaction


def sql_transaction(session: Session, transaction_id: int) -> Transaction:
    """The open transaction of that id of a connection, for a request of SQL or of collections.

    Collections have their texts in SQL pages: a search in them makes the transaction one of SQL, too.
    """
    transaction = find_transaction(session, transaction_id)
    session.uses_sql = True
    session.view = transaction.snapshot
    transaction.snapshot.touched_at = time.monotonic()
    return transaction


def map_body(payload: bytes, keys: tuple[MapKey, ...] | None, *, largest: int = _MAX_BODY_BYTES) -> dict[str, Any]:
    """The msgpack map after the transaction id; ``keys`` None takes any map.

    Small bytes can make large objects (an empty array is one byte on the wire and some 70 in memory), so both
    the body and what it is made of are bounded before it is decoded. A body over 4 MiB, up to ``largest``, may have a
    few arrays and maps only. They may have 262,144 items, all together, and one map 65,536: to decode many keeps
    everybody waiting.
    """
    size = len(payload) - 8
    if size > largest:
        raise FrameTooLargeError(
            f"the msgpack body has {size} bytes, the limit is {largest}.",
            remediation="Spread it over several requests, for example fewer keys in each.",
            details={"limit": largest, "actual": size},
        )
    raw = payload[8:]
    if size > _MAX_CONTAINERS:
        _check_containers(raw, _MAX_CONTAINERS if size <= _MAX_BODY_BYTES else _FEW_CONTAINERS)
    body = decode_map(raw)
    if keys is not None:
        check_body(keys, body)
    return body


def _check_containers(raw: bytes, most: int) -> None:
    """Refuse a body of very many arrays and maps, or items in them, holding only one of them at a time."""
    count = items = 0

    def drop(container: list[object] | dict[object, object]) -> None:
        nonlocal count, items
        count += 1
        items += len(container)
        if count > most:
            raise MalformedRequestError(f"the msgpack body holds more than {most} arrays and maps")
        if items > _MAX_ITEMS + _FEW_CONTAINERS:  # and the body itself
            raise too_many

    too_many = MalformedRequestError(
        f"the arrays and maps of the msgpack body hold more than {_MAX_ITEMS} items, or one map more than {_MAX_NAMES}",
        remediation="Spread them over several requests.",
        details={"limit": _MAX_ITEMS},
    )
    # What is wrong otherwise is told by the decoder proper.
    with contextlib.suppress(msgpack.UnpackException, RecursionError):
        try:
            msgpack.unpackb(
                raw,
                raw=False,
                strict_map_key=False,
                list_hook=drop,
                object_hook=drop,
                max_array_len=_MAX_ITEMS,
                max_map_len=_MAX_NAMES,
            )
        except ValueError as error:
            if "_len(" in str(error):
                raise too_many from None


def exactly_u64(payload: bytes) -> int:
    """The number that is the whole payload."""
    if len(payload) != 8:
        raise MalformedRequestError(f"the payload must be 8 bytes of transaction id, got {len(payload)}")
    return int.from_bytes(payload, "little")


def expect_empty(payload: bytes) -> None:
    """Refuse a body where there is none."""
    if payload:
        raise MalformedRequestError(f"this request carries no body, got {len(payload)} bytes")


def uint(body: dict[str, Any], name: str, default: int = 0) -> int:
    """The number of 0 or more under a key."""
    value = body.get(name, default)
    if value is None:
        return default
    if type(value) is not int or value < 0:
        raise MalformedRequestError(f"{name!r} must be a number of 0 or more, got {value!r:.60}")
    return value


def boolean(body: dict[str, Any], name: str, *, default: bool) -> bool:
    """The true or false under a key."""
    value = body.get(name, default)
    if type(value) is not bool:
        raise MalformedRequestError(f"{name!r} must be true or false, got {value!r:.60}")
    return value


def binary(body: dict[str, Any], name: str) -> bytes | None:
    """The bytes under a key, None when there are none."""
    value = body.get(name)
    if value is not None and type(value) is not bytes:
        raise MalformedRequestError(f"{name!r} must be binary, got {type(value).__name__}")
    return value


def only(body: dict[str, Any], name: str, allowed: frozenset[str]) -> None:
    """Refuse what would be accepted and ignored."""
    others = body.keys() - allowed
    if others:
        raise MalformedRequestError(f"{sorted(others)[0]!r} has no meaning together with {name!r}")


# Replies


def end_stream(facts: dict[str, Any]) -> bytes:
    """The END_STREAM frame with these facts."""
    payload = encode_map(facts)
    return pack_header(Reply.END_STREAM, len(payload)) + payload


def row_frames(session: Session, rows: list[Any], width: int) -> Iterator[bytes]:
    """ROW frames of a flat list of rows of ``width`` items; halved until each fits into a frame."""
    return frames_of_rows(rows, width, session.server.config.max_frame)


def frames_of_rows(rows: Sequence[Any], width: int, max_frame: int) -> Iterator[bytes]:
    """:func:`row_frames` for frames of ``max_frame`` bytes of payload."""
    cap = max_frame + REPLY_SLACK
    if len(rows) == width:
        # SQL makes rows of any size: to pack one that cannot be sent would take twice its memory again.
        size = sum([len(item) for item in rows if isinstance(item, (bytes, str))])
        if size > cap:
            raise _row_too_large(size, max_frame)
    payload: bytes = msgpack.packb(rows)
    if len(payload) <= cap:
        yield pack_header(Reply.ROW, len(payload)) + payload
        return
    count = len(rows) // width
    if count == 1:
        raise _row_too_large(len(payload), max_frame)
    half = count // 2 * width
    yield from frames_of_rows(rows[:half], width, max_frame)
    yield from frames_of_rows(rows[half:], width, max_frame)


def _row_too_large(size: int, max_frame: int) -> FrameTooLargeError:
    return FrameTooLargeError(
        f"a row of {size} bytes does not fit into a frame.",
        remediation="Ask for less of it, or restart the server with a larger --max-frame.",
        details={"limit": max_frame, "actual": size},
    )
