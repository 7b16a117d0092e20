"""ClientCore: replies in order, streams, the server's goodbye, and what makes a connection unusable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toondb_protocol.client_core import ClientCore, ReplyFrame, decode_error, raise_error, unexpected
from toondb_protocol.errors import (
    ConnectionLostError,
    FrameTooLargeError,
    KeyTooLargeError,
    ProtocolError,
    TooManyClientsError,
    ToonDBError,
    TransactionConflictError,
)
from toondb_protocol.frames import encode_frame, pack_header
from toondb_protocol.layout import encode_map
from toondb_protocol.opcodes import Reply

OK = encode_frame(Reply.OK)
ROW = encode_frame(Reply.ROW, b"r1") + encode_frame(Reply.ROW, b"r2")
END = encode_frame(Reply.END_STREAM, b"e")
CONFLICT = encode_frame(Reply.ERROR, TransactionConflictError("too late").to_text().encode())
FULL = encode_frame(Reply.ERROR, TooManyClientsError("100 clients").to_text().encode())


def clean(client: ClientCore) -> bool:
    # Through a call, because the type checker takes an asserted property for a constant.
    return client.clean


def core(requests: int = 0, max_frame: int = 1 << 20) -> ClientCore:
    made = ClientCore(max_frame)
    made.sent(requests)
    return made


def test_pipelined_replies_come_in_order() -> None:
    client = core(3)
    client.receive(OK + encode_frame(Reply.VALUE, b"v"))
    assert client.outstanding == 1
    client.receive(CONFLICT)
    assert [reply.code for reply in client.replies] == [Reply.OK, Reply.VALUE, Reply.ERROR]
    assert client.outstanding == 0


def test_rows_are_collected_until_the_stream_ends() -> None:
    client = core(2)
    client.receive(ROW)
    assert not client.replies
    assert client.outstanding == 2
    client.receive(END + OK)
    assert list(client.replies) == [(Reply.END_STREAM, b"e", [b"r1", b"r2"]), (Reply.OK, b"", ())]


def test_an_error_ends_a_stream() -> None:
    client = core(1)
    client.receive(ROW + CONFLICT)
    (reply,) = client.replies
    assert reply.rows == [b"r1", b"r2"]
    with pytest.raises(TransactionConflictError, match="too late"):
        raise_error(reply)


def test_another_reply_cannot_end_a_stream() -> None:
    client = core(1)
    with pytest.raises(ProtocolError, match="closed a stream of rows with reply 0x80"):
        client.receive(ROW + OK)
    assert not client.replies


def test_rows_of_one_reply_are_not_shared_with_another() -> None:
    client = core(2)
    client.receive(END + END)
    first, second = client.replies
    assert first.rows == second.rows == ()  # immutable: what a caller does with one cannot show in another


def test_an_error_without_a_request_is_the_goodbye() -> None:
    client = core()
    assert clean(client)
    client.receive(FULL)
    assert not clean(client)
    assert isinstance(client.lost("closed"), TooManyClientsError)
    client.receive(CONFLICT)
    assert isinstance(client.lost("closed"), TooManyClientsError), "the first reason is the reason"


def test_without_a_goodbye_the_connection_is_lost() -> None:
    error = core(1).lost("the server closed the connection")
    assert type(error) is ConnectionLostError
    assert error.message == "the server closed the connection"


@pytest.mark.parametrize(
    ("requests", "data", "message"),
    [
        (0, OK, "reply 0x80 without a request"),
        (0, ROW, "reply 0x84 without a request"),
        (1, OK + OK, "reply 0x80 without a request"),
        (1, encode_frame(0x88), "unknown reply 0x88"),
        (1, encode_frame(0x01, b"x"), "unknown reply 0x01"),
    ],
)
def test_a_broken_stream_never_becomes_clean_again(requests: int, data: bytes, message: str) -> None:
    client = core(requests)
    with pytest.raises(ProtocolError, match=message):
        client.receive(data)
    client.replies.clear()
    assert not clean(client)
    with pytest.raises(ProtocolError, match=message):
        client.receive(OK)
    assert not client.replies


def test_a_reply_over_the_limit_breaks_the_stream() -> None:
    client = core(1, max_frame=10)
    with pytest.raises(FrameTooLargeError):
        client.receive(pack_header(Reply.VALUE, 11))
    assert not clean(client)


def test_clean_means_that_nothing_is_under_way() -> None:
    client = core()
    client.sent(1)
    assert not clean(client)
    client.receive(OK)
    assert not clean(client)
    client.replies.popleft()
    assert clean(client)
    client.receive(CONFLICT[:3])
    assert not clean(client)


def test_raise_error_and_unexpected() -> None:
    with pytest.raises(ProtocolError, match="unexpected reply 0x83"):
        unexpected(ReplyFrame(Reply.TXN_ID, b"", ()))
    with pytest.raises(ProtocolError, match="unexpected reply 0x82"):
        raise_error(ReplyFrame(Reply.VALUE, b"", ()))
    with pytest.raises(KeyTooLargeError) as caught:
        raise_error(ReplyFrame(Reply.ERROR, encode_map(KeyTooLargeError("x", details={"limit": 511}).to_wire()), ()))
    assert caught.value.details == {"limit": 511}


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b"\x84\xa4code" + tail))
def test_decode_error_never_raises(payload: bytes) -> None:
    error = decode_error(payload)
    assert isinstance(error, ToonDBError)
    assert isinstance(str(error), str)


@given(st.integers(0, 6), st.lists(st.tuples(st.integers(0x7F, 0x89), st.binary(max_size=6)), max_size=10), st.data())
def test_every_cut_of_any_stream_has_the_same_outcome(
    requests: int, frames: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(*frame) for frame in frames)

    def run(pieces: list[bytes]) -> tuple[object, ...]:
        client, error = core(requests), ""
        try:
            for piece in pieces:
                client.receive(piece)
        except ProtocolError as broken:
            error = broken.message
        return list(client.replies), client.outstanding, error, str(client.goodbye)

    at = data.draw(st.integers(0, len(stream)))
    whole = run([stream])
    assert run([stream[:at], stream[at:]]) == whole
    assert run([bytes([byte]) for byte in stream]) == whole
