"""SPEC.md is fresh, complete, and its examples are what the code speaks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from toondb_protocol import messages
from toondb_protocol.client_core import ClientCore
from toondb_protocol.errors import ErrorCode, error_class
from toondb_protocol.frames import FrameReader
from toondb_protocol.hello import FEATURES
from toondb_protocol.messages import COLUMN_TYPES, MESSAGES, check_body, decode_request
from toondb_protocol.opcodes import EXTENDED, Opcode, Reply
from toondb_protocol.spec import main, render

SPEC = Path(__file__).parents[2] / "protocol" / "SPEC.md"


def _blocks() -> list[bytes]:
    """The bytes of every ``hex`` block."""
    blocks = re.findall(r"```hex\n(.*?)```", SPEC.read_text(encoding="utf-8"), re.DOTALL)
    return [bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines())) for block in blocks]


def test_spec_is_fresh() -> None:
    assert SPEC.read_text(encoding="utf-8") == render(), "run python -m toondb_protocol.spec --write protocol/SPEC.md"


def test_everything_is_in_it() -> None:
    text = SPEC.read_text(encoding="utf-8")
    for opcode in Opcode:
        assert f"| `0x{opcode:02x}` | `0x{opcode | EXTENDED:02x}` | [{opcode.name}](#{opcode.name.lower()}) |" in text
        assert f"\n### {opcode.name}\n" in text
    for reply in Reply:
        assert f"| `0x{reply:02x}` | {reply.name} |" in text
    for code in ErrorCode:
        assert f"| `{code}` | `{error_class(code).__name__}` |" in text
    for name in ("BEGIN_OPTIONS", "SCAN_KEYS", "QUERY_KEYS", "END_STREAM_KEYS", "ERROR_KEYS", "HELLO_KEYS"):
        for key in getattr(messages, name):
            assert f"| `{key.name}` | {key.types} |" in text
    for number, column_type in COLUMN_TYPES.items():
        assert f"| {number} | {column_type} |" in text
    for feature in FEATURES:
        assert f"`{feature}`" in text
    for option in ("--max-frame", "--max-clients", "--timeout-ms", "--sync-mode"):
        assert option in text


def test_every_example_is_one_frame_that_the_code_understands() -> None:
    requests: set[tuple[Opcode, bool]] = set()
    replies: set[int] = set()
    for block in _blocks():
        ((code, payload),) = FrameReader().feed(block)
        if code >= 0x80:
            replies.add(Reply(code))
            continue
        opcode, txn, fields = decode_request(code, payload)
        requests.add((opcode, txn is not None))
        check_body(MESSAGES[opcode].keys, fields.get("body", {}))
    assert requests == {(opcode, extended) for opcode in Opcode for extended in (False, True)}
    assert replies == set(Reply)


def test_the_worked_exchanges_are_what_a_client_receives() -> None:
    core = ClientCore()
    for block in _blocks():
        if block[0] < 0x80:
            core.sent(1)
        elif core.outstanding:
            core.receive(block)
    assert any(reply.rows for reply in core.replies)


def test_tables_have_as_many_cells_as_their_heads() -> None:
    width = 0
    for line in SPEC.read_text(encoding="utf-8").splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not (cells and width) or cells == width, line
        width = cells


def test_links_lead_somewhere() -> None:
    text = SPEC.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(#(.*?)\)", text):
        assert target in anchors


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "SPEC.md"
    assert main(["--check", str(path)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main(["--write", str(path)]) == 0
    assert main(["--check", str(path)]) == 0
    assert capsys.readouterr().out == ""
    path.write_text(path.read_text(encoding="utf-8").replace("0x4e", "0x4f"), encoding="utf-8")
    assert main(["--check", str(path)]) == 1
    diff, hint = capsys.readouterr()
    assert "+| `0x0e` | `0x4e` |" in diff
    assert "--write" in hint
    assert main([]) == 0
    assert capsys.readouterr().out == render()


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "toondb_protocol.spec", "--check", str(SPEC)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
