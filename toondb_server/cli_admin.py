"""The commands beside ``serve``."""

from __future__ import annotations

import click

from . import cli_control, cli_maintenance, cli_sql

__all__ = ["register"]


def register(group: click.Group) -> None:
    """Add the commands to the group."""
    for command in (
        cli_control.status,
        cli_control.stop,
        cli_control.stats,
        cli_sql.sql,
        cli_sql.sql_import,
        cli_sql.sql_export,
        cli_maintenance.check,
        cli_maintenance.backup,
        cli_maintenance.restore,
        cli_maintenance.compact,
        cli_maintenance.completion,
    ):
        group.add_command(command)
