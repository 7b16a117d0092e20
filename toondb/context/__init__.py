"""Context for language models: what a collection knows about a question, as text within a budget of tokens.

:class:`ContextQuery` asks a collection several questions by vector and by words, fuses the answers by rank, leaves out
duplicates, and fills the budget with what is most relevant. See ``docs/context.md``.
"""

from __future__ import annotations

from .chunk import ContextChunk
from .fit import TruncationStrategy
from .fusion import DeduplicationStrategy
from .query import AsyncContextQuery, ContextQuery
from .result import ContextResult, Rendering
from .tokens import estimate_tokens

__all__ = [
    "AsyncContextQuery",
    "ContextChunk",
    "ContextQuery",
    "ContextResult",
    "DeduplicationStrategy",
    "Rendering",
    "TruncationStrategy",
    "estimate_tokens",
]
