"""The line editor of the prompt: history in a file, and completion."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

__all__ = ["KEYWORDS", "Completer", "Editor", "history_path"]

_WORDS = (
    "ABORT ADD AFTER ALL ALTER ANALYZE AND AS ASC AUTOINCREMENT BEFORE BEGIN BETWEEN BY CASCADE CASE CAST "
    "CHECK COLLATE COLUMN COMMIT CONFLICT CONSTRAINT CREATE CROSS CURRENT_DATE CURRENT_TIME "
    "CURRENT_TIMESTAMP DEFAULT DEFERRED DELETE DESC DISTINCT DO DROP EACH ELSE END ESCAPE EXCEPT EXISTS "
    "EXPLAIN FILTER FOR FOREIGN FROM FULL GENERATED GLOB GROUP HAVING IF IGNORE IN INDEX INNER INSERT "
    "INTERSECT INTO IS ISNULL JOIN KEY LEFT LIKE LIMIT MATCH MATERIALIZED NATURAL NOT NOTHING NOTNULL "
    "NULL NULLS OFFSET ON OR ORDER OUTER OVER PARTITION PLAN PRAGMA PRIMARY QUERY RECURSIVE REFERENCES "
    "REINDEX RELEASE RENAME REPLACE RETURNING RIGHT ROLLBACK ROW ROWS SAVEPOINT SELECT SET TABLE THEN TO "
    "TRANSACTION TRIGGER UNION UNIQUE UPDATE USING VALUES VIEW VIRTUAL WHEN WHERE WINDOW WITH WITHOUT"
)

KEYWORDS = _WORDS.split()
"""The keywords that are proposed."""

_KEPT = 2000
_DELIMITERS = " \t\n\"'`(),;=<>+-*/|%"
_TAKES_FILE = re.compile(r"\.(read|import|export|output)\s+\S*$")
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*").fullmatch


def history_path() -> Path | None:
    """Where the history is: ``$XDG_STATE_HOME/toondb/sql_history`` (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    # The specification has relative ones ignored.
    folder = Path(state) if os.path.isabs(state) else Path(os.path.expanduser("~/.local/state"))
    return folder / "toondb" / "sql_history" if folder.is_absolute() else None


class Completer:
    """Proposes keywords, dot commands, and the names of tables and columns.

    Args:
        commands: The dot commands.
        names: Answers the tables with their columns.
    """

    def __init__(self, commands: list[str], names: Callable[[], dict[str, list[str]]]) -> None:
        self._commands = commands
        self._names = names
        self._known: dict[str, list[str]] | None = None

    def forget(self) -> None:
        """A statement may have changed the tables."""
        self._known = None

    def propose(self, word: str, line: str) -> list[str]:
        """What ``word``, the last one of the line so far, may become."""
        if _TAKES_FILE.match(line):
            return [name + "/" if os.path.isdir(name) else name for name in sorted(glob.glob(glob.escape(word) + "*"))]
        if line.startswith("."):
            if line == word:
                return [command for command in self._commands if command.startswith(word)]
            return self._tables(word)
        if "." in word:
            table, _, start = word.rpartition(".")
            columns = next((item for name, item in self._tables_now().items() if name.lower() == table.lower()), [])
            return [f"{table}.{column}" for column in _starting(columns, start)]
        columns = sorted({column for of_table in self._tables_now().values() for column in of_table})
        keywords = [keyword.lower() if word.islower() else keyword for keyword in _starting(KEYWORDS, word)]
        return list(dict.fromkeys([*self._tables(word), *_starting(columns, word), *(keywords if word else [])]))

    def _tables(self, word: str) -> list[str]:
        return _starting(sorted(self._tables_now()), word)

    def _tables_now(self) -> dict[str, list[str]]:
        if self._known is None:
            self._known = self._names()
        return self._known


def _starting(names: list[str], start: str) -> list[str]:
    return [name for name in names if _PLAIN_NAME(name) and name.lower().startswith(start.lower())]


class Editor:
    """Reads lines, with history and completion where the system has readline.

    Args:
        completer: Proposes what a word may become.
        history: The history file; None = keep none. One that cannot be used is done without.
    """

    def __init__(self, completer: Completer, history: Path | None) -> None:
        self._completer = completer
        self._history = history
        self._readline: ModuleType | None = None
        self._proposed: list[str] = []
        with contextlib.suppress(ImportError):
            import readline

            self._readline = readline
            self._set_up(readline)

    def _set_up(self, readline: ModuleType) -> None:
        readline.set_completer(self._complete)
        readline.set_completer_delims(_DELIMITERS)
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        # Whole statements are remembered, not lines.
        readline.set_auto_history(False)
        readline.clear_history()
        for line in self._load():
            readline.add_history(line)

    def read(self, prompt: str) -> str:
        """One line.

        Raises:
            EOFError: There is none.
        """
        return input(prompt)

    def remember(self, text: str) -> None:
        """Add a statement to the history, unless a space is before it."""
        if text[:1].isspace() or not text.strip():
            return
        # A history file has one entry on each line; a comment reaches to the end of its line.
        text = text.strip()
        entry = text if "--" in text else " ".join(text.split("\n"))
        for line in entry.split("\n"):
            if self._readline is not None:
                length = self._readline.get_current_history_length()
                if not length or self._readline.get_history_item(length) != line:
                    self._readline.add_history(line)
                    self._append(line)

    # Completion

    def _complete(self, word: str, state: int) -> str | None:
        assert self._readline is not None
        if state == 0:
            line = self._readline.get_line_buffer()[: self._readline.get_endidx()].lstrip()
            # What fails here must not disturb the line that is being typed.
            try:
                self._proposed = self._completer.propose(word, line)
            except Exception:
                self._proposed = []
            if len(self._proposed) == 1 and not self._proposed[0].endswith("/"):
                self._proposed[0] += " "
        return self._proposed[state] if state < len(self._proposed) else None

    # The file

    def _load(self) -> list[str]:
        if self._history is None:
            return []
        try:
            self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lines = self._history.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError:
            self._history = None
            return []
        if len(lines) > 2 * _KEPT:
            lines = lines[-_KEPT:]
            self._rewrite(lines)
        return lines[-_KEPT:]

    def _append(self, line: str) -> None:
        if self._history is None:
            return
        try:
            self._write(self._history, os.O_APPEND, f"{line}\n")
        except OSError:
            self._history = None

    def _rewrite(self, lines: list[str]) -> None:
        assert self._history is not None
        new = self._history.with_name(f"{self._history.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._write(new, os.O_TRUNC, "".join(f"{line}\n" for line in lines))
            new.replace(self._history)

    @staticmethod
    def _write(path: Path, flag: int, text: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flag, 0o600)
        with open(fd, "wb") as file:
            file.write(text.encode(errors="replace"))
