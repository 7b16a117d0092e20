"""The dot commands of the shell."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import click

from .exporting import export_rows, export_to, query_of
from .files import OutputFile
from .formats import FORMATS
from .importing import ImportOptions, import_rows
from .options import IMPORT_PARAMETERS, import_options, report_text
from .progress import RowProgress, rows_of

if TYPE_CHECKING:
    from .shell import Shell

__all__ = ["COMMANDS", "Commands", "Quit"]

_OWN = "name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
_SHADOWS = "(SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'shadow')"
_TABLES = (
    f"SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'view', 'virtual') AND {_OWN} "
    "AND name LIKE ? ORDER BY name"
)
_INDEXES = (
    "SELECT name, tbl_name AS 'table' FROM sqlite_schema WHERE type = 'index' AND tbl_name LIKE ? "
    f"AND {_OWN} AND tbl_name NOT IN {_SHADOWS} ORDER BY tbl_name, name"
)
_SCHEMA = (
    "SELECT sql || ';' AS sql FROM sqlite_schema WHERE sql IS NOT NULL AND tbl_name LIKE ? "
    f"AND {_OWN} AND tbl_name NOT IN {_SHADOWS} ORDER BY type IN ('table', 'view') DESC, rowid"
)


class Quit(Exception):
    """The user wants to leave."""


class Command(NamedTuple):
    """A dot command.

    Attributes:
        arguments: What it takes, for people.
        help: What it does.
        run: Does it, with the shell and the rest of the line.
    """

    arguments: str
    help: str
    run: Callable[[Shell, str], None]


class Commands:
    """All dot commands by name."""

    def __init__(self, commands: dict[str, Command]) -> None:
        self._commands = commands

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def run(self, shell: Shell, line: str) -> None:
        """Run a command line; the name may be shortened as long as it is clear.

        Raises:
            click.UsageError: There is no such command, or it is used wrongly.
            Quit: It asks for the end.
        """
        name, *others = line.rstrip("; \t").split(None, 1)
        found = [name] if name in self._commands else [each for each in self._commands if each.startswith(name)]
        if len(found) != 1 or len(name) < 2:
            raise click.UsageError(f"the command {name!r} is unknown; .help lists them.")
        command = self._commands[found[0]]
        rest = others[0] if others else ""
        if rest and not command.arguments:
            raise click.UsageError(f"{found[0]} takes no argument.")
        command.run(shell, rest)

    def help(self) -> str:
        """A table of the commands."""
        heads = [f"{name} {command.arguments}".rstrip() for name, command in self._commands.items()]
        width = max(map(len, heads))
        return "\n".join(
            f"{head:<{width}}  {command.help}" for head, command in zip(heads, self._commands.values(), strict=True)
        )


def _words(rest: str, usage: str, least: int, most: int) -> list[str]:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise click.UsageError(f"{usage}: {error}.") from None
    if not least <= len(words) <= most:
        raise click.UsageError(f"usage: {usage}")
    return words


def _switch(rest: str, usage: str) -> bool:
    (word,) = _words(rest, usage, 1, 1)
    if word.lower() not in ("on", "off"):
        raise click.UsageError(f"usage: {usage}")
    return word.lower() == "on"


def _pattern(rest: str, usage: str) -> list[str]:
    return _words(rest, usage, 0, 1) or ["%"]


def _mode(shell: Shell, rest: str) -> None:
    usage = f".mode {'|'.join(FORMATS)}"
    words = _words(rest, usage, 0, 1)
    if not words:
        shell.say(f"mode: {shell.style.format}")
    elif words[0] not in FORMATS:
        raise click.UsageError(f"usage: {usage}")
    else:
        shell.style.format = words[0]


def _headers(shell: Shell, rest: str) -> None:
    shell.style.headers = _switch(rest, ".headers on|off")


def _timer(shell: Shell, rest: str) -> None:
    shell.timer = _switch(rest, ".timer on|off")


def _null(shell: Shell, rest: str) -> None:
    (shell.style.null,) = _words(rest, ".nullvalue TEXT", 1, 1)


def _import(shell: Shell, rest: str) -> None:
    chosen: list[ImportOptions] = []
    command = click.Command(
        ".import",
        params=list(IMPORT_PARAMETERS),
        callback=lambda **given: chosen.append(import_options(**given)),
        help="Import a file into a table.",
    )
    command.main(_words(rest, ".import FILE TABLE", 1, 100), prog_name=".import", standalone_mode=False)
    for options in chosen:
        with RowProgress("importing") as progress:
            report = import_rows(shell.session, options, progress)
        shell.say(report_text(report, options))


def _export(shell: Shell, rest: str) -> None:
    path, _, query = rest.partition(" ")
    if path[:1] in ("'", '"') and rest.count(path[0]) >= 2:
        path, _, query = rest[1:].partition(path[0])
    if not path or not query.strip():
        raise click.UsageError("usage: .export FILE TABLE, or .export FILE SELECT ...")
    style = export_to(path, "auto", None)
    style.headers, style.null = shell.style.headers, shell.style.null
    session = shell.session
    with OutputFile(path) as file, RowProgress("exporting") as progress:
        count = export_rows(session, query_of(session, query), None, file, style, progress)
    shell.say(f"Exported {rows_of(count)} to {path}.")


def _output(shell: Shell, rest: str) -> None:
    words = _words(rest, ".output [FILE]", 0, 1)
    shell.redirect(words[0] if words and words[0] not in ("-", "stdout") else None)


def _read(shell: Shell, rest: str) -> None:
    (path,) = _words(rest, ".read FILE", 1, 1)
    shell.run_file(path)


def _help(shell: Shell, rest: str) -> None:
    shell.say(COMMANDS.help())


def _quit(shell: Shell, rest: str) -> None:
    raise Quit


COMMANDS: Commands = Commands(
    {
        ".exit": Command("", "Leave.", _quit),
        ".export": Command("FILE TABLE|SELECT...", "Write rows to a file, whose name tells the format.", _export),
        ".headers": Command("on|off", "Begin tables and CSV with the names of the columns.", _headers),
        ".help": Command("", "List the commands.", _help),
        ".import": Command("FILE TABLE [OPTIONS]", "Load CSV or JSON lines; see .import --help.", _import),
        ".indexes": Command(
            "[TABLE]", "List the indexes.", lambda shell, rest: shell.show(_INDEXES, _pattern(rest, ".indexes [TABLE]"))
        ),
        ".mode": Command("|".join(FORMATS), "Choose how rows are shown.", _mode),
        ".nullvalue": Command("TEXT", "Choose how NULL is shown.", _null),
        ".output": Command("[FILE]", "Let rows go to a file, or to the terminal again.", _output),
        ".quit": Command("", "Leave.", _quit),
        ".read": Command("FILE", "Run the statements of a file.", _read),
        ".schema": Command(
            "[TABLE]",
            "Show the statements that made the tables.",
            lambda shell, rest: shell.show(_SCHEMA, _pattern(rest, ".schema [TABLE]")),
        ),
        ".tables": Command(
            "[PATTERN]",
            "List the tables and views; % stands for anything.",
            lambda shell, rest: shell.show(_TABLES, _pattern(rest, ".tables [PATTERN]")),
        ),
        ".timer": Command("on|off", "Tell how long each statement took.", _timer),
    }
)
"""The dot commands."""
