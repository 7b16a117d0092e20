"""Commands that work on the files: check, backup, restore, compact; and the completion script."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from toondb.engine import maintenance
from toondb.engine.file_check import Damage, FileReport

from .cli_options import EXIT_ERROR, ProgressLine, database_option, ends_on_sigterm, json_option, print_json

__all__ = ["backup", "check", "compact", "completion", "restore"]


@click.command()
@database_option
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print only damage.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Damages to print at the most."
)
def check(database: str, as_json: bool, quiet: bool, limit: int) -> None:
    """Check every page and record.

    Works while a daemon serves the database. A backup can be checked, too.

    Exit status: 0 nothing is damaged, 1 something is (or it could not be checked).
    """
    with ProgressLine() as progress:
        report = maintenance.check(
            database, limit=limit, progress=lambda done, total: progress("checking", done, total)
        )
    if as_json:
        print_json(report.to_json())
    elif report.ok:
        if not quiet:
            click.echo(_summary(report))
            click.echo("No damage found.")
    else:
        for damage in report.damages:
            click.echo(f"damage: {_place(damage)}: {damage.message}")
        if report.truncated:
            click.echo(f"... and more; see them with --limit (now {limit})")
        click.echo(_advice(report, database), err=True)
    sys.exit(0 if report.ok else EXIT_ERROR)


def _summary(report: FileReport) -> str:
    return (
        f"{report.path}: {report.records} records at LSN {report.lsn or 0}, "
        f"{report.pages_total} pages of {report.page_size} bytes, {report.pages_free} of them free."
    )


def _place(damage: Damage) -> str:
    words = [damage.kind]
    if damage.database is not None:
        words.append(f"in {damage.database!r}")
    if damage.page is not None:
        words.append(f"page {damage.page}")
    return " ".join(words)


def _advice(report: FileReport, database: str) -> str:
    lines = ["What to do: look for the cause first (memory, disk, kernel log). Then"]
    if {damage.kind for damage in report.damages} == {"record"} and not report.truncated:
        lines.append("- store or delete the named keys again: only their values are damaged; or")
    lines += [
        f"- stop the daemon: toondb-server stop --db {database}",
        f"- put a backup in place: toondb-server restore BACKUP --db {database} --force",
        "  (the damaged file is kept beside it).",
    ]
    return "\n".join(lines)


@click.command()
@click.argument("target", metavar="TARGET", type=click.Path())
@database_option
@click.option("--compact", is_flag=True, help="Leave out free pages: slower, and the backup is smaller.")
@json_option
@ends_on_sigterm
def backup(target: str, database: str, compact: bool, as_json: bool) -> None:
    """Copy the database to a new folder, TARGET.

    Works while a daemon serves the database. The copy is one consistent snapshot, checked page by page before
    TARGET appears.
    """
    with ProgressLine() as progress:
        report = maintenance.backup(database, target, compact=compact, progress=progress)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(f"Backup: {report.path}")
        click.echo(f"{report.records} records at LSN {report.lsn}, {report.bytes} bytes, checked.")


@click.command()
@click.argument("source", metavar="BACKUP", type=click.Path())
@database_option
@click.option("--force", is_flag=True, help="Replace the database that is there; its file is kept beside the new one.")
@json_option
@ends_on_sigterm
def restore(source: str, database: str, force: bool, as_json: bool) -> None:
    """Put a backup in place as the database.

    No daemon may run on it meanwhile. The backup is checked first. BACKUP is a folder made by the backup command,
    or a data.mdb file by itself.
    """
    with ProgressLine() as progress:
        report = maintenance.restore(source, database, force=force, progress=progress)
    if as_json:
        print_json(report.to_json())
        return
    click.echo(f"Restored: {report.path}")
    click.echo(f"{report.records} records at LSN {report.lsn}, {report.bytes} bytes, checked.")
    if report.previous is not None:
        click.echo(f"The database that was there is kept: {report.previous}")
        click.echo("Delete it when the restored data proved right.")


@click.command()
@database_option
@json_option
@ends_on_sigterm
def compact(database: str, as_json: bool) -> None:
    """Shrink the database file.

    It is rewritten without its free pages. No daemon may run on it meanwhile, and there must be room for both.
    """
    with ProgressLine() as progress:
        report = maintenance.compact(database, progress=progress)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(f"Compacted: {report.path}")
        click.echo(f"{report.bytes_before} bytes before, {report.bytes_after} bytes now; {report.records} records.")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash:  toondb-server completion bash > ~/.local/share/bash-completion/completions/toondb-server
    zsh:   toondb-server completion zsh > ~/.zfunc/_toondb-server   (a folder in $fpath)
    fish:  toondb-server completion fish > ~/.config/fish/completions/toondb-server.fish
    """
    root = ctx.find_root()
    script = get_completion_class(shell)
    assert script is not None
    name = root.info_name or "toondb-server"
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    click.echo(script(root.command, {}, name, variable).source())
