"""The builders: what is asked, what the answer may cost, and how it is put together."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Generic, Protocol, Self, TypeVar

from toondb_protocol.arguments import plain_number, shown
from toondb_protocol.errors import ValidationError
from toondb_protocol.search import SearchRequest, SearchResult
from toondb_protocol.vectors import pack_vector, unpack_vector

from .chunk import ContextChunk
from .fit import TruncationStrategy
from .fusion import DeduplicationStrategy, deduplicated, fused
from .render import renderer
from .result import ContextResult, Tally
from .tokens import TokenCounter, default_counter, token_counter

__all__ = ["AsyncContextQuery", "ContextQuery"]

_MOST_RESULTS = 100_000
_MOST_FUSION_K = 1_000_000
_MOST_TOKENS = 1 << 40
_DEFAULT_THRESHOLD = 0.9


class Searchable(Protocol):
    """What a :class:`ContextQuery` asks: a collection of a database, of a client or of a transaction."""

    def search(self, request: SearchRequest) -> list[SearchResult]:
        """The documents that fit, best first."""


class AsyncSearchable(Protocol):
    """What an :class:`AsyncContextQuery` asks: a collection of an async client or of its transaction."""

    async def search(self, request: SearchRequest) -> list[SearchResult]:
        """The documents that fit, best first."""


_Source = TypeVar("_Source")
_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class _Settings:
    requests: tuple[SearchRequest, ...] = ()
    weights: tuple[float, ...] = ()
    token_budget: int = 4000
    min_relevance: float = 0.0
    deduplication: DeduplicationStrategy = DeduplicationStrategy.EXACT
    threshold: float = _DEFAULT_THRESHOLD
    truncation: TruncationStrategy = TruncationStrategy.DROP
    counter: TokenCounter | None = None
    fusion_k: int = 60
    text_field: str | None = None
    format: str = "text"
    options: Mapping[str, Any] = field(default_factory=dict)


class _Builder(Generic[_Source]):
    """What both builders have. Every method but ``execute`` answers the builder itself."""

    def __init__(self, collection: _Source) -> None:
        search = getattr(collection, "search", None)
        if not callable(search):
            raise ValidationError(
                f"{type(self).__name__} takes a collection, got {shown(collection)}.",
                remediation='Get one with db.collection("namespace", "name").',
            )
        wanted, other = (True, "ContextQuery") if isinstance(self, AsyncContextQuery) else (False, "AsyncContextQuery")
        if inspect.iscoroutinefunction(search) is not wanted:
            raise ValidationError(
                f"{type(self).__name__} does not take {shown(collection)}.", remediation=f"Use {other} for it."
            )
        self._collection = collection
        self._settings = _Settings()

    def _set(self, **changes: Any) -> Self:
        self._settings = replace(self._settings, **changes)
        return self

    # Queries

    def add_vector_query(
        self,
        vector: Any,
        weight: float = 1.0,
        top_k: int = 50,
        *,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        ef_search: int | None = None,
    ) -> Self:
        """Ask for the documents nearest to a vector.

        Args:
            vector: The vector.
            weight: What this query counts beside the others, more than 0; weights need not add up to 1.
            top_k: How many documents it may find, 1 to 100,000.
            filter: Only documents whose metadata meets it, see ``docs/filters.md``.
            min_score: Only documents with this score at the least, see :class:`SearchResult`; unlike
                :meth:`with_min_relevance` it does not depend on what else was found.
            ef_search: See :class:`SearchRequest`.

        Raises:
            ValidationError: An argument cannot be.
        """
        # A copy: the caller may put something else into the array before execute().
        request = SearchRequest(
            unpack_vector(pack_vector(vector).data),
            None,
            _count("top_k", top_k, _MOST_RESULTS),
            filter,
            min_score=min_score,
            ef_search=ef_search,
        )
        return self._add(request, weight)

    def add_keyword_query(
        self,
        text: str,
        weight: float = 1.0,
        top_k: int = 50,
        *,
        filter: Mapping[str, Any] | None = None,
        min_score: float | None = None,
    ) -> Self:
        """Ask for the documents that fit words best, by BM25; the collection needs ``enable_hybrid_search``.

        Args:
            text: The words.
            weight, top_k, filter, min_score: See :meth:`add_vector_query`.

        Raises:
            ValidationError: An argument cannot be.
        """
        if not isinstance(text, str):
            raise ValidationError(f"text is the words to look for, got {shown(text)}.")
        top_k = _count("top_k", top_k, _MOST_RESULTS)
        return self._add(SearchRequest(None, text, top_k, filter, min_score=min_score), weight)

    def _add(self, request: SearchRequest, weight: float) -> Self:
        weight = _number("weight", weight)
        if not 0 < weight <= 1e9:
            raise ValidationError(f"weight is a number of more than 0, 1,000,000,000 at the most, got {shown(weight)}.")
        settings = self._settings
        return self._set(requests=(*settings.requests, request), weights=(*settings.weights, weight))

    # What is kept

    def with_min_relevance(self, relevance: float) -> Self:
        """Leave out documents that are less relevant.

        Args:
            relevance: 0 to 1, 0 unless this is called; see :class:`ContextChunk`. It is relative: the best document is
                relevant even when nothing fits well. ``min_score`` of the queries is absolute.
        """
        return self._set(min_relevance=_share("relevance", relevance))

    def with_deduplication(
        self, strategy: DeduplicationStrategy | str = DeduplicationStrategy.EXACT, threshold: float | None = None
    ) -> Self:
        """Leave out documents that say the same as a more relevant one.

        Args:
            strategy: A :class:`DeduplicationStrategy` or its name, ``EXACT`` unless this is called.
            threshold: For ``SEMANTIC``, from which cosine of two vectors on they are the same, more than 0 to 1; None =
                0.9.
        """
        chosen = _choice("deduplication strategy", strategy, DeduplicationStrategy)
        if threshold is None:
            return self._set(deduplication=chosen, threshold=_DEFAULT_THRESHOLD)
        if chosen is not DeduplicationStrategy.SEMANTIC:
            raise ValidationError(f"a threshold goes with the deduplication strategy semantic, not with {chosen}.")
        if not 0 < _number("threshold", threshold) <= 1:
            raise ValidationError(f"threshold is a number of more than 0 to 1, got {shown(threshold)}.")
        return self._set(deduplication=chosen, threshold=float(threshold))

    def with_fusion_k(self, k: int) -> Self:
        """The constant of the rank fusion: the smaller, the more the first ranks count.

        Args:
            k: 1 to 1,000,000; 60 unless this is called.
        """
        return self._set(fusion_k=_count("k", k, _MOST_FUSION_K))

    def with_text_field(self, name: str | None) -> Self:
        """Where the text of a document is that has no ``content``.

        Args:
            name: A field of the metadata; None, as when this is not called: such documents are left out.
        """
        if name is not None and not isinstance(name, str):
            raise ValidationError(f"the text field is a name of metadata, got {shown(name)}.")
        return self._set(text_field=name)

    # What it may cost

    def with_token_budget(self, tokens: int) -> Self:
        """The tokens that the context may have, everything counted: texts, separators, headings, quotes.

        Args:
            tokens: 1 or more; 4,000 unless this is called.
        """
        return self._set(token_budget=_count("tokens", tokens, _MOST_TOKENS))

    def with_tokenizer(self, tokenizer: Any) -> Self:
        """What counts the tokens.

        Args:
            tokenizer: A callable that takes a text and answers how many tokens it has, or the tokens themselves; or an
                object with ``encode``, such as an encoding of tiktoken; or a name: ``"estimate"``
                (:func:`estimate_tokens`), or an encoding or model of tiktoken, where this is installed. Unless this is
                called, tiktoken's ``o200k_base`` where it is installed and its vocabulary is on this machine, else
                the estimate.

        Raises:
            ValidationError: It is none of these.
            UnsupportedFeatureError: It is a name, and tiktoken is not installed.
        """
        return self._set(counter=token_counter(tokenizer))

    def with_truncation(self, strategy: TruncationStrategy | str) -> Self:
        """What is done when not everything fits.

        Args:
            strategy: A :class:`TruncationStrategy` or its name; ``DROP`` unless this is called.
        """
        return self._set(truncation=_choice("truncation strategy", strategy, TruncationStrategy))

    def with_format(self, format: str, **options: Any) -> Self:
        """The format that the chunks are chosen for and counted in; the others stay within the budget, too.

        Args:
            format: ``"text"`` (unless this is called), ``"markdown"``, ``"toon"`` or ``"json"``.
            **options: The arguments of ``as_text``, ``as_markdown``, ``as_toon`` or ``as_json``.
        """
        renderer(format, options)  # checks them
        return self._set(format=format, options=options)

    # Execution

    def _to_ask(self) -> list[SearchRequest]:
        settings = self._settings
        if not settings.requests:
            raise ValidationError(
                "a context needs a query.", remediation="Call add_vector_query or add_keyword_query before execute."
            )
        vectors = settings.deduplication is DeduplicationStrategy.SEMANTIC
        return [replace(request, include_vectors=vectors) for request in settings.requests]

    def __repr__(self) -> str:
        settings = self._settings
        return f"<{type(self).__name__} of {len(settings.requests)} queries, {settings.token_budget} tokens>"


class ContextQuery(_Builder[Searchable]):
    """Text for a language model from a collection, within a budget of tokens.

    ::

        context = (
            ContextQuery(collection)
            .add_vector_query(embedding, weight=0.7)
            .add_keyword_query("machine learning", weight=0.3)
            .with_token_budget(4000)
            .with_deduplication(DeduplicationStrategy.SEMANTIC)
            .execute()
        )
        prompt = f"Context: {context.as_markdown()}"

    Each method but ``execute`` answers the query itself. It may be executed any number of times.

    Args:
        collection: A collection of a database or a client; of a transaction, and all queries see one snapshot.
    """

    def execute(self) -> ContextResult:
        """Ask the collection, and choose what fits.

        Raises:
            ValidationError: No query was added; or none of the documents found has a text; or the tokenizer failed.
            CollectionConfigError: A keyword query, and the collection was created without ``enable_hybrid_search``.
            DimensionMismatchError: A vector has another dimension than the collection.
        """
        return _assembled(self._settings, [self._collection.search(request) for request in self._to_ask()])


class AsyncContextQuery(_Builder[AsyncSearchable]):
    """:class:`ContextQuery` for the collections of an :class:`AsyncIpcClient`.

    Args:
        collection: A collection of a client, or of a transaction.
    """

    async def execute(self) -> ContextResult:
        """Ask the collection, and choose what fits; see :meth:`ContextQuery.execute`.

        The choice is made in a thread, since counting tokens takes a while.
        """
        import asyncio

        settings = self._settings
        answers = [await self._collection.search(request) for request in self._to_ask()]
        return await asyncio.to_thread(_assembled, settings, answers)


def _assembled(settings: _Settings, answers: Sequence[Sequence[SearchResult]]) -> ContextResult:
    everything = fused(answers, settings.weights, settings.fusion_k, settings.text_field)
    relevant = [found for found in everything if found.relevance >= settings.min_relevance]
    with_text = [found for found in relevant if found.text]
    if relevant and not with_text:
        raise ValidationError(
            f"none of the {len(relevant)} documents found has a text.",
            remediation="Insert documents with content=..., or name the field of the metadata that holds their text: "
            'with_text_field("body").',
        )
    kept = deduplicated(with_text, settings.deduplication, settings.threshold)
    return ContextResult(
        [
            ContextChunk(found.result.id, found.text, found.relevance, found.scores, found.result.metadata)
            for found in kept
        ],
        settings.token_budget,
        settings.truncation,
        settings.counter or default_counter(),
        settings.format,
        settings.options,
        Tally(
            irrelevant=len(everything) - len(relevant),
            duplicate=len(with_text) - len(kept),
            textless=len(relevant) - len(with_text),
        ),
    )


# Arguments


def _count(name: str, value: object, most: int) -> int:
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
        raise ValidationError(f"{name} is a number of 1 to {most}, got {shown(value)}.")
    return number


def _number(name: str, value: object) -> float:
    number = math.nan
    value = plain_number(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an int beyond the largest float
            number = float(value)
    if not math.isfinite(number):
        raise ValidationError(f"{name} is a finite number, got {shown(value)}.")
    return number


def _share(name: str, value: object) -> float:
    number = _number(name, value)
    if not 0 <= number <= 1:
        raise ValidationError(f"{name} is a number of 0 to 1, got {shown(value)}.")
    return number


def _choice(what: str, value: object, known: type[_Choice]) -> _Choice:
    try:
        return known(str(value))
    except ValueError:
        raise ValidationError(f"the {what} {shown(value)} is unknown; known: {', '.join(known)}.") from None
