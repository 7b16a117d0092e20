"""A context as text, in one of several formats."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from toondb.toon import DIALECTS, to_toon
from toondb_protocol.arguments import shown
from toondb_protocol.errors import ValidationError

from .chunk import ContextChunk

__all__ = ["FORMATS", "Numbered", "Render", "renderer"]

Numbered: TypeAlias = tuple[int, ContextChunk]
"""A chunk and its number in the context, from 1."""

Render: TypeAlias = Callable[[Sequence[Numbered]], str]
"""Writes chunks, in their order. What it writes for none must be as short as the format allows."""

_OWN_FIELDS: Final = ("id", "score", "text")


def text(separator: str = "\n\n") -> Render:
    """The texts alone.

    Args:
        separator: What stands between two.
    """
    if not isinstance(separator, str):
        raise ValidationError(f"separator is text, got {shown(separator)}.")
    return lambda chunks: separator.join(chunk.text for _, chunk in chunks)


def markdown(include_scores: bool = False, fields: Sequence[str] = ()) -> Render:
    """Each text below a heading with its number.

    Args:
        include_scores: Write the relevance into the headings.
        fields: Fields of the metadata, each in a line of its own between heading and text.
    """
    _check(include_scores, fields)

    def section(number: int, chunk: ContextChunk) -> str:
        score = f" (score {chunk.relevance:.2f})" if include_scores else ""
        facts = "\n".join(
            f"{_in_line(name)}: {_in_line(chunk.metadata[name])}" for name in fields if name in chunk.metadata
        )
        return "\n\n".join(part for part in (f"## Chunk {number}{score}", facts, chunk.text) if part)

    return lambda chunks: "\n\n".join(section(number, chunk) for number, chunk in chunks)


def toon(
    table: str = "context", include_scores: bool = False, fields: Sequence[str] = (), dialect: str = "classic"
) -> Render:
    """A TOON table of ids and texts.

    Args:
        table: Its name.
        include_scores: Write the relevance, too.
        fields: Fields of the metadata, as columns.
        dialect: See :func:`toondb.toon.to_toon`.
    """
    _check(include_scores, fields)
    if not isinstance(table, str):
        raise ValidationError(f"table is text, got {shown(table)}.")
    if dialect not in DIALECTS:
        raise ValidationError(f"dialect is one of {', '.join(DIALECTS)}, got {shown(dialect)}.")
    names = ["id", *(["score"] if include_scores else []), *fields, "text"]

    def row(chunk: ContextChunk) -> dict[str, Any]:
        score, known = _score(chunk), {name: chunk.metadata[name] for name in fields if name in chunk.metadata}
        if dialect == "spec":
            # The published format has no float that is whole, and a table of it no empty cell.
            score = int(score) if score.is_integer() else score
            known = {name: known.get(name) for name in fields}
        return {"id": chunk.id, "score": score, **known, "text": chunk.text}

    def rows(chunks: Sequence[Numbered]) -> str:
        # Nor has it names of columns without a row.
        columns = [] if dialect == "spec" and not chunks else names
        return to_toon(table, [row(chunk) for _, chunk in chunks], columns, dialect=dialect)

    return rows


def as_json(include_scores: bool = False, fields: Sequence[str] = (), indent: int | None = None) -> Render:
    """An array of objects.

    Args:
        include_scores: Write the relevance as ``score``.
        fields: Fields of the metadata, in an object ``metadata``.
        indent: Spaces of each level; None = everything in one line.
    """
    _check(include_scores, fields)
    if indent is not None and (isinstance(indent, bool) or not isinstance(indent, int) or not 0 <= indent <= 16):
        raise ValidationError(f"indent is None or a number of 0 to 16, got {shown(indent)}.")
    encode = json.JSONEncoder(
        ensure_ascii=False, indent=indent, separators=(",", ":" if indent is None else ": ")
    ).encode

    def record(chunk: ContextChunk) -> dict[str, Any]:
        found: dict[str, Any] = {"id": chunk.id}
        if include_scores:
            found["score"] = _score(chunk)
        if fields:
            found["metadata"] = {name: chunk.metadata[name] for name in fields if name in chunk.metadata}
        found["text"] = chunk.text
        return found

    return lambda chunks: encode([record(chunk) for _, chunk in chunks])


FORMATS: Final[Mapping[str, Callable[..., Render]]] = {
    "text": text,
    "markdown": markdown,
    "toon": toon,
    "json": as_json,
}
"""The formats, by name: functions of their options."""


def renderer(format: str, options: Mapping[str, Any]) -> Render:
    """What writes a format with these options.

    Raises:
        ValidationError: There is no such format, it has no such option, or an option cannot be.
    """
    make = FORMATS.get(format) if isinstance(format, str) else None
    if make is None:
        raise ValidationError(f"the format {shown(format)} is unknown; known: {', '.join(FORMATS)}.")
    known = inspect.signature(make).parameters
    for name in options:
        if name not in known:
            raise ValidationError(f"the format {format} has no option {shown(name)}; it has {', '.join(known)}.")
    return make(**options)


def _check(include_scores: object, fields: object) -> None:
    if not isinstance(include_scores, bool):
        raise ValidationError(f"include_scores is True or False, got {shown(include_scores)}.")
    if isinstance(fields, str) or not isinstance(fields, Sequence):
        raise ValidationError(f"fields is a list of names of metadata, got {shown(fields)}.")
    for at, name in enumerate(fields):
        if not isinstance(name, str):
            raise ValidationError(f"fields is a list of names of metadata, got {shown(name)} in it.")
        if name in _OWN_FIELDS:
            raise ValidationError(f"fields names {name!r}; {', '.join(_OWN_FIELDS)} are fields of the context itself.")
        if name in fields[:at]:
            raise ValidationError(f"fields names {shown(name)} twice.")


def _score(chunk: ContextChunk) -> float:
    return round(chunk.relevance, 4)


def _in_line(value: object) -> str:
    return " ".join((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).split())
