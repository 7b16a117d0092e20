"""Tokenizers of every temper, for the properties of the budget."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import cache

import tiktoken

__all__ = ["ADDITIVE", "TOKENIZERS", "Count", "byte_pairs"]

Count = Callable[[str], int]

_MERGES = ["th", "the", " the", "in", "ing", "\n\n", "##", "## ", "Ch", "un", "unk", "Chunk", " …", '"text', '":"']


@cache
def byte_pairs(name: str = "byte_pairs") -> tiktoken.Encoding:
    """A real byte pair encoding, with a vocabulary small enough to be written down here."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for merge in _MERGES:
        encoded = merge.encode()
        for end in range(2, len(encoded) + 1):
            ranks.setdefault(encoded[:end], len(ranks))
    return tiktoken.Encoding(
        name,
        pat_str=r"\s?\w+|[^\w\s]+|\s+",
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": len(ranks)},
    )


def _chaos(text: str) -> int:
    """Knows no order: a part of a text may count more than the whole."""
    return zlib.crc32(text.encode()) % 300


ADDITIVE: Mapping[str, Count] = {
    "characters": len,
    "bytes": lambda text: len(text.encode()),
}

TOKENIZERS: Mapping[str, Count] = {
    **ADDITIVE,
    "words": lambda text: len(text.split()),
    "byte pairs": lambda text: len(byte_pairs().encode_ordinary(text)),
    "begin and end": lambda text: len(text) // 3 + 2,
    "distinct words": lambda text: len(set(text.split())),
    "seams": lambda text: len(text) // 4 + 5 * text.count("\n\n") + 5 * text.count("},{"),
    "squares": lambda text: len(text) ** 2 // 64,
    "lines": lambda text: text.count("\n"),
    "chaos": _chaos,
}
