"""Opcodes of requests and replies."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["EXTENDED", "NO_TRANSACTION", "PROTOCOL_VERSION", "Opcode", "Reply"]

PROTOCOL_VERSION = 1
"""Version that a hello announces; raised only when an existing layout changes."""

EXTENDED = 0x40
"""Bit set in a request's opcode: the payload starts with ``u64 txn`` and the body may be richer."""

NO_TRANSACTION = 0
"""Transaction id of a request outside any transaction."""


class Opcode(IntEnum):
    """The 14 requests."""

    PUT = 0x01
    GET = 0x02
    DELETE = 0x03
    BEGIN_TXN = 0x04
    COMMIT_TXN = 0x05
    ABORT_TXN = 0x06
    QUERY = 0x07
    CREATE_TABLE = 0x08
    PUT_PATH = 0x09
    GET_PATH = 0x0A
    SCAN = 0x0B
    CHECKPOINT = 0x0C
    STATS = 0x0D
    PING = 0x0E


class Reply(IntEnum):
    """The replies. A request gets exactly one, or any number of ROW closed by one END_STREAM or ERROR."""

    OK = 0x80
    ERROR = 0x81
    VALUE = 0x82
    TXN_ID = 0x83
    ROW = 0x84
    END_STREAM = 0x85
    STATS_RESP = 0x86
    PONG = 0x87
