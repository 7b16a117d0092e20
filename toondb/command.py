"""How a command ends: whatever goes wrong is one clear line and an exit status, never a traceback."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from toondb_protocol.errors import ToonDBError

__all__ = ["EXIT_INTERRUPTED", "run_command"]

EXIT_INTERRUPTED = 130


def run_command(command: click.Command, name: str, *, less: str) -> NoReturn:
    """Run the command of this process and exit: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, or what it asks for.

    A reader of a pipe that left ends the command quietly with 1 (click does that).

    Args:
        command: What to run with the arguments of the process.
        name: Its name, for messages.
        less: What takes less memory, for whom there is not enough.
    """
    status: Any = 0
    try:
        status = command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = EXIT_INTERRUPTED
    except ToonDBError as error:  # before OSError: some are both
        status = _complain(error.message, error.remediation)
    except MemoryError:
        status = _complain("there is not enough memory.", f"{less}, or use a machine with more.")
    except OSError as error:
        status = _complain(f"{error.strerror or error}{'' if error.filename is None else f': {error.filename}'}.")
    sys.exit(status)


def _complain(message: str, remediation: str = "") -> int:
    click.echo(f"Error: {message}", err=True)
    if remediation:
        click.echo(f"  {remediation}", err=True)
    return 1
