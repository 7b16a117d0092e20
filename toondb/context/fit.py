"""Chunks within a budget of tokens.

What counts is the rendered text as a whole: a tokenizer is not additive (tokens form across a seam, some put one in
front of every text), and a format adds headings, separators and quotes. So sizes of single chunks only guide the
choice, and nothing is taken before the text that it would be part of was counted and is within the budget.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Final, NamedTuple

from toondb_protocol.arguments import shown
from toondb_protocol.errors import ValidationError

from .chunk import ContextChunk
from .render import Render

__all__ = ["ELLIPSIS", "LEAST_WORDS", "Fitted", "TruncationStrategy", "fit"]

ELLIPSIS: Final = " …"
"""The end of a text that was cut."""

LEAST_WORDS: Final = 16
"""So many words are left of a text that is shortened in proportion, while there is more than one."""

_SHARES: Final = 1000
_SEAM: Final = 8
# Scripts without spaces are cut after any character; combining marks stay with what is before them.
_UNSPACED: Final = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_find_words: Final = re.compile(
    rf"[{_UNSPACED}][\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u3099\u309a]*|[^\s{_UNSPACED}]+"
).finditer


class TruncationStrategy(StrEnum):
    """What is done when the chunks do not fit the budget."""

    DROP = "drop"
    """Chunks that do not fit are left out, whole; a shorter, less relevant one may still come in."""

    TRUNCATE = "truncate"
    """The first chunk that does not fit is cut after a word, and what is less relevant is left out."""

    PROPORTIONAL = "proportional"
    """All chunks are cut after a word, to the same share of their words."""


class Fitted(NamedTuple):
    """Chunks and their text, within the budget.

    Attributes:
        chunks: The chunks.
        text: They as text.
        tokens: The tokens of the text.
    """

    chunks: list[ContextChunk]
    text: str
    tokens: int


def fit(
    chunks: Sequence[ContextChunk],
    budget: int,
    strategy: TruncationStrategy,
    render: Render,
    count: Callable[[str], int],
    numbers: Mapping[str, int] | None = None,
) -> Fitted:
    """As much of the chunks as a budget has room for.

    Args:
        chunks: The chunks, most relevant first.
        budget: Tokens that the text may have.
        strategy: What gives way.
        render: Writes the text.
        count: Counts its tokens.
        numbers: The number of each chunk, by id; None = they are numbered as they are taken, from 1.

    Returns:
        The chunks taken, in their order, and the text. When not even the text of no chunk fits (a header, a pair of
        brackets), the text is empty.

    Raises:
        ValidationError: The tokenizer counts more for an empty text than the budget is.
    """
    fitter = _Fitter(budget, render, count, numbers)
    fitted = fitter.fits(chunks)
    if fitted is None and chunks:
        match strategy:
            case TruncationStrategy.DROP:
                fitted = fitter.drop(chunks)
            case TruncationStrategy.TRUNCATE:
                fitted = fitter.truncate(chunks)
            case TruncationStrategy.PROPORTIONAL:
                fitted = fitter.shorten(chunks)
    fitted = fitted or fitter.fits([])
    if fitted is None:
        nothing = count("")
        if nothing > budget:
            raise ValidationError(
                f"the token budget {budget} is less than the {shown(nothing)} tokens "
                "that the tokenizer counts for no text."
            )
        fitted = Fitted([], "", nothing)
    return fitted


class _Start(NamedTuple):
    """What each chunk costs alone and adds to others; those taken first, and what they are together."""

    alone: list[int]
    sizes: list[int]
    taken: list[int]
    fitted: Fitted | None


class _Fitter:
    def __init__(
        self, budget: int, render: Render, count: Callable[[str], int], numbers: Mapping[str, int] | None
    ) -> None:
        self._budget = budget
        self._render = render
        self._count = count
        self._numbers = numbers

    def measure(self, chunks: Sequence[ContextChunk]) -> Fitted:
        numbers = self._numbers
        text = self._render(
            [(at if numbers is None else numbers[chunk.id], chunk) for at, chunk in enumerate(chunks, 1)]
        )
        return Fitted(list(chunks), text, self._count(text))

    def fits(self, chunks: Sequence[ContextChunk]) -> Fitted | None:
        measured = self.measure(chunks)
        return measured if measured.tokens <= self._budget else None

    def start(self, chunks: Sequence[ContextChunk], skip: bool) -> _Start:
        """Chunks that surely fit, chosen by their sizes alone, up to the first that has to be tried.

        Args:
            chunks: The chunks.
            skip: Pass over those that surely do not fit; else stop there.
        """
        alone = [self.measure([chunk]).tokens for chunk in chunks]
        # What two of the same cost less than twice one is there once: a header, the names of the columns.
        once = 2 * alone[0] - self.measure([chunks[0], chunks[0]]).tokens
        sizes = [max(0, tokens - once) for tokens in alone]
        taken: list[int] = []
        used = once
        for at, size in enumerate(sizes):
            if used + size + _SEAM + len(taken) <= self._budget:
                taken.append(at)
                used += size
            elif not skip or used + _at_least(size) <= self._budget:
                break
        fitted: Fitted | None = None
        while taken:
            fitted = self.measure([chunks[at] for at in taken])
            excess = fitted.tokens - self._budget
            if excess <= 0:
                break
            fitted = None
            given_up = sizes[taken.pop()]
            while taken and given_up < excess:
                given_up += sizes[taken.pop()]
        return _Start(alone, sizes, taken, fitted)

    # Strategies

    def drop(self, chunks: Sequence[ContextChunk]) -> Fitted | None:
        alone, sizes, taken, best = self.start(chunks, skip=True)
        for at, size in enumerate(sizes):
            least = alone[at] if best is None else best.tokens + _at_least(size)
            if at in taken or least > self._budget:
                continue
            wider = sorted([*taken, at])
            fitted = self.fits([chunks[at] for at in wider])
            if fitted is not None:
                best, taken = fitted, wider
        return best

    def truncate(self, chunks: Sequence[ContextChunk]) -> Fitted | None:
        _, _, taken, best = self.start(chunks, skip=False)
        whole = list(chunks[: len(taken)])
        while len(whole) < len(chunks) and (wider := self.fits([*whole, chunks[len(whole)]])) is not None:
            best, whole = wider, wider.chunks
        if len(whole) < len(chunks):
            next_one = chunks[len(whole)]
            ends = _word_ends(next_one.text)
            cut = _widest(1, len(ends) - 1, lambda words: self.fits([*whole, _cut(next_one, ends, words)]))
            best = cut or best
        return best

    def shorten(self, chunks: Sequence[ContextChunk]) -> Fitted | None:
        ends = [_word_ends(chunk.text) for chunk in chunks]

        def shortened(number: int, share: int) -> Fitted | None:
            return self.fits(
                [
                    _cut(chunk, words, max(LEAST_WORDS, len(words) * share // _SHARES))
                    for chunk, words in zip(chunks[:number], ends[:number], strict=True)
                ]
            )

        fewest = _widest(1, len(chunks), lambda number: shortened(number, 0))
        if fewest is None:
            return self.truncate(chunks[:1])
        return _widest(1, _SHARES - 1, lambda share: shortened(len(fewest.chunks), share)) or fewest


def _widest(low: int, high: int, attempt: Callable[[int], Fitted | None]) -> Fitted | None:
    """What the highest number gives that fits, by bisection; None when none was found."""
    best: Fitted | None = None
    while low <= high:
        middle = (low + high) // 2
        fitted = attempt(middle)
        if fitted is None:
            high = middle - 1
        else:
            best, low = fitted, middle + 1
    return best


def _at_least(size: int) -> int:
    """What a chunk adds at the least: tokens that form across seams save something, but by far less than an eighth."""
    return size - size // 8 - _SEAM


def _word_ends(text: str) -> list[int]:
    return [word.end() for word in _find_words(text)]


def _cut(chunk: ContextChunk, ends: Sequence[int], words: int) -> ContextChunk:
    if words >= len(ends):
        return chunk
    return replace(chunk, text=chunk.text[: ends[words - 1]] + ELLIPSIS, truncated=True)
