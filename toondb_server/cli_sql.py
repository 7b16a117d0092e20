"""Commands for SQL: sql, sql-import, sql-export."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click

from toondb_protocol.errors import ToonDBError

from .cli_options import EXIT_ERROR, database_option, ends_on_sigterm, json_option, setting, socket_option
from .shell.commands import Quit
from .shell.exporting import EXTENSIONS, export_rows, export_to, query_of
from .shell.files import OutputFile, utf8_text
from .shell.formats import FORMATS, Style
from .shell.importing import import_rows
from .shell.inference import number_of
from .shell.options import IMPORT_PARAMETERS, Delimiter, import_options, report_text
from .shell.progress import RowProgress, rows_of
from .shell.session import Parameters, Session
from .shell.shell import Shell, complaint
from .shell.store import StoreOptions, open_store

__all__ = ["sql", "sql_export", "sql_import"]


# Options that these commands share


def _store_options(function: Any) -> Any:
    for option in (
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True, max=1e6),
            default=None,
            metavar="SECONDS",
            help="A statement may run for so long.  [default: any time]",
        ),
        setting(
            "--foreign-keys",
            is_flag=True,
            help="Enforce FOREIGN KEY constraints; a daemon has this option of its own.",
        ),
        socket_option,
        database_option,
    ):
        function = option(function)
    return function


def _create_database_option(name: str) -> Callable[[Any], Any]:
    return click.option(name, "create_database", is_flag=True, help="Make the database when there is none.")


_parameter_option = click.option(
    "-p",
    "--param",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="Value of the parameter :NAME; NAME alone is NULL, and 1=, 2=, ... are those of ?.",
)


def _given_parameters(given: Sequence[str]) -> Parameters:
    """What ``--param`` says: numbers that are written like one, else texts.

    Raises:
        click.UsageError: A name is missing or given twice, or numbers have a gap.
    """
    values: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        name = name.strip().lstrip(":@$")
        if not name:
            raise click.UsageError(f"--param {item!r} has no name; write NAME=VALUE.")
        if name in values:
            raise click.UsageError(f"--param {name} is given twice.")
        values[name] = number_of(text) if equals else None
    if not values or not all(name.isdecimal() for name in values):
        return values or None
    numbers = sorted(map(int, values))
    if numbers != list(range(1, len(values) + 1)):
        raise click.UsageError("--param 1=, 2=, ... must begin with 1 and have no gap.")
    return [values[str(number)] for number in numbers]


def _reports_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Let an error end a command with its code and what to do."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except ToonDBError as error:
            click.echo(complaint(error), err=True)
            sys.exit(EXIT_ERROR)

    return command


@contextlib.contextmanager
def _session(
    database: str,
    socket: str | None,
    timeout: float | None,
    foreign_keys: bool,
    *,
    create: bool = False,
    read_only: bool = False,
) -> Iterator[tuple[Session, str]]:
    store, where = open_store(StoreOptions(database, socket, create, timeout, foreign_keys))
    with store:
        session = Session(store, read_only=read_only)
        try:
            yield session, where
        finally:
            session.close()


# sql


def _format_option(name: str) -> Callable[[Any], Any]:
    texts = {
        "json": "Write rows as one JSON array for each statement.",
        "jsonl": "Write each row as a JSON object on a line.",
        "csv": "Write rows as CSV.",
        "toon": "Write rows as TOON.",
        "line": "Write each value on a line.",
    }
    return click.option(f"--{name}", "formats", flag_value=name, multiple=True, help=texts[name])


@click.command()
@click.argument("statements", nargs=-1, metavar="[STATEMENT]...")
@_store_options
@_create_database_option("--create")
@click.option("-f", "--file", "files", multiple=True, metavar="FILE", help="Run the statements of a file; - is a pipe.")
@_parameter_option
@click.option("-1", "--single-transaction", is_flag=True, help="Run all statements in one transaction.")
@click.option("--read-only", is_flag=True, help="Refuse statements that write.")
@_format_option("json")
@_format_option("jsonl")
@_format_option("csv")
@_format_option("toon")
@_format_option("line")
@click.option("--no-header", is_flag=True, help="Tables and CSV do not begin with the names of the columns.")
@click.option("--null", default=None, metavar="TEXT", help="NULL in tables and CSV.  [default: NULL; in CSV nothing]")
@click.option("--delimiter", type=Delimiter(), default=",", metavar="CHAR", help="Between fields.  [default: comma]")
@click.option("-o", "--output", default=None, metavar="FILE", help="Write rows to FILE; it appears when all is done.")
@click.option("-q", "--quiet", is_flag=True, help="Do not count rows.")
@ends_on_sigterm
@_reports_errors
def sql(
    statements: Sequence[str],
    database: str,
    socket: str | None,
    timeout: float | None,
    foreign_keys: bool,
    create_database: bool,
    files: Sequence[str],
    parameters: Sequence[str],
    single_transaction: bool,
    read_only: bool,
    formats: Sequence[str],
    no_header: bool,
    null: str | None,
    delimiter: str,
    output: str | None,
    quiet: bool,
) -> None:
    """Run SQL statements, or prompt for them.

    Through the daemon when one serves the database, else on its files. Without STATEMENT and --file, statements come
    from standard input, on a terminal from a prompt.

    Exit status: 0, 1 a statement failed (those before it are kept, but not of an open transaction), 130 Ctrl-C.
    """
    if len(set(formats)) > 1:
        raise click.UsageError(f"only one of --{' and --'.join(formats)} can be given.")
    prompts = not statements and not files and sys.stdin.isatty() and sys.stdout.isatty()
    if prompts and (single_transaction or output):
        raise click.UsageError("--single-transaction and --output are not for the prompt: use BEGIN and .output there.")
    style = Style(formats[0] if formats else "table", not no_header, null, delimiter, footer=not quiet)
    values = _given_parameters(parameters)
    with _session(database, socket, timeout, foreign_keys, create=create_database, read_only=read_only) as (
        session,
        where,
    ):
        shell = Shell(session, style, parameters=values, out=OutputFile(output) if output else None)
        finished = False
        try:
            if single_transaction:
                session.begin()
            try:
                if prompts:
                    shell.run_prompt(where)
                else:
                    for path in files or ([] if statements else ["-"]):
                        shell.run_file(path)
                    for statement in statements:
                        shell.run_argument(statement)
            except Quit:
                pass
            if single_transaction and session.in_transaction:
                session.commit()
            shell.finish()
            finished = True
        finally:
            shell.discard()
            unfinished = session.close()
            if unfinished:
                why = ": there was no COMMIT." if finished else "."
                click.echo(f"The open transaction was rolled back{why}", err=True)
    if unfinished and not prompts:
        sys.exit(EXIT_ERROR)


# sql-import


@click.command("sql-import", params=list(IMPORT_PARAMETERS))
@_store_options
@_create_database_option("--create-database")
@json_option
@ends_on_sigterm
@_reports_errors
def sql_import(
    database: str,
    socket: str | None,
    timeout: float | None,
    foreign_keys: bool,
    create_database: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Load a file of CSV or JSON lines into a TABLE.

    FILE - is standard input. All rows are one transaction: all of them are imported, or none.

    Exit status: 0, 1 nothing was imported (with --commit-rows: what came before the error was).
    """
    options = import_options(**given)
    with _session(database, socket, timeout, foreign_keys, create=create_database) as (session, _):
        with RowProgress("importing") as progress:
            report = import_rows(session, options, progress)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        click.echo(report_text(report, options))


# sql-export


@click.command("sql-export")
@click.argument("path", metavar="FILE")
@click.argument("query", metavar="TABLE|QUERY")
@_store_options
@_parameter_option
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["auto", *FORMATS]),
    default="auto",
    show_default=True,
    help=f"Format of FILE; auto goes by its name ({', '.join(EXTENSIONS)}), and is csv for -.",
)
@click.option("--no-header", is_flag=True, help="CSV does not begin with the names of the columns.")
@click.option("--null", default=None, metavar="TEXT", help="NULL in CSV.  [default: nothing]")
@click.option("--delimiter", type=Delimiter(), default=None, metavar="CHAR", help="Between fields.  [default: comma]")
@ends_on_sigterm
@_reports_errors
def sql_export(
    path: str,
    query: str,
    database: str,
    socket: str | None,
    timeout: float | None,
    foreign_keys: bool,
    parameters: Sequence[str],
    file_format: str,
    no_header: bool,
    null: str | None,
    delimiter: str | None,
) -> None:
    """Write a table, or what a query gives, to a FILE.

    FILE - is standard output. A file appears, or takes the place of another, when it is whole. The rows are of one
    moment, whatever is written meanwhile.
    """
    style = export_to(path, file_format, delimiter)
    style.headers, style.null = not no_header, null
    values = _given_parameters(parameters)
    with _session(database, socket, timeout, foreign_keys) as (session, _):
        text = query_of(session, query)
        with RowProgress("exporting") as progress:
            if path == "-":
                with contextlib.closing(utf8_text(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))) as out:
                    export_rows(session, text, values, out, style, progress)
                return
            with OutputFile(path) as file:
                count = export_rows(session, text, values, file, style, progress)
    click.echo(f"Exported {rows_of(count)} to {path}.")
