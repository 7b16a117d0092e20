"""What a SQL text is, as far as a driver must know: its verb, and whether it begins or ends a transaction."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

__all__ = ["CHANGING", "INSERTING", "READING", "Control", "control_of", "statements_of", "verb_of"]

CHANGING = frozenset({"INSERT", "REPLACE", "UPDATE", "DELETE"})
"""Verbs of statements that count the rows that they change."""

INSERTING = frozenset({"INSERT", "REPLACE"})
"""Verbs of statements that give rows their id."""

READING = frozenset({"SELECT", "VALUES"})
"""Verbs of statements that may give any number of rows."""

_GAP = r"\s+|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z)"
_LEADING = re.compile(rf"(?:{_GAP}|;)*", re.DOTALL)
_WORD = re.compile(r"[^\W\d]\w*")
_TOKEN = re.compile(
    rf"(?P<gap>{_GAP})|(?P<word>[^\W\d][\w$]*)"
    r"""|'(?:[^']|'')*(?:'|\Z)|"(?:[^"]|"")*(?:"|\Z)|`(?:[^`]|``)*(?:`|\Z)|\[[^\]]*(?:\]|\Z)|.""",
    re.DOTALL,
)
_MAIN_VERBS = CHANGING | READING
_TRIGGER = re.compile(r"CREATE (?:TEMP |TEMPORARY )?TRIGGER(?: |$)")


class Control(Enum):
    """What a statement does with the transaction as a whole."""

    BEGIN = "BEGIN"
    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"


# The grammar of https://www.sqlite.org/lang_transaction.html, over words separated by one space.
_CONTROLS = (
    (Control.BEGIN, re.compile(r"BEGIN(?: (?:DEFERRED|IMMEDIATE|EXCLUSIVE))?(?: TRANSACTION(?: \S+)?)?")),
    (Control.COMMIT, re.compile(r"(?:COMMIT|END)(?: TRANSACTION(?: \S+)?)?")),
    (Control.ROLLBACK, re.compile(r"ROLLBACK(?: TRANSACTION(?: (?!TO\b)\S+)?)?")),
)
_CONTROL_WORDS = frozenset({"BEGIN", "COMMIT", "END", "ROLLBACK"})


def verb_of(sql: str) -> str:
    """The word that a statement begins with, in capitals; after ``WITH`` that of its main part."""
    start = _LEADING.match(sql)
    at = start.end() if start else 0
    word = _WORD.match(sql, at)
    if word is None:
        return ""
    verb = word[0].upper()
    if verb != "WITH":
        return verb
    depth = 0
    for token in _TOKEN.finditer(sql, word.end()):
        text = token[0]
        if text == "(":
            depth += 1
        elif text == ")":
            depth -= 1
        elif depth == 0 and token["word"] and text.upper() in _MAIN_VERBS:
            return text.upper()
    return verb


def control_of(sql: str) -> Control | None:
    """How a statement begins or ends a transaction; None = it does not."""
    if verb_of(sql) not in _CONTROL_WORDS:
        return None
    words = " ".join(token[0] for token in _TOKEN.finditer(sql) if not token["gap"])
    text = words.strip("; ").upper()
    return next((control for control, form in _CONTROLS if form.fullmatch(text)), None)


def statements_of(script: str) -> Iterator[str]:
    """The statements of a script, each with what stands before it; the ``;`` inside a trigger ends none."""
    start = 0
    words: list[str] = []
    tail: tuple[str, str] = ("", "")
    for token in _TOKEN.finditer(script):
        if token["gap"]:
            continue
        text = token[0].upper()
        if text == ";" and words:
            inside_trigger = _TRIGGER.match(" ".join(words)) is not None
            if not inside_trigger or tail == (";", "END"):
                yield script[start : token.end()]
                start = token.end()
                words = []
                tail = ("", "")
                continue
        elif text != ";" and len(words) < 3:
            words.append(text)
        tail = (tail[1], text)
    if words:
        yield script[start:]
