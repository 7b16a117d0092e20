"""Where the parts of an INSERT, UPDATE or DELETE are in its text.

Only as much of the grammar is known as is needed to run the same statement for one row with other values. What SQLite
would refuse is not found here: a statement is looked at after, or while, SQLite prepares it.

Source: https://www.sqlite.org/lang_insert.html, https://www.sqlite.org/lang_update.html,
https://www.sqlite.org/lang_upsert.html, https://www.sqlite.org/lang_expr.html#varparam
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

import apsw

__all__ = ["VALUE", "Kind", "Part", "RowStatement", "changes_schema", "filled", "parse", "statements"]

VALUE: Final = "\0?"
"""Stands for a value in the pieces that :func:`filled` takes: names of columns may have question marks, but no NUL."""

_TOKEN: Final = re.compile(
    r"""
      (?P<blank>[ \t\n\f\r]+ | --[^\n]* | /\*.*?(?:\*/|\Z))
    | (?P<quoted>'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\])
    | (?P<parameter>\?[0-9]* | [:@#$][A-Za-z0-9_$\x80-\U0010ffff]+(?:::[A-Za-z0-9_$]+)*(?:\([^)]*\))?)
    | (?P<number>[0-9][0-9A-Za-z_.]*)
    | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_READS: Final = frozenset({"SELECT", "VALUES", "EXPLAIN", "PRAGMA", "SAVEPOINT", "RELEASE", "ROLLBACK", "WITH"})


class Kind(StrEnum):
    """What a statement does to rows."""

    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


class Part(NamedTuple):
    """A piece of a statement.

    Attributes:
        text: The text, without what surrounds it.
        parameters: The place, name and number of each parameter in it.
    """

    text: str
    parameters: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True, slots=True)
class RowStatement:
    """The parts of a statement that changes rows.

    Attributes:
        kind: REPLACE is an INSERT.
        table: The table, without the schema; its name is not quoted.
        prefix: WITH and its tables; may be empty.
        verb: From INSERT or UPDATE to before the table.
        alias: ``AS`` and the other name of the table, or nothing.
        columns: The columns that an INSERT lists; None when it lists none.
        source: Where the rows of an INSERT come from.
        tail: ON CONFLICT and RETURNING.
        returning: RETURNING alone.
        upsert: There is an ON CONFLICT clause.
    """

    kind: Kind
    table: str
    prefix: Part
    verb: str
    alias: str
    columns: tuple[str, ...] | None
    source: Part
    tail: Part
    returning: Part
    upsert: bool

    @property
    def kept(self) -> bool:
        """Whether there are parameters in what is kept for each row."""
        return bool(self.prefix.parameters or self.tail.parameters)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int
    depth: int

    @property
    def word(self) -> str:
        return self.text.upper() if self.kind == "word" else self.text if self.kind == "other" else ""


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    depth = 0
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind == "blank":
            continue
        piece = match.group()
        if piece == ")":
            depth -= 1
        found.append(_Token(kind, piece, match.start(), match.end(), depth))
        if piece == "(":
            depth += 1
    return found


def statements(text: str) -> Iterator[str]:
    """The statements of a script."""
    start = 0
    for token in _tokens(text):
        # A trigger has semicolons inside; SQLite knows where it ends.
        if token.text == ";" and apsw.complete(text[start : token.end]):
            yield text[start : token.end]
            start = token.end
    if _tokens(text[start:]):
        yield text[start:]


def changes_schema(text: str) -> bool:
    """Whether a statement that changes no rows may change tables."""
    first = next(iter(_tokens(text)), None)
    return first is not None and first.word not in _READS


def parse(text: str) -> RowStatement | None:
    """The parts of a statement; None when it is none that changes rows."""
    tokens = [token for token in _tokens(text) if token.text != ";"]
    first = tokens[0].word if tokens else ""
    at = 0
    if first == "WITH":
        at = next((at for at in range(len(tokens)) if tokens[at].depth == 0 and _verb(tokens, at)), -1)
    if at < 0 or not tokens or not _verb(tokens, at):
        return None
    return _Parser(text, tokens).parse(at)


def _verb(tokens: Sequence[_Token], at: int) -> bool:
    word = tokens[at].word
    if word == "REPLACE":  # this may be a name, too
        return at + 1 < len(tokens) and tokens[at + 1].word == "INTO"
    return word in Kind.__members__


class _Parser:
    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text = text
        self._tokens = [*tokens, _Token("end", "", len(text), len(text), 0)]
        self._numbers = _numbered(tokens)
        self._at = 0

    def parse(self, verb: int) -> RowStatement:
        start, self._at = verb, verb
        word = self._next()
        kind = Kind.INSERT if word == "REPLACE" else Kind(word)
        if self._word == "OR":
            self._at += 2
        if self._word in ("INTO", "FROM"):
            self._at += 1
        table_at = self._at
        table = self._name()
        if self._word == ".":
            self._at += 1
            table = self._name()
        alias = ""
        if self._word == "AS":
            alias = self._part(self._at, self._at + 2).text
            self._at += 2
        columns = self._columns() if kind is Kind.INSERT and self._word == "(" else None
        source = self._at
        conflict, returning = self._tail(kind)
        tail = min(conflict, returning)
        return RowStatement(
            kind,
            table,
            self._part(0, start),
            self._part(start, table_at).text,
            alias,
            columns,
            self._part(source, tail),
            self._part(tail, len(self._tokens) - 1),
            self._part(returning, len(self._tokens) - 1),
            conflict < len(self._tokens) - 1,
        )

    @property
    def _peek(self) -> _Token:
        return self._tokens[min(self._at, len(self._tokens) - 1)]

    @property
    def _word(self) -> str:
        return self._peek.word

    def _next(self) -> str:
        word = self._word
        self._at += 1
        return word

    def _name(self) -> str:
        token = self._peek
        self._at += 1
        return _unquoted(token.text) if token.kind == "quoted" else token.text

    def _columns(self) -> tuple[str, ...]:
        self._at += 1
        names: list[str] = []
        while self._peek.depth > 0:
            if self._word == ",":
                self._at += 1
            else:
                names.append(self._name())
        self._at += 1
        return tuple(names)

    def _tail(self, kind: Kind) -> tuple[int, int]:
        """Where ON CONFLICT and RETURNING begin; the end of the statement when there are none."""
        end = len(self._tokens) - 1
        conflict = returning = end
        for at in range(self._at, end):
            token = self._tokens[at]
            if token.depth:
                continue
            if token.word == "RETURNING":
                returning = at
                break
            # Three words: a join may be ON a column that is called conflict.
            if kind is Kind.INSERT and conflict == end and token.word == "ON" and at + 2 < end:
                after = self._tokens[at + 1].word, self._tokens[at + 2].word
                if after in (("CONFLICT", "("), ("CONFLICT", "DO")):
                    conflict = at
        return conflict, returning

    def _part(self, start: int, end: int) -> Part:
        """The text of some tokens."""
        if start >= end:
            return Part("", ())
        first, last = self._tokens[start].start, self._tokens[end - 1].end
        found = [
            (token.start - first, token.text, self._numbers[token.start])
            for token in self._tokens[start:end]
            if token.kind == "parameter"
        ]
        return Part(self._text[first:last], tuple(found))


def _numbered(tokens: Iterable[_Token]) -> dict[int, int]:
    """The number that SQLite gives to each parameter, by its place."""
    largest = 0
    names: dict[str, int] = {}
    numbers: dict[int, int] = {}
    for token in tokens:
        if token.kind != "parameter":
            continue
        name = token.text
        if name == "?":
            number = largest + 1
        elif name[0] == "?":
            number = int(name[1:])
        else:
            number = names.setdefault(name, largest + 1)
        largest = max(largest, number)
        numbers[token.start] = number
    return numbers


def _unquoted(name: str) -> str:
    quote = name[0]
    return name[1:-1] if quote == "[" else name[1:-1].replace(quote * 2, quote)


def filled(
    pieces: Iterable[str | Part], own: Sequence[Any], bindings: Sequence[Any] | Mapping[str, Any] | None
) -> tuple[str, Sequence[Any] | Mapping[str, Any]]:
    """A statement of pieces and the values of its parameters.

    Args:
        pieces: What is ours, where :data:`VALUE` stands for the next of our values, and parts of the user's statement.
        own: Our values.
        bindings: The values of the user's statement.
    """
    named = isinstance(bindings, Mapping)
    parts: list[str] = []
    count = last = 0
    for piece in pieces:
        if isinstance(piece, Part):
            text, end = "", 0
            for at, name, number in piece.parameters:
                text += piece.text[end:at] + (name if named else f"?{len(own) + number}")
                end = at + len(name)
                last = max(last, number)
            parts.append(text + piece.text[end:])
            continue
        ours = piece.split(VALUE)
        text = ours[0]
        for rest in ours[1:]:
            count += 1
            text += (f":toondb_{count}" if named else f"?{count}") + rest
        parts.append(text)
    # Each on a line of its own: the user's may end with a comment.
    text = "\n".join(part for part in parts if part)
    if isinstance(bindings, Mapping):
        return text, {**bindings, **{f"toondb_{at}": value for at, value in enumerate(own, 1)}}
    return text, [*own, *(bindings or ())[:last]]
