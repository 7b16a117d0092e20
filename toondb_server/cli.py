"""The ``toondb-server`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from toondb.command import run_command
from toondb.engine.options import DEFAULT_MAP_SIZE, SyncMode
from toondb_protocol.errors import ConfigurationError

from . import __version__
from .cli_options import database_option, setting, socket_option
from .cli_types import ByteSize, OctalMode, UserId
from .config import DEFAULT_STATEMENT_TIMEOUT_MS, ServerConfig

__all__ = ["cli", "main"]


class _ServeByDefault(click.Group):
    """``toondb-server --db X`` is ``toondb-server serve --db X``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        # Completing the first word proposes the commands.
        if (not args and not ctx.resilient_parsing) or (args and args[0].startswith("-") and args[0] not in own):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_commands(ctx, formatter)
        options = [option.get_help_record(ctx) for option in self.commands["serve"].params]
        with formatter.section("Options of serve, the default command"):
            formatter.write_dl([option for option in options if option is not None])


@click.group(
    cls=_ServeByDefault,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="The ToonDB daemon: one process owns a database folder and serves it on a Unix socket.\n\n"
    "Without a command it serves: `toondb-server --db ./data` is `toondb-server serve --db ./data`.",
)
@click.version_option(__version__, prog_name="toondb-server")
def cli() -> None:
    """The command group."""


@cli.command()
@database_option
@socket_option
@setting(
    "--max-clients",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Connections at the most.",
)
@setting(
    "--timeout-ms",
    type=click.IntRange(1),
    default=30_000,
    show_default=True,
    help="A frame must complete, a reply drain, and an open transaction be touched within it.",
)
@setting(
    "--max-transaction-age-ms",
    type=click.IntRange(0),
    default=0,
    help="A transaction may stay open so long in all.  [default: 10 x timeout]",
)
@setting(
    "--drain-ms",
    type=click.IntRange(0),
    default=10_000,
    show_default=True,
    help="At a stop, clients that do not read their replies are cut off after it.",
)
@setting(
    "--log-level",
    type=click.Choice(["trace", "debug", "info", "warn", "error"]),
    default="info",
    show_default=True,
    help="Least severe messages to log, on standard error.",
)
@setting(
    "--sync-mode",
    type=click.Choice([mode.value for mode in SyncMode]),
    default=SyncMode.FULL.value,
    show_default=True,
    help="full: an acknowledged write survives power loss. normal: power loss may undo the last ones. "
    "off: power loss may damage the store.",
)
@setting(
    "--map-size",
    type=ByteSize(),
    default=str(DEFAULT_MAP_SIZE),
    show_default="1TiB",
    help="Upper bound of the store, for example 64GiB. The file grows with the data only.",
)
@setting(
    "--max-frame",
    type=ByteSize(),
    default="16MiB",
    show_default=True,
    help="Largest request or reply payload.",
)
@setting(
    "--cache-size",
    type=ByteSize(),
    default="64MiB",
    show_default=True,
    help="Memory for ready replies to recent reads; 0 keeps none.",
)
@setting(
    "--change-history",
    type=ByteSize(),
    default="16MiB",
    show_default=True,
    help="Bytes of the file that the changes kept for watch() may take.",
)
@setting(
    "--max-transaction-bytes",
    type=ByteSize(),
    default="256MiB",
    show_default=True,
    help="Largest write set of one transaction.",
)
@setting(
    "--socket-mode",
    type=OctalMode(),
    default="600",
    show_default=True,
    help="Permission bits of the socket, in octal.",
)
@setting(
    "--socket-group",
    default=None,
    metavar="GROUP",
    help="Group of the socket.",
)
@setting(
    "--allow-uid",
    "allow_uids",
    type=UserId(),
    multiple=True,
    metavar="UID",
    help="User id or name that may connect; may be repeated.  [default: whoever the socket's mode lets in]",
)
@setting(
    "--foreign-keys",
    is_flag=True,
    help="Enforce FOREIGN KEY constraints in SQL.",
)
@setting(
    "--statement-timeout-ms",
    type=int,
    default=DEFAULT_STATEMENT_TIMEOUT_MS,
    show_default=True,
    help="A SQL statement may run for so long; 0 for ever.",
)
@setting(
    "--sql-memory",
    type=ByteSize(),
    default="1GiB",
    show_default=True,
    help="Memory that SQL statements may take in all; 0 for any.",
)
@setting(
    "--loop",
    type=click.Choice(["auto", "uvloop", "asyncio"]),
    default="auto",
    show_default=True,
    help="Event loop.",
)
def serve(log_level: str, sync_mode: str, allow_uids: Sequence[int], **options: Any) -> None:
    """Serve a database folder (the default).

    Until SIGTERM or Ctrl-C, which stop it gracefully.
    """
    from .daemon import run
    from .logs import configure

    configure(log_level)
    try:
        config = ServerConfig(sync_mode=SyncMode(sync_mode), allow_uids=frozenset(allow_uids), **options)
        config.engine_options()
    except ConfigurationError as error:
        raise click.UsageError(error.message) from None
    sys.exit(run(config))


def main() -> None:
    """Entry point; see :func:`run_command` for the exit status, and ``status`` for two more, 3 and 4."""
    from . import cli_admin

    cli_admin.register(cli)
    run_command(cli, "toondb-server", less="Do less at a time")
