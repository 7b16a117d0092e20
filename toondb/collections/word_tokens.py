"""The words of a text as FTS5 has them: by its own tokenizer."""

from __future__ import annotations

import threading
from typing import Any

import apsw

__all__ = ["LONGEST_TOKEN", "TOKENIZER", "Tokenizer"]

TOKENIZER = ("unicode61", "remove_diacritics", "2")
"""The tokenizer of the index of words, and its arguments."""

LONGEST_TOKEN = 32768
"""FTS5 cuts a token to so many bytes. Source: FTS5_MAX_TOKEN_SIZE in ``fts5Int.h``."""


class Tokenizer:
    """Splits texts as FTS5 does. May be called from any thread."""

    def __init__(self) -> None:
        # The tokenizer has a buffer of its own.
        self._lock = threading.Lock()
        self._call: apsw.FTS5Tokenizer | None = None

    def __call__(self, text: str) -> list[str]:
        """The tokens of a text, in order."""
        with self._lock:
            if self._call is None:
                name, *arguments = TOKENIZER
                self._call = apsw.Connection(":memory:").fts5_tokenizer(name, arguments)
            found: Any = self._call(
                text.encode(), apsw.FTS5_TOKENIZE_DOCUMENT, None, include_offsets=False, include_colocated=False
            )
        tokens: list[str] = found
        return tokens
