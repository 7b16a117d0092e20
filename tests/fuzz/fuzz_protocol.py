"""Fuzzes everything that reads bytes from a peer or from disk: ``python -m tests.fuzz.fuzz_protocol --seconds 10``.

Inputs are mutations of the golden frames, hostile msgpack bodies and random bytes. Every reader may only raise
what it documents; anything else prints the input as hex with the seed and stops with exit status 1. Runs of the
same ``--seed`` and ``--iterations`` are alike. With ``--atheris`` the inputs come from the coverage-guided fuzzer
of that name, when it is installed.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from itertools import count

import msgpack

from tests.protocol.golden import EVERY_FRAME, HEADER, MALFORMED
from toondb_protocol.client_core import ClientCore, decode_error
from toondb_protocol.errors import (
    FrameTooLargeError,
    MalformedRequestError,
    ProtocolError,
    ToonDBError,
    error_from_wire,
)
from toondb_protocol.frames import FrameReader, encode_frame
from toondb_protocol.hello import parse_server_hello
from toondb_protocol.layout import decode_map, encode_map
from toondb_protocol.messages import MESSAGES, OPTIONS_FLAG, check_body, decode_request, encode_request
from toondb_protocol.opcodes import EXTENDED, Opcode
from toondb_protocol.record import Expiring, decode_expiry, decode_lsn, decode_record, encode_record

__all__ = ["check_input", "main", "run"]

MAX_FRAME = 1 << 16
_MAP_OPCODES = [int(opcode | EXTENDED) for opcode, message in MESSAGES.items() if message.keys]
_PUT = int(Opcode.PUT | EXTENDED)
_HOSTILE = (
    b"\xdd\xff\xff\xff\xff",  # array of 4 Gi items
    b"\xdc\xff\xff",
    b"\xdf\xff\xff\xff\xff",  # map of 4 Gi pairs
    b"\xde\xff\xff",
    b"\xdb\xff\xff\xff\xff",  # text of 4 GiB
    b"\xc6\xff\xff\xff\xff",  # binary of 4 GiB
    b"\xc9\xff\xff\xff\xff\x01",  # extension of 4 GiB
    b"\xd6\xff\x00\x00\x00\x01",  # timestamps, good and bad
    b"\xd7\xff" + b"\xff" * 8,
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xd4\x05a",
    b"\xa3\xed\xa0\x80",  # a surrogate
    b"\xa1\xff",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # NaN
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xc4\x01k",
    b"\xc1",
    b"\x91" * 70,
    b"\x91" * 1100,
    b"\x81\xa1k" * 400,
    b"\x81\xa1k" * 1100,
    b"\x82\xa1k\x01\xa1k\x02",  # a key twice
    b"\x81\x91\x01\x01",  # unhashable keys
    b"\x81\x80\x01",
    b"\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
)
_VALUES = (
    b"\xc0",
    b"\xc2",
    b"\xc3",
    b"\x00",
    b"\x7f",
    b"\xff",
    b"\xcb" + bytes(8),
    b"\xa8SELECT 1",
    b"\xa2?1",
    b"\xc4\x01k",
    b"\x90",
    b"\x93\x01\xc0\xa1x",
    b"\x91\xc4\x01k",
    b"\x91\xa1a",
    b"\x80",
    b"\x81\xa1a\x01",
    b"\x82\xa1a\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00\xa1b\xc4\x00",
)


# --- what is checked --------------------------------------------------------------------------------------------


def check_input(data: bytes) -> None:
    """Give one input to every reader. Raises whatever a reader raised without having documented it."""
    _check_frames(data)
    _check_client(data)
    if data:
        _check_request(data[0], data[1:])
        _check_request(data[0], data[HEADER:])
    _check_map(data)
    _check_map(data[HEADER + 8 :])
    for payload in (data, data[HEADER:]):
        error = decode_error(payload)
        str(error), error.to_text().encode(), decode_map(encode_map(error.to_wire()))
    _check_record(data)


def _check_frames(data: bytes) -> None:
    whole = _cut([data])
    for size in (3, len(data) // 2 + 1):
        if _cut([data[at : at + size] for at in range(0, len(data), size)]) != whole:
            raise AssertionError("the frames depend on how the stream was split")


def _cut(pieces: Sequence[bytes]) -> tuple[list[tuple[int, bytes]], str, int]:
    reader, frames, refused = FrameReader(MAX_FRAME), list[tuple[int, bytes]](), ""
    try:
        for piece in pieces:
            frames.extend(reader.feed(piece))
    except FrameTooLargeError as error:
        refused = error.message
    if reader.buffered > HEADER + MAX_FRAME:
        raise AssertionError("more than one frame is held back")
    return frames, refused, reader.buffered


def _check_client(data: bytes) -> None:
    for requests in (0, 1, 3):
        core = ClientCore(MAX_FRAME)
        core.sent(requests)
        broken = False
        try:
            core.receive(data[:11])
            core.receive(data[11:])
        except ProtocolError:
            broken = True
        if core.outstanding < 0 or (core.clean and (broken or core.outstanding)):
            raise AssertionError("a connection that cannot be used calls itself clean")
        str(core.lost("gone"))


def _check_request(opcode: int, payload: bytes) -> None:
    try:
        known, txn, fields = decode_request(opcode, payload)
    except MalformedRequestError:
        return
    except KeyError:
        if opcode & ~EXTENDED in MESSAGES:
            raise
        return
    # What was accepted means the same when it is written again.
    again, packed = encode_request(known, fields, txn=txn)
    body, options = fields.get("body"), fields.get("options")
    # A msgpack map has other encodings than the one that is written.
    exact = body is None and options is None
    if again != opcode or (exact and packed != payload):
        raise AssertionError("an accepted request is not what its fields encode to")
    if not exact and repr(decode_request(again, packed)) != repr((known, txn, fields)):
        raise AssertionError("an accepted request changes when it is written again")
    if body is not None:
        try:
            check_body(MESSAGES[known].keys, body)
        except MalformedRequestError:
            pass


def _check_map(data: bytes) -> None:
    try:
        value = decode_map(data)
    except MalformedRequestError:
        return
    repr(value)
    if not isinstance(error_from_wire(value), ToonDBError):
        raise AssertionError("error_from_wire() gave something else")
    try:
        parse_server_hello(value)
    except ProtocolError:
        pass


def _check_record(data: bytes) -> None:
    try:
        record = decode_record(b"key", data)
    except ValueError:
        return
    if record.lsn != decode_lsn(data) or record.expires_ms != decode_expiry(data):
        raise AssertionError("the decoders of a record disagree")
    value = record.value if record.expires_ms is None else Expiring(record.value, record.expires_ms)
    if record.checksum_ok and encode_record(b"key", value, record.lsn) != data:
        raise AssertionError("an intact record is not what its parts encode to")


# --- inputs -----------------------------------------------------------------------------------------------------


def _inputs(rng: random.Random) -> Callable[[], bytes]:
    records = [encode_record(b"key", value, 7) for value in (b"value", Expiring(b"value", 1 << 40))]
    corpus = [*EVERY_FRAME, *(vector["frame"] for vector in MALFORMED), *records]

    def mutated() -> bytes:
        data = bytearray(rng.choice(corpus))
        for _ in range(rng.choice((0, 1, 1, 2, 5))):
            at = rng.randrange(len(data) + 1)
            action = rng.randrange(6)
            if action == 0 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif action == 1 and at < len(data):
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            elif action == 2:
                del data[at : at + rng.randrange(1, 9)]
            elif action == 3:
                data[at:at] = rng.choice(_HOSTILE)
            elif action == 4:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            else:
                other = rng.choice(corpus)
                data[at:] = other[rng.randrange(len(other) + 1) :]
        return bytes(data)

    def framed() -> bytes:
        # A true header around the mutation, so that the payload decoders see it and not only the length check.
        data = mutated()
        return encode_frame(data[0], data[HEADER:]) if len(data) > HEADER else data

    def hostile_map() -> bytes:
        body = b"\x81\xa1k" + b"".join(rng.choices(_HOSTILE, k=rng.randrange(1, 4)))
        opcode = rng.choice(_MAP_OPCODES)
        if opcode == _PUT:
            head = (OPTIONS_FLAG | 3).to_bytes(4, "little") + b"key"
            body = head + (len(body) + rng.choice((0, 0, 0, 1, -1))).to_bytes(4, "little") + body
        return encode_frame(opcode, rng.randbytes(8) + body)

    def known_keys() -> bytes:
        # Keys that are known get past their names, and their values are checked.
        opcode = rng.choice(_MAP_OPCODES)
        keys = rng.choices(MESSAGES[Opcode(opcode & ~EXTENDED)].keys, k=rng.randrange(1, 5))
        pairs = b"".join(msgpack.packb(key.name) + rng.choice(_VALUES + _HOSTILE) for key in keys)
        return encode_frame(opcode, rng.randbytes(8) + bytes([0x80 | len(keys)]) + pairs)

    def stream() -> bytes:
        return b"".join(rng.choices(corpus, k=rng.randrange(2, 6)))[: rng.randrange(1, 4000)]

    def noise() -> bytes:
        return rng.randbytes(rng.randrange(0, 64))

    makers = (mutated, framed, framed, hostile_map, known_keys, stream, noise)
    return lambda: rng.choice(makers)()


def run(seed: int, *, iterations: int | None = None, seconds: float | None = None) -> int:
    """Fuzz until ``iterations`` inputs or ``seconds`` are over; returns the number of inputs.

    Raises:
        AssertionError: An input failed; the message holds it as hex, with the seed.
    """
    make = _inputs(random.Random(seed))
    until = time.monotonic() + seconds if seconds is not None else None
    for number in count():
        if number == iterations or (until is not None and time.monotonic() >= until):
            return number
        data = make()
        try:
            check_input(data)
        except Exception as error:
            shown = "".join(traceback.format_exception(error))
            raise AssertionError(f"{shown}\nseed {seed}, input {number}: {data.hex()}") from None
    raise AssertionError("not reached")


def _run_atheris(arguments: Sequence[str]) -> int:
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.stderr.write("atheris is not installed: pip install atheris, or run without --atheris\n")
        return 2
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments], check_input)
    atheris.Fuzz()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.fuzz_protocol", description="Fuzz the protocol readers."
    )
    parser.add_argument("--seconds", type=float, help="stop after this time (default 10, unless --iterations is given)")
    parser.add_argument("--iterations", type=int, help="stop after so many inputs")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: a new one, printed)")
    parser.add_argument("--input", metavar="HEX", help="check just this input, as a failure printed it")
    parser.add_argument("--atheris", action="store_true", help="inputs from atheris; further arguments are its own")
    options, rest = parser.parse_known_args(arguments)
    if options.atheris:
        return _run_atheris(rest)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if options.input is not None:
        check_input(bytes.fromhex(options.input))
        return 0
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    seconds = 10.0 if options.seconds is None and options.iterations is None else options.seconds
    try:
        done = run(seed, iterations=options.iterations, seconds=seconds)
    except AssertionError as failed:
        sys.stderr.write(f"{failed}\n")
        return 1
    sys.stdout.write(f"{done} inputs, seed {seed}: nothing undocumented was raised\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
