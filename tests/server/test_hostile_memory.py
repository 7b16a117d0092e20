"""Clients that flood, never read, or read and write slowly: bounded memory, and others are served meanwhile."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator

import msgpack
import pytest

from tests.server.raw import (
    CREATE_TABLE,
    DELETE,
    END_STREAM,
    ERROR,
    GET,
    LOOPS,
    MIB,
    OK,
    PING,
    PUT,
    QUERY,
    SCAN,
    STATS,
    VALUE,
    Raw,
    daemon_on,
    fill,
    flood,
    frame,
    hung_up,
    peak_memory,
    put,
    reset_peak,
    scan,
    settled,
)
from tests.support.daemon import Daemon

VALUES = 32


@pytest.fixture(scope="module", params=LOOPS)
def impatient(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon that drops early, with 32 values of 1 MiB and 8 MiB of small ones."""
    with daemon_on(request.param, "--timeout-ms", "300", "--max-transaction-age-ms", "60000") as daemon:
        with Raw(daemon.socket) as raw:
            fill(raw, ((b"big/%02d" % at, bytes([at]) * MIB) for at in range(VALUES)))
            fill(raw, ((b"small/%06d" % at, b"x" * 500) for at in range(16_000)))
            raw.call(frame(GET, b"big/00"))
        yield daemon


@pytest.fixture(scope="module", params=LOOPS)
def patient(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon with a timeout that only tests of slowness reach."""
    with daemon_on(request.param, "--timeout-ms", "2000") as daemon:
        yield daemon


FLOODS = {
    "gets of big values": frame(GET, b"big/07"),
    "extended gets of big values": frame(GET, b"big/07", txn=0),
    "pings": frame(PING),
    "stats": frame(STATS),
    "hellos": frame(PING, txn=0),
    "puts": put(b"flood", b"x"),
    "unknown opcodes": frame(0x20, b"?"),
    "malformed puts": frame(PUT, b"?"),
    "streamed scans": scan(prefix=b""),
    "reverse scans of keys": scan(prefix=b"small/", values=False, reverse=True),
    "scans with windows": scan(prefix=b"big/", window=1),
    "classic scans": frame(SCAN, b"small/"),
    "lookups": scan(keys=[b"big/%02d" % at for at in range(VALUES)]),
    "queries": frame(QUERY, msgpack.packb({"prefix": b"small/", "form": "toon"}), txn=0),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_client_that_never_reads_is_paused_then_dropped(impatient: Daemon, name: str) -> None:
    request = FLOODS[name]
    with Raw(impatient.socket) as other, Raw(impatient.socket) as raw:
        dropped = other.stats()["connections_dropped"]
        before = reset_peak(impatient.pid)
        flood(raw, request * max(1, 20_000 // len(request)), other)
        grown = peak_memory(impatient.pid) - before
        # The mapped file counts when it is read for the first time; beyond it a few frames and buffers.
        assert grown < (VALUES + 16 + 64) * MIB, f"grew by {grown >> 20} MiB"
        settled(other)
        assert other.stats()["connections_dropped"] == dropped + 1


def test_what_arrives_behind_a_stuck_scan_is_not_piled_up(impatient: Daemon) -> None:
    with Raw(impatient.socket) as other, Raw(impatient.socket) as raw:
        raw.send(scan(prefix=b"big/"))
        before = reset_peak(impatient.pid)
        assert flood(raw, put(b"flood", bytes(10_000)), other) < 8 * MIB
        assert peak_memory(impatient.pid) - before < (VALUES + 64) * MIB


def test_a_quiet_client_that_leaves_few_replies_unread_is_dropped(impatient: Daemon) -> None:
    # Less than what pauses the daemon, more than what the kernel takes.
    with Raw(impatient.socket) as raw, Raw(impatient.socket) as other:
        raw.send(frame(GET, b"small/000001") * 1600)
        hung_up(raw)
        settled(other)


def test_a_half_closed_client_that_never_reads_is_dropped(impatient: Daemon) -> None:
    with Raw(impatient.socket) as raw, Raw(impatient.socket) as other:
        raw.send(frame(GET, b"small/000001") * 1600).half_close()
        hung_up(raw)
        settled(other)


def test_a_lost_stream_that_is_never_read_is_dropped(impatient: Daemon) -> None:
    with Raw(impatient.socket) as raw, Raw(impatient.socket) as other:
        raw.send(frame(GET, b"small/000001") * 1600, b"\xff" * 100)
        hung_up(raw)
        settled(other)


def test_many_that_never_read_at_once(impatient: Daemon) -> None:
    with Raw(impatient.socket) as other:
        before = reset_peak(impatient.pid)
        crowd = [Raw(impatient.socket) for _ in range(20)]
        for raw in crowd:
            raw.send(scan(prefix=b""), frame(GET, b"big/01") * 100)
        for raw in crowd:
            other.ping()
            hung_up(raw)
            raw.close()
        assert peak_memory(impatient.pid) - before < (VALUES + 16 + 20 * 4 + 64) * MIB
        settled(other)


def test_memory_does_not_grow_with_work(impatient: Daemon) -> None:
    with Raw(impatient.socket) as raw:
        unit = [frame(GET, b"big/03"), put(b"work", bytes(100_000)), scan(prefix=b"small/0001"), frame(0x20, b"?")]

        def work() -> None:
            for _ in range(10):
                raw.send(*unit * 10)
                assert [reply.code for reply in raw.answers(40)] == [VALUE, OK, END_STREAM, ERROR] * 10

        work()
        before = reset_peak(impatient.pid)
        work()
        work()
        assert peak_memory(impatient.pid) - before < 48 * MIB


def test_small_rows_do_not_swell_in_a_classic_scan(patient: Daemon) -> None:
    with Raw(patient.socket) as raw:
        fill(raw, ((b"t%06d" % at, b"") for at in range(150_000)))
        raw.call(frame(SCAN, b"t"))
        before = reset_peak(patient.pid)
        result = raw.call(frame(SCAN, b"t")).payload
        assert int.from_bytes(result[:4], "little") == 150_000
        assert peak_memory(patient.pid) - before < 8 * len(result) + 8 * MIB


@pytest.mark.parametrize("unit", [b"\x90", b"\x80", b"\xa2ab", b"\xc4\x02ab", b"\xcd\xff\xff"], ids=repr)
def test_a_body_does_not_swell_in_memory(patient: Daemon, unit: bytes) -> None:
    count = (16 * MIB - 64) // len(unit)
    with Raw(patient.socket) as raw:
        raw.ping()
        for opcode in (SCAN, PING):
            for items in (count, count // 5):
                body = b"\x81\xa4keys\xdd" + items.to_bytes(4, "big") + unit * items
                request = frame(opcode, body, txn=0)
                before = reset_peak(patient.pid)
                raw.call(request)
                grown = peak_memory(patient.pid) - before
                assert grown < 4 * len(request) + 128 * MIB, f"{grown >> 20} MiB for {len(request) >> 20}"


def test_heavy_requests_in_one_packet_leave_room_for_others(patient: Daemon) -> None:
    table = frame(CREATE_TABLE, b"\x01\x00t\xff\xff" + b"\x01\x00c\x00\x00" * 65_535)
    lookup = scan(keys=[b"none/%06d" % at for at in range(30_000)])
    with Raw(patient.socket) as raw, Raw(patient.socket) as other:
        for request, wanted in ((table, ERROR), (lookup, END_STREAM)):
            # On a busy machine all of it may be done before this process gets to send a ping; then it tries again.
            assert any(pings_between(raw, other, request, wanted) for _ in range(50)), "every ping waited for all of it"


def pings_between(raw: Raw, other: Raw, request: bytes, wanted: int) -> int:
    """How many pings of another client are answered between the replies to ten requests in one packet."""
    thread = threading.Thread(target=raw.send, args=[request * 10])
    thread.start()
    pings = 0
    while not select.select([raw.sock], [], [], 0)[0]:
        other.ping()
    for _ in range(9):
        assert raw.answer().code == wanted
        other.ping()
        pings += not select.select([raw.sock], [], [], 0)[0]
    thread.join()
    assert raw.answer().code == wanted
    return pings


def test_a_slow_reader_that_makes_progress_is_served_completely(patient: Daemon) -> None:
    """Neither its connection nor the snapshot of its scan may count as idle while it reads a row for seconds."""
    with Raw(patient.socket) as raw, Raw(patient.socket) as other:
        value = bytes(range(256)) * 25_000
        fill(other, [(b"slow/1", value), (b"slow/2", b"small")])
        raw.send(scan(prefix=b"slow/"))
        started = time.monotonic()
        while len(raw._buffer) < len(value):
            # The slowness is what is tested; it waits for nothing.
            time.sleep(0.1)
            piece = raw.sock.recv(MIB // 4)
            assert piece, patient.log
            raw._buffer += piece
        assert raw.answer()[2] == [b"slow/1", value, b"slow/2", b"small"]
        assert time.monotonic() - started > 2.0, "too fast to show anything"
        raw.ping()
        assert other.call(frame(DELETE, b"slow/1")).code == OK


def test_a_slow_writer_within_the_timeout_is_served(patient: Daemon) -> None:
    value = bytes(range(256)) * 16_384
    request = put(b"trickle", value) + frame(GET, b"trickle")
    with Raw(patient.socket) as raw, Raw(patient.socket) as other:
        before = reset_peak(patient.pid)
        at, size = 0, 1
        while at < len(request):
            raw.send(request[at : at + size])
            at += size
            size = size * 3 // 2 + 1 if size < 20_000 else 20_000
            other.ping()
        assert raw.answer().code == OK
        assert raw.answer().payload == value
        assert peak_memory(patient.pid) - before < 16 * len(value)


def test_tiny_pieces_of_a_frame_are_put_together(patient: Daemon) -> None:
    value = bytes(range(256)) * 40
    with Raw(patient.socket) as raw, Raw(patient.socket) as other:
        request = put(b"pieces", value) + frame(GET, b"pieces")
        for at in range(0, len(request), 3):
            raw.send(request[at : at + 3])
            if not at % 9:
                other.ping()
        assert raw.answer().code == OK
        assert raw.answer().payload == value


def test_pings_are_answered_before_a_long_scan_ends(patient: Daemon) -> None:
    with Raw(patient.socket) as raw, Raw(patient.socket) as other:
        fill(other, ((b"million/%06d" % at, b"") for at in range(60_000)))
        total, pings = 0, 0
        raw.send(scan(prefix=b"million/") * 17)  # 1,020,000 rows
        while total < 17:
            got = raw.frame()
            assert got is not None
            total += got[0] == END_STREAM
            if got[0] == END_STREAM:
                continue
            other.ping()
            pings += 1
        # Each ping came back while the rest of the rows was still to be read: none waited for the end.
        assert pings >= 17 * 50
