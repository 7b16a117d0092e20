"""A piece of a context."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ContextChunk"]


@dataclass(frozen=True, slots=True)
class ContextChunk:
    """The text of a document that was found.

    Attributes:
        id: The id of the document.
        text: Its text; when it was cut, what is left of it, with ``" …"`` at the end.
        relevance: How well it fits all queries together, 0 to 1: its reciprocal rank fusion score as a share of what a
            document has that is the first answer to every query. See ``docs/context.md``.
        scores: Its score in each query, in the order in which they were added; None where the query did not find it.
            See :class:`SearchResult` for what they mean.
        metadata: The metadata of the document.
        tokens: The tokens of ``text`` alone.
        truncated: Whether the text was cut.
    """

    id: str
    text: str
    relevance: float
    scores: tuple[float | None, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    truncated: bool = False

    @property
    def score(self) -> float:
        """The relevance, by the name that it has in a :class:`SearchResult`."""
        return self.relevance
