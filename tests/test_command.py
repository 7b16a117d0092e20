"""How a command ends."""

from __future__ import annotations

import errno
import os
import sys

import click
import pytest

from toondb.command import run_command
from toondb_protocol.errors import ValidationError


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (None, 0, ""),
        (click.exceptions.Exit(3), 3, ""),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (click.ClickException("no."), 1, "Error: no.\n"),
        (click.UsageError("what?"), 2, "Error: what?\n"),
        (ValidationError("it is wrong.", remediation="Mend it."), 1, "Error: it is wrong.\n  Mend it.\n"),
        (MemoryError(), 1, "Error: there is not enough memory.\n  Do less, or use a machine with more.\n"),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT), "x"), 1, "Error: No such file or directory: x.\n"),
        (OSError("lost"), 1, "Error: lost.\n"),
    ],
)
def test_how_a_command_ends(
    error: BaseException | None,
    status: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    def command() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(sys, "argv", ["name"])
    with pytest.raises(SystemExit) as ended:
        run_command(command, "name", less="Do less")
    assert ended.value.code in (status, status or None)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(says)
    assert "Traceback" not in err
