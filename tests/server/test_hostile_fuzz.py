"""Mutated and random frames against a living daemon. ``TOONDB_FUZZ_SEED`` repeats or varies a run."""

from __future__ import annotations

import os
import random
import select
from collections.abc import Iterator

import pytest

from tests.protocol.golden import EVERY_FRAME, MALFORMED, REQUESTS
from tests.server.raw import (
    GET,
    LOOPS,
    MIB,
    OK,
    VALUE,
    Raw,
    daemon_on,
    fill,
    frame,
    peak_memory,
    put,
    reset_peak,
    settled,
)
from tests.support.daemon import Daemon

SEED = int(os.environ.get("TOONDB_FUZZ_SEED", "1"))
CORPUS = EVERY_FRAME + [vector["frame"] for vector in MALFORMED] + [vector["frame"] for vector in REQUESTS] * 3


@pytest.fixture(scope="module", params=LOOPS)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One daemon that has to live through it all."""
    with daemon_on(request.param) as running:
        with Raw(running.socket) as raw:
            fill(raw, ((b"row/%03d" % at, b"x" * 30) for at in range(300)))
        yield running


def mutated(rng: random.Random) -> bytes:
    """A golden frame with damage; its length is mostly kept right, so that the damage reaches the payload."""
    data = bytearray(rng.choice(CORPUS))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                del data[at : at + rng.randrange(1, 9)]
            case _:
                data[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0", b"\0\1\0\0"))
        if not data:
            data = bytearray(1)
    if rng.random() < 0.9 and len(data) > 5:
        data[1:5] = (len(data) - 5).to_bytes(4, "little")
    return bytes(data)


def converse(raw: Raw, stream: bytes) -> None:
    """Send it all while reading whatever comes, then say goodbye; only whole frames may come back."""
    sock, at = raw.sock, 0
    sock.setblocking(False)
    while at < len(stream):
        readable, writable, _ = select.select([sock], [sock], [], 30)
        if readable and not raw.read():
            return
        if writable:
            try:
                at += sock.send(stream[at : at + 65_536])
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
    sock.settimeout(30)
    try:
        raw.half_close()
    except OSError:
        pass  # closed by the daemon already
    while (got := raw.frame()) is not None:
        assert 0x80 <= got[0] <= 0x87


def check_alive(daemon: Daemon) -> None:
    with Raw(daemon.socket) as raw:
        raw.send(put(b"alive", b"yes"), frame(GET, b"alive"))
        got = raw.answers(2)
        assert [reply.code for reply in got] == [OK, VALUE]
        assert got[1].payload == b"yes"
        settled(raw)


@pytest.mark.parametrize("part", range(4))
def test_mutated_frames(daemon: Daemon, part: int) -> None:
    rng = random.Random(f"{SEED}/{part}")
    before = reset_peak(daemon.pid)
    for _ in range(60):
        with Raw(daemon.socket) as raw:
            converse(raw, b"".join(mutated(rng) for _ in range(rng.choice((1, 5, 100)))))
    check_alive(daemon)
    assert peak_memory(daemon.pid) - before < 96 * MIB
    assert "internal error" not in daemon.log


def test_random_bytes(daemon: Daemon) -> None:
    rng = random.Random(f"{SEED}/bytes")
    before = reset_peak(daemon.pid)
    for _ in range(200):
        with Raw(daemon.socket) as raw:
            converse(raw, rng.randbytes(rng.choice((1, 4, 5, 6, 100, 5000))))
    check_alive(daemon)
    assert peak_memory(daemon.pid) - before < 96 * MIB


def test_random_payloads_behind_every_opcode(daemon: Daemon) -> None:
    rng = random.Random(f"{SEED}/payloads")
    opcodes = [opcode | bit for opcode in range(1, 15) for bit in (0, 0x40)]
    for _ in range(40):
        with Raw(daemon.socket) as raw:
            frames = []
            for _ in range(50):
                body = rng.randbytes(rng.choice((0, 1, 7, 8, 9, 30, 500)))
                if rng.random() < 0.5:
                    body = bytes(8) + b"\x81\xa4keys" + body
                frames.append(frame(rng.choice(opcodes), body))
            converse(raw, b"".join(frames))
    check_alive(daemon)
    assert "internal error" not in daemon.log


def test_frames_of_one_conversation_cut_into_another(daemon: Daemon) -> None:
    rng = random.Random(f"{SEED}/splice")
    for _ in range(60):
        streams = [b"".join(rng.choices(CORPUS, k=20)) for _ in range(2)]
        cuts = [rng.randrange(len(stream)) for stream in streams]
        with Raw(daemon.socket) as raw:
            converse(raw, streams[0][: cuts[0]] + streams[1][cuts[1] :])
    check_alive(daemon)
    assert "internal error" not in daemon.log
