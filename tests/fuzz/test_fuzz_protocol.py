"""A short, repeatable run of the fuzz target, and proof that it would notice."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz import fuzz_protocol
from toondb_protocol.errors import MalformedRequestError
from toondb_protocol.layout import decode_map
from toondb_protocol.messages import decode_request

ROOT = Path(__file__).parents[2]


def test_a_fixed_run_finds_nothing() -> None:
    assert fuzz_protocol.run(1, iterations=3_000) == 3_000


def test_it_runs_from_the_command_line() -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_protocol", "--iterations", "50", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "50 inputs, seed 7: nothing undocumented was raised\n",
        "",
    )


def test_a_failure_names_the_seed_and_the_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[bytes] = []

    def undocumented(data: bytes) -> None:
        seen.append(data)
        if len(seen) == 5:
            raise OverflowError("undocumented")

    monkeypatch.setattr(fuzz_protocol, "check_input", undocumented)
    assert fuzz_protocol.main(["--iterations", "50", "--seed", "3"]) == 1
    shown = capsys.readouterr().err
    assert "OverflowError: undocumented" in shown
    assert f"seed 3, input 4: {seen[-1].hex()}" in shown


def test_runs_of_one_seed_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[bytes]] = []
    for _ in range(2):
        runs.append([])
        monkeypatch.setattr(fuzz_protocol, "check_input", runs[-1].append)
        fuzz_protocol.run(5, iterations=200)
    assert runs[0] == runs[1]


def test_atheris_is_optional(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("atheris") is None:
        assert fuzz_protocol.main(["--atheris"]) == 2
        assert "not installed" in capsys.readouterr().err
    else:
        command = [sys.executable, "-m", "tests.fuzz.fuzz_protocol", "--atheris", "-runs=100"]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("opcode", "payload"),
    [
        (0x07, b"\x00\x00" + bytes(8) + b"\xff\xff"),
        (0x08, b"\x00\x00\xff\xff"),
        (0x09, b"\xff\xff"),
        (0x0A, b"\xff\xff\x01\x00a"),
        (0x01, b"\xff\xff\xff\xff"),
        (0x4B, bytes(8) + b"\xdf\xff\xff\xff\xff"),
        (0x4B, bytes(8) + b"\x81\xa4keys\xdd\xff\xff\xff\xff"),
        (0x4B, bytes(8) + b"\x81\xa4keys\xc6\xff\xff\xff\xff"),
    ],
)
def test_announced_sizes_are_not_allocated(opcode: int, payload: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedRequestError):
            decode_request(opcode, payload)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 16


def test_arrays_that_announce_more_than_they_hold_give_their_memory_back() -> None:
    # Every level announces as many items as the whole payload has bytes. Old msgpack releases allocated all of
    # them (gigabytes) and never freed them, which is why the project asks for a newer one.
    size = 1 << 18
    level = b"\xdd" + (size - 16).to_bytes(4, "big")
    payload = b"\x81\xa1k" + level * 1000
    payload += b"\xc0" * (size - len(payload))
    tracemalloc.start()
    try:
        for _ in range(3):
            with pytest.raises(MalformedRequestError):
                decode_map(payload)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 128 << 20
    assert kept < 1 << 20
