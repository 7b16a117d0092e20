"""Parameter types of the command line."""

from __future__ import annotations

import re
from typing import Any

import click

__all__ = ["ByteSize", "OctalMode", "UserId"]

_UNITS = {"": 0, "b": 0, "k": 1, "kb": 1, "kib": 1, "m": 2, "mb": 2, "mib": 2, "g": 3, "gb": 3, "gib": 3}
_UNITS |= {"t": 4, "tb": 4, "tib": 4}


class ByteSize(click.ParamType[int]):
    """A size in bytes: ``1048576``, ``64MiB``, ``2g``. Units are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)\s*([a-zA-Z]*)", str(value).strip())
        if match is None or match[2].lower() not in _UNITS:
            self.fail(f"{value!r} is not a size; write for example 1048576, 64MiB or 2GiB.", param, ctx)
        return int(match[1]) << (10 * _UNITS[match[2].lower()])


class OctalMode(click.ParamType[int]):
    """Permission bits in octal: ``600``, ``0660``."""

    name = "octal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            mode = int(str(value).removeprefix("0o"), 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o777:
            self.fail(f"{value!r} is not a mode; write for example 600 or 660.", param, ctx)
        return mode


class UserId(click.ParamType[int]):
    """A user by id or name."""

    name = "uid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        if text.isascii() and text.isdigit():
            return int(text)
        import pwd

        try:
            return pwd.getpwnam(text).pw_uid
        except KeyError:
            self.fail(f"there is no user {text!r}.", param, ctx)
