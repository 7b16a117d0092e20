"""What a context query answers: chunks, what they cost, and they as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .chunk import ContextChunk
from .fit import Fitted, TruncationStrategy, fit
from .render import renderer
from .tokens import TokenCounter

__all__ = ["ContextResult", "Rendering", "Tally"]


@dataclass(frozen=True, slots=True)
class Tally:
    """How many documents were left out before the budget was spent; see :class:`ContextResult`."""

    irrelevant: int = 0
    duplicate: int = 0
    textless: int = 0


@dataclass(frozen=True, slots=True)
class Rendering:
    """A context in one format.

    Attributes:
        text: The text.
        total_tokens: Its tokens, the budget at the most.
        chunks: What is in it.
        dropped_count: How many relevant documents the budget had no room for, in this format.
    """

    text: str
    total_tokens: int
    chunks: tuple[ContextChunk, ...]
    dropped_count: int

    def __str__(self) -> str:
        return self.text


class ContextResult:
    """The context that a query found, within its budget.

    Its chunks are those that fit in the format asked for (``with_format``; plain text unless it was called), and
    ``total_tokens`` is exactly what ``text`` has there. Every other format shows the same chunks, and fewer or
    shorter ones where it needs more tokens: it never exceeds the budget either.

    Attributes:
        chunks: What is in the context, most relevant first.
        text: The context in the format asked for; also ``str(context)``.
        format: Its name.
        total_tokens: The tokens of ``text``.
        budget_tokens: How many it might have had.
        dropped_count: How many relevant documents the budget had no room for.
        duplicate_count: How many were left out because they say the same as a more relevant one.
        irrelevant_count: How many were less relevant than asked for.
        textless_count: How many have no text.
        found_count: How many the queries found: the four counts above, and the chunks.
        tokenizer: What the tokens were counted with.
    """

    def __init__(
        self,
        candidates: Sequence[ContextChunk],
        budget_tokens: int,
        strategy: TruncationStrategy,
        counter: TokenCounter,
        format: str = "text",
        options: Mapping[str, Any] | None = None,
        tally: Tally | None = None,
    ) -> None:
        self._strategy = strategy
        self._count: Callable[[str], int] = counter
        self.tokenizer = counter.name
        self.budget_tokens = budget_tokens
        self.format = format
        tally = tally or Tally()
        self.irrelevant_count = tally.irrelevant
        self.duplicate_count = tally.duplicate
        self.textless_count = tally.textless
        self._candidate_count = len(candidates)
        self.found_count = len(candidates) + tally.irrelevant + tally.duplicate + tally.textless
        first = self._rendering(fit(candidates, budget_tokens, strategy, renderer(format, options or {}), counter))
        self.chunks: list[ContextChunk] = list(first.chunks)
        self.text = first.text
        self.total_tokens = first.total_tokens
        self.dropped_count = first.dropped_count
        whole = {chunk.id: chunk for chunk in candidates}
        self._whole = [whole[chunk.id] for chunk in self.chunks]
        self._shown = first.chunks

    def _rendering(self, fitted: Fitted) -> Rendering:
        chunks = tuple(replace(chunk, tokens=self._count(chunk.text)) for chunk in fitted.chunks)
        return Rendering(fitted.text, fitted.tokens, chunks, self._candidate_count - len(chunks))

    # Formats

    def rendering(self, format: str, **options: Any) -> Rendering:
        """The context in a format, with what is in it and what it costs.

        Args:
            format: ``"text"``, ``"markdown"``, ``"toon"`` or ``"json"``.
            **options: The arguments of ``as_text``, ``as_markdown``, ``as_toon`` or ``as_json``.

        Raises:
            ValidationError: There is no such format or option, or it cannot carry what the context holds.
        """
        render = renderer(format, options)
        text = render(list(enumerate(self._shown, 1)))
        tokens = self._count(text)
        if tokens <= self.budget_tokens:
            return Rendering(text, tokens, self._shown, self.dropped_count)
        numbers = {chunk.id: number for number, chunk in enumerate(self._whole, 1)}
        return self._rendering(fit(self._whole, self.budget_tokens, self._strategy, render, self._count, numbers))

    def as_text(self, separator: str = "\n\n") -> str:
        """The texts alone.

        Args:
            separator: What stands between two.
        """
        return self.rendering("text", separator=separator).text

    def as_markdown(self, include_scores: bool = False, fields: Sequence[str] = ()) -> str:
        """Each text below the heading ``## Chunk N``, where N is its place in ``chunks``, from 1.

        Args:
            include_scores: Write the relevance into the headings.
            fields: Fields of the metadata to show, each in a line of its own between heading and text.
        """
        return self.rendering("markdown", include_scores=include_scores, fields=fields).text

    def as_toon(
        self,
        table: str = "context",
        include_scores: bool = False,
        fields: Sequence[str] = (),
        dialect: str = "classic",
    ) -> str:
        """A TOON table with the columns ``id`` and ``text``, see ``docs/toon.md``.

        Args:
            table: The name of the table.
            include_scores: With the relevance, as the column ``score``.
            fields: Fields of the metadata, as columns between these.
            dialect: ``"classic"``, or ``"spec"`` for the published TOON format.
        """
        return self.rendering("toon", table=table, include_scores=include_scores, fields=fields, dialect=dialect).text

    def as_json(self, include_scores: bool = False, fields: Sequence[str] = (), indent: int | None = None) -> str:
        """A JSON array of objects with ``id`` and ``text``.

        Args:
            include_scores: With the relevance, as ``score``.
            fields: Fields of the metadata, in an object ``metadata``.
            indent: Spaces of each level; None = everything in one line.
        """
        return self.rendering("json", include_scores=include_scores, fields=fields, indent=indent).text

    def __str__(self) -> str:
        return self.text

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[ContextChunk]:
        return iter(self.chunks)

    def __repr__(self) -> str:
        return (
            f"<ContextResult {len(self.chunks)} chunks, {self.total_tokens} of {self.budget_tokens} tokens, "
            f"{self.dropped_count} dropped>"
        )
