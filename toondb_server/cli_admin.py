"""Commands beside ``serve``; replaced below by the real ones."""

from __future__ import annotations

import click


def register(group: click.Group) -> None:
    """Add the commands."""
