"""Runs the code of a document as its reader would: shell blocks in one shell, Python blocks in one session.

In a document, in order:

- A ``bash`` block is executed; a command that fails fails the document. ``make`` lines are only checked to name a
  target of the Makefile. A block that runs ``toondb-server`` in the foreground (no command, or ``serve``) is a
  terminal of its own: it is waited for until it serves, and stopped at the end.
- A ``python`` block is executed. An expression followed by ``# -> value`` must have that ``repr``.
- A ``text`` block directly after one of these is its expected output; ``...`` in it stands for anything.
- Other blocks (``sh`` for what needs root or another machine) are for reading.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.daemon import SECONDS, child_environ

__all__ = ["ROOT", "Block", "DocumentRunner", "code_blocks", "make_targets", "matches"]

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\s*$")
_SERVES = re.compile(r"^toondb-server(\s+serve)?(\s+-|\s*\\?$)")
_PYTHON_SESSION = Path(__file__).with_name("python_session.py")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, code, first line number, and the text block that follows it directly."""

    language: str
    code: str
    line: int
    expected: str | None


def code_blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found: list[tuple[str, list[str], int, bool]] = []
    lines: list[str] | None = None
    quiet = False  # nothing but empty lines since the last block
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if lines is None and fence:
            lines = []
            found.append((fence[1], lines, number + 1, quiet))
        elif lines is not None and line == "```":
            lines, quiet = None, True
        elif lines is not None:
            lines.append(line)
        elif line.strip():
            quiet = False
    assert lines is None, f"{document.name}: a block is not closed"
    blocks: list[Block] = []
    for at, (language, code, number, _) in enumerate(found):
        follower = found[at + 1] if at + 1 < len(found) else None
        expected = "\n".join(follower[1]) if follower and follower[0] == "text" and follower[3] else None
        blocks.append(Block(language, "\n".join(code) + "\n", number, expected))
    return blocks


def matches(expected: str, actual: str) -> bool:
    """Whether ``actual`` is ``expected``, in which ``...`` stands for anything; outer white space is ignored."""
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, actual.strip(), re.DOTALL) is not None


def make_targets() -> set[str]:
    """The targets that ``make help`` lists."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))


class _Session:
    """A child process that is given files of code and prints a mark after each."""

    def __init__(self, command: list[str], folder: Path, environ: dict[str, str]) -> None:
        self._folder = folder
        self._mark = "=== done ==="
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, request: str) -> str:
        """Send a line and return the output up to the mark; AssertionError with the output when there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(request.encode() + b"\n")
        self._process.stdin.flush()
        fd = self._process.stdout.fileno()
        end = f"{self._mark}\n".encode()
        output = b""
        deadline = time.monotonic() + SECONDS
        while not output.endswith(end):
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(fd, 65536) if ready else b""
            output += part
            if not part:
                why = "failed" if ready else f"did not end within {SECONDS:g} s"
                raise AssertionError(f"{why}:\n{output.decode(errors='replace')}")
        return output.removesuffix(end).decode()

    def close(self) -> None:
        """End it and everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class DocumentRunner:
    """Executes the blocks of one document in a temporary folder, which is also the home folder of the commands."""

    def __init__(self, document: Path) -> None:
        self._document = document
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="toondb-doc-"))
        # A Unix socket in it must be reachable by a path of at most 107 bytes.
        (self.folder / "examples").symlink_to(ROOT / "examples")
        # What `make install` makes is the environment that the tests run in.
        (self.folder / ".venv").symlink_to(sys.prefix)
        self._environ = child_environ({"HOME": str(self.folder)})
        self._environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self._environ.get('PATH', '')}"
        self._shell = _Session(["bash", "--noprofile", "--norc"], self.folder, self._environ)
        self._python = _Session([sys.executable, str(_PYTHON_SESSION)], self.folder, self._environ)
        return self

    def __exit__(self, *_: object) -> None:
        self._python.close()
        self._shell.close()
        for server in self._servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(SECONDS)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)
                server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, block: Block) -> None:
        """Execute one block; AssertionError with its place and output when it fails."""
        where = f"{self._document.name}, line {block.line}"
        try:
            output = self._execute(block)
        except AssertionError as error:
            raise AssertionError(f"{where}: the {block.language} block {error}") from None
        if block.expected is not None and not matches(block.expected, output):
            raise AssertionError(f"{where}: the document shows\n{block.expected}\nbut the output is\n{output}")

    def _execute(self, block: Block) -> str:
        if block.language == "python":
            return self._python.run(json.dumps({"code": block.code, "line": block.line, "name": self._document.name}))
        kept: list[str] = []
        for line in block.code.splitlines():
            if line.startswith("make "):
                target = line.split()[1]
                assert target in make_targets(), f"names {line!r}, but the Makefile has no target {target!r}"
            else:
                kept.append(line)
        commands = [line for line in kept if line.strip() and not line.startswith("#")]
        if commands and _SERVES.match(commands[0]) and not commands[-1].rstrip().endswith("&"):
            self._serve("\n".join(commands))
            return ""
        script = self.folder / ".block.sh"
        script.write_text("set -eu -o pipefail\n" + "\n".join(kept) + "\n", encoding="utf-8")
        return self._shell.run(f"source {script} </dev/null; echo '=== done ==='")

    def _serve(self, command: str) -> None:
        address = self.folder / ".notify"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(address))
            log = self.folder / ".server.log"
            with log.open("ab") as stream:
                server = subprocess.Popen(
                    ["bash", "-c", f"exec {command}"],
                    cwd=self.folder,
                    env=self._environ | {"NOTIFY_SOCKET": str(address)},
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
            self._servers.append(server)
            for message in _messages(manager, server):
                if "READY=1" in message:
                    return
        raise AssertionError(f"did not start a server:\n{log.read_text(errors='replace')}")


def _messages(manager: socket.socket, server: subprocess.Popen[bytes]) -> Iterator[str]:
    """What the server tells its service manager, until it ends or the time is over."""
    deadline = time.monotonic() + SECONDS
    pidfd = os.pidfd_open(server.pid)
    try:
        while True:
            wait = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([manager.fileno(), pidfd], [], [], wait)
            if manager.fileno() in ready:
                yield manager.recv(4096).decode()
            else:
                return
    finally:
        os.close(pidfd)
