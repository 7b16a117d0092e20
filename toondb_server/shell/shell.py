"""The shell: statements and dot commands, from arguments, files, a pipe or a prompt."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO

import click

from toondb_protocol.errors import SqlError, ToonDBError

from .commands import COMMANDS, Quit
from .files import OutputFile, open_input, utf8_text
from .formats import Style, write_rows
from .progress import rows_of
from .prompt import Completer, Editor, history_path
from .session import Parameters, Session
from .statements import Statement, StatementReader, split

__all__ = ["Shell", "complaint", "read_lines"]

_MAX_NESTED_FILES = 20
_FOR_PEOPLE = ("table", "line")

_COLUMNS = (
    "SELECT t.name, c.name FROM pragma_table_list t, pragma_table_xinfo(t.name) c WHERE t.schema = 'main' "
    "AND t.type IN ('table', 'view', 'virtual') AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND c.hidden <> 1"
)


def complaint(error: ToonDBError) -> str:
    """An error as people read it: the message with its code, and what to do."""
    text = f"Error: {error.message} [{error.code}]"
    return f"{text}\n  {error.remediation}" if error.remediation else text


def read_lines(path: str) -> Iterator[str]:
    """The lines of a file of statements, ``-`` = standard input.

    Raises:
        SqlError: It is not UTF-8; the message names the line.
        OSError: It cannot be read.
    """
    name = "standard input" if path == "-" else path
    with open_input(path) as file:
        for number, raw in enumerate(file, 1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise SqlError(f"{name}:{number}: byte {error.start + 1} of the line is not UTF-8.") from None


class Shell:
    """A session with its output.

    Args:
        session: The session.
        style: How rows are written.
        parameters: Values for the parameters of every statement.
        out: Where rows go; None = standard output.

    Attributes:
        timer: Tell how long each statement took.
        interactive: There is a prompt.
    """

    def __init__(
        self, session: Session, style: Style, *, parameters: Parameters = None, out: OutputFile | None = None
    ) -> None:
        self.session = session
        self.style = style
        self.timer = False
        self.interactive = False
        self._parameters = parameters
        sys.stdout.flush()
        # The encoding of the locale is for people; files and programs get UTF-8, and ends of lines as they are.
        self._stdout: TextIO = utf8_text(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
        self._file = out
        self._open_files: list[str] = []
        self._completer = Completer(sorted(COMMANDS), self._names)

    @property
    def out(self) -> TextIO:
        """Where rows go."""
        return self._stdout if self._file is None else self._file.text

    def say(self, text: str) -> None:
        """Tell people something that is no result."""
        click.echo(text, err=not self.interactive)

    def redirect(self, path: str | None) -> None:
        """Let rows go to a file, or to standard output again; the file before it is put in its place."""
        if self._file is not None:
            file, self._file = self._file, None
            file.finish()
        if path is not None:
            self._file = OutputFile(path)

    # Statements

    def run(self, statement: Statement) -> None:
        """Run a statement or a dot command.

        Raises:
            Quit: It asks for the end.
            ToonDBError, OSError, click.UsageError: It failed.
        """
        started = time.monotonic()
        try:
            if statement.is_command:
                COMMANDS.run(self, statement.text)
            else:
                self._run_sql(statement.text)
        finally:
            self._completer.forget()
        self.out.flush()
        if self.timer and not statement.is_command:
            self.say(f"Time: {time.monotonic() - started:.3f} s")

    def _run_sql(self, text: str) -> None:
        with self.session.run(text, self._parameters) as outcome:
            if outcome.columns:
                write_rows(outcome.columns, iter(outcome.rows), self.out, self.style)
            elif outcome.rows_affected is not None and self.style.format in _FOR_PEOPLE and self.style.footer:
                self.out.write(f"({rows_of(outcome.rows_affected)} affected)\n")

    def show(self, query: str, parameters: Parameters = None) -> None:
        """Write what a query of a dot command gives: for people the first column alone, each value on a line."""
        with self.session.run(query, parameters) as outcome:
            if self.style.format not in _FOR_PEOPLE:
                write_rows(outcome.columns, iter(outcome.rows), self.out, self.style)
                return
            for row in outcome.rows:
                self.out.write(f"{next(iter(row.values()))}\n")

    def run_argument(self, text: str) -> None:
        """Run the statements of one argument."""
        several = "\n" in text.strip()
        for statement in split(text):
            with _placed(f"line {statement.line}" if several else ""):
                self.run(statement)

    def run_file(self, path: str) -> None:
        """Run a file of statements, ``-`` = standard input; it ends at the first that fails.

        Raises:
            ToonDBError, OSError, click.UsageError: One failed; the message names the line.
        """
        name = "standard input" if path == "-" else path
        if len(self._open_files) >= _MAX_NESTED_FILES:
            raise click.UsageError(f"{name} is read more than {_MAX_NESTED_FILES} files deep.")
        self._open_files.append(name)
        try:
            self._run_lines(read_lines(path), name)
        finally:
            self._open_files.pop()

    def _run_lines(self, lines: Iterable[str], name: str) -> None:
        reader = StatementReader()
        with contextlib.closing(iter(lines)) as text:  # type: ignore[type-var]
            for line in text:
                for statement in reader.feed(line):
                    with _placed(f"{name}:{statement.line}"):
                        self.run(statement)
        rest = reader.rest()
        if rest is not None:
            with _placed(f"{name}:{rest.line}"):
                self.run(rest)

    # The prompt

    def run_prompt(self, where: str) -> None:
        """Read statements from the terminal until its end."""
        self.interactive = True
        editor = Editor(self._completer, history_path())
        click.echo(f"Connected to {where}." if where.startswith("the ") else f"Opened {where}; no daemon serves it.")
        click.echo("Statements end with ;   .help lists the commands, .quit or Ctrl-D leaves.")
        reader = StatementReader()
        typed: list[str] = []
        while True:
            try:
                line = editor.read("   ...> " if reader.pending else self._prompt())
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:
                click.echo("^C")
                reader.clear()
                typed.clear()
                continue
            typed.append(line)
            try:
                self._run_typed(list(reader.feed(f"{line}\n")))
            except Quit:
                return
            finally:
                if not reader.pending:
                    editor.remember("\n".join(typed))
                    typed.clear()

    def _prompt(self) -> str:
        if self.session.is_broken:
            return "toondb!> "
        return "toondb*> " if self.session.in_transaction else "toondb> "

    def _run_typed(self, statements: list[Statement]) -> None:
        """Run what one line completed; after one that fails, the rest of the line is dropped."""
        try:
            for statement in statements:
                self.run(statement)
        except KeyboardInterrupt:
            self._after_failure("\nInterrupted.")
        except ToonDBError as error:
            self._after_failure(complaint(error))
        except click.ClickException as error:
            self._after_failure(f"Error: {error.format_message()}")
        except OSError as error:
            self._after_failure(f"Error: {error.strerror or error}: {error.filename or 'the output'}")

    def _after_failure(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self.out.flush()
        click.echo(text, err=True)

    def _names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for table, column in self.session.rows_of(_COLUMNS):
            names.setdefault(table, []).append(column)
        return names

    # The end

    def finish(self) -> None:
        """Put the output in its place."""
        try:
            self.redirect(None)
            self._stdout.flush()
        finally:
            self.discard()

    def discard(self) -> None:
        """Give up what is not finished. Idempotent."""
        file, self._file = self._file, None
        if file is not None:
            file.discard()
        with contextlib.suppress(OSError):
            self._stdout.close()


@contextlib.contextmanager
def _placed(place: str) -> Iterator[None]:
    """Let the message of an error say where the statement is."""
    try:
        yield
    except ToonDBError as error:
        if place:
            error.message = f"{place}: {error.message}"
        raise
    except click.UsageError as error:
        text = error.format_message()
        raise click.UsageError(f"{place}: {text}" if place else text) from None
