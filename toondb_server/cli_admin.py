"""The commands beside ``serve``."""

from __future__ import annotations

import click

from . import cli_control, cli_maintenance

__all__ = ["register"]


def register(group: click.Group) -> None:
    """Add the commands to the group."""
    for command in (
        cli_control.status,
        cli_control.stop,
        cli_control.stats,
        cli_maintenance.check,
        cli_maintenance.backup,
        cli_maintenance.restore,
        cli_maintenance.compact,
        cli_maintenance.completion,
    ):
        group.add_command(command)
