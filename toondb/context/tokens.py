"""How many tokens a text has: by whatever the caller counts with, by tiktoken, or by an estimate."""

from __future__ import annotations

import math
import operator
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any, Final

from toondb_protocol.arguments import shown
from toondb_protocol.errors import ToonDBError, UnsupportedFeatureError, ValidationError

__all__ = ["ESTIMATE", "TokenCounter", "default_counter", "estimate_tokens", "token_counter"]

ESTIMATE: Final = "estimate"
"""The name of the estimate."""

_ENCODING: Final = "o200k_base"
# What tiktoken names the file of that encoding in its cache: the SHA-1 of the address that it is loaded from.
_CACHED_AS: Final = "fb374d419588a4632f3f557e76b4b70aebbca790"
_INSTALL: Final = "pip install 'toondb-client[tiktoken]'"
_KINDS: Final = "an int, or the tokens as a sequence"

# As the tokenizers of today split text before they look into their vocabulary; what each kind costs was fitted to
# Tekken's vocabulary of 131,000 tokens, see docs/context.md.
_PIECES: Final = re.compile(
    r"(?P<word>[A-Za-z]+)|(?P<space> (?=\S))|(?P<digits>[0-9]+)|(?P<white>\s+)"
    r"|(?P<marks>[!-/:-@\[-`{-~]+)"
    r"|(?P<alphabet>[\u00a1-\u058f\u1e00-\u1fff]+)"  # Latin with marks, Greek, Cyrillic, Armenian
    r"|(?P<script>[\u0590-\u109f]+)"  # Hebrew and Arabic to Tibetan and Myanmar
    r"|(?P<sign>.)",  # Chinese, Japanese, Korean, symbols
    re.DOTALL,
)
_WHOLE_WORD: Final = 6


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has, without any vocabulary.

    A word of up to six letters counts 1 and each further four letters 1 more, two digits 1, punctuation half and one
    half for each run, white space 1 except for the single space before a word, letters of other alphabets 0.5 (with
    marks, Greek, Cyrillic) or 0.7 (Hebrew, Arabic, Indic and their neighbours), and any other character 1.

    Args:
        text: Any text.

    Returns:
        0 for an empty text, else 1 at the least.
    """
    quarters = 0.0
    for piece in _PIECES.finditer(text):
        size = piece.end() - piece.start()
        match piece.lastgroup:
            case "word":
                quarters += 4 + max(0, size - _WHOLE_WORD)
            case "space":
                pass
            case "digits":
                quarters += 4 * ((size + 1) // 2)
            case "marks":
                quarters += 2 * (size + 1)
            case "alphabet":
                quarters += 2 * size
            case "script":
                quarters += 2.8 * size
            case _:
                quarters += 4
    return math.ceil(quarters / 4)


class TokenCounter:
    """Counts the tokens of a text.

    Args:
        name: What it is called.
        tokenize: Text to a number of tokens, or to the tokens.
    """

    def __init__(self, name: str, tokenize: Callable[[str], Any]) -> None:
        self.name = name
        self._tokenize = tokenize

    def __call__(self, text: str) -> int:
        """How many tokens a text has.

        Raises:
            ValidationError: The tokenizer failed, or answered something else than a number or tokens.
        """
        try:
            answer = self._tokenize(text)
        except ToonDBError:
            raise
        except Exception as error:
            raise ValidationError(
                f"the tokenizer {self.name} failed: {type(error).__name__}: {error}",
                remediation="It must count any text, also one that holds what its vocabulary reserves.",
            ) from error
        number = _number_of(answer)
        if number is None or number < 0:
            raise ValidationError(f"the tokenizer {self.name} must answer {_KINDS}, got {shown(answer)}.")
        return number


def _number_of(answer: Any) -> int | None:
    """The number in a tokenizer's answer, None when it is no such answer."""
    if isinstance(answer, (bool, str, bytes, bytearray)):
        return None
    if isinstance(answer, int):
        return answer
    if isinstance(answer, Mapping):
        # Tokenizers of the package transformers answer a mapping; its own length is the number of its fields.
        return _number_of(answer["input_ids"]) if "input_ids" in answer else None
    if getattr(answer, "ndim", 1) == 0:
        answer = answer.item()
        return answer if isinstance(answer, int) and not isinstance(answer, bool) else None
    if getattr(answer, "ndim", 1) != 1:
        return None  # a batch of one: its length would be 1
    if isinstance(answer, Sized):
        return len(answer)
    try:
        return operator.index(answer)
    except TypeError:
        return None


def token_counter(tokenizer: object) -> TokenCounter:
    """The counter that ``with_tokenizer`` was asked for.

    Args:
        tokenizer: A callable from text to a number or to tokens; an object with ``encode``; a name, ``"estimate"``
            or that of an encoding or model of tiktoken.

    Raises:
        ValidationError: It is none of these, or tiktoken does not know the name, or cannot load it.
        UnsupportedFeatureError: It is a name, and tiktoken is not installed.
    """
    if isinstance(tokenizer, TokenCounter):
        return tokenizer
    if isinstance(tokenizer, str):
        return TokenCounter(ESTIMATE, estimate_tokens) if tokenizer == ESTIMATE else _tiktoken_counter(tokenizer)
    # encode() of tiktoken refuses texts that hold the name of a special token.
    ways = (getattr(tokenizer, "encode_ordinary", None), tokenizer, getattr(tokenizer, "encode", None))
    for tokenize in ways:
        if callable(tokenize):
            names = (getattr(tokenizer, name, None) for name in ("name", "__qualname__"))
            return TokenCounter(
                next((name for name in names if isinstance(name, str)), type(tokenizer).__name__), tokenize
            )
    raise ValidationError(
        f"a tokenizer is a callable from text to {_KINDS}, or a name, got {shown(tokenizer)}.",
        remediation=f'Names: "{ESTIMATE}", or an encoding or model of tiktoken.',
    )


def _tiktoken_counter(name: str) -> TokenCounter:
    try:
        import tiktoken
    except ImportError:
        raise UnsupportedFeatureError(
            f"the tokenizer {shown(name)} needs the package tiktoken, which is not installed.", remediation=_INSTALL
        ) from None
    known = tiktoken.list_encoding_names()
    try:
        encoding = tiktoken.get_encoding(name) if name in known else tiktoken.encoding_for_model(name)
    except KeyError:
        raise ValidationError(
            f"tiktoken knows no encoding or model {shown(name)}.",
            remediation=f'Encodings: {", ".join(known)}; or "{ESTIMATE}".',
        ) from None
    except Exception as error:
        raise ValidationError(
            f"tiktoken could not load {shown(name)}: {type(error).__name__}: {error}",
            remediation="It fetches a vocabulary from the network when it is first used; TIKTOKEN_CACHE_DIR keeps it.",
        ) from error
    return TokenCounter(encoding.name, encoding.encode_ordinary)


def default_counter() -> TokenCounter:
    """tiktoken where it is installed and has its vocabulary on this machine, else the estimate."""
    # tiktoken would fetch a vocabulary from the network, and wait for it without end: never unasked.
    if _is_loaded() or _is_cached():
        try:
            return _tiktoken_counter(_ENCODING)
        except (UnsupportedFeatureError, ValidationError):
            pass
    return TokenCounter(ESTIMATE, estimate_tokens)


def _is_loaded() -> bool:
    registry = sys.modules.get("tiktoken.registry")
    return _ENCODING in getattr(registry, "ENCODINGS", ())


def _is_cached() -> bool:
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            folder = os.environ[variable]
            return bool(folder) and Path(folder, _CACHED_AS).is_file()
    return Path(tempfile.gettempdir(), "data-gym-cache", _CACHED_AS).is_file()
