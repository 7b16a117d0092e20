"""The budget is never exceeded: any chunks, any format, any strategy, any tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.context.tokenizers import ADDITIVE, TOKENIZERS, Count
from toondb.context import ContextChunk, ContextResult, Rendering, TruncationStrategy
from toondb.context.fit import ELLIPSIS, LEAST_WORDS
from toondb.context.render import renderer
from toondb.context.tokens import TokenCounter
from toondb.errors import ValidationError
from toondb.toon import from_toon

FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("text", {}),
    ("text", {"separator": "\n\n---\n\n"}),
    ("markdown", {}),
    ("markdown", {"include_scores": True, "fields": ("title",)}),
    ("toon", {}),
    ("toon", {"include_scores": True, "fields": ["title"], "table": "what is known"}),
    ("json", {}),
    ("json", {"include_scores": True, "fields": ["title"], "indent": 2}),
]

WORDS = st.sampled_from(
    ["the", "thing", "searching", "a", "x, y; z", '"quoted"', "1999", "naïve", "検索", "…", "the\n\nend"]
)
TEXTS = st.lists(WORDS, min_size=1, max_size=40).map(" ".join)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).map(str.strip).filter(bool)
METADATA = st.dictionaries(st.sampled_from(["title", "year"]), st.sampled_from(["A title", "x\ny", 7]), max_size=2)


@st.composite
def chunk_lists(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXTS | ANY_TEXT) -> list[ContextChunk]:
    found = draw(st.lists(st.tuples(texts, METADATA), max_size=12))
    return [
        ContextChunk(f"doc{at}", text, 1.0 - at / 50, (None,), metadata) for at, (text, metadata) in enumerate(found)
    ]


def result(
    chunks: Sequence[ContextChunk],
    budget: int,
    strategy: TruncationStrategy,
    count: Count,
    format: str,
    options: dict[str, Any],
) -> ContextResult:
    return ContextResult(chunks, budget, strategy, TokenCounter("test", count), format, options)


def is_part(part: ContextChunk, whole: ContextChunk) -> bool:
    """Whether a chunk is another one, or that one cut after a word."""
    if not part.truncated:
        return part.text == whole.text
    start = part.text.removesuffix(ELLIPSIS)
    return part.text != start and whole.text.startswith(start) and start == start.strip() and start != whole.text


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_format_exceeds_the_budget(name: str, data: st.DataObject) -> None:
    count = TOKENIZERS[name]
    chunks = data.draw(chunk_lists())
    budget = data.draw(st.integers(2, 60) | st.integers(2, 1500))
    strategy = data.draw(st.sampled_from(TruncationStrategy))
    format, options = data.draw(st.sampled_from(FORMATS))
    context = result(chunks, budget, strategy, count, format, options)

    assert context.total_tokens == count(context.text) <= budget == context.budget_tokens
    assert len(context) + context.dropped_count == len(chunks) == context.found_count
    originals = {chunk.id: chunk for chunk in chunks}
    ids = [chunk.id for chunk in context]
    assert ids == [chunk.id for chunk in chunks if chunk.id in ids]
    assert all(is_part(chunk, originals[chunk.id]) for chunk in context)
    assert all(chunk.tokens == count(chunk.text) for chunk in context)

    for other, other_options in FORMATS:
        rendering = context.rendering(other, **other_options)
        assert rendering.total_tokens == count(rendering.text) <= budget
        shown = [chunk.id for chunk in rendering.chunks]
        assert shown == [id for id in ids if id in shown]
        assert len(shown) + rendering.dropped_count == len(chunks)
        assert all(is_part(chunk, originals[chunk.id]) for chunk in rendering.chunks)
        check_text(context, other, rendering, other_options)
    assert context.rendering(format, **options).text == context.text


@given(chunk_lists(), st.integers(1, 600), st.sampled_from(TruncationStrategy))
@settings(max_examples=25, deadline=None)
def test_the_published_toon_format_does_not_exceed_it_either(
    chunks: list[ContextChunk], budget: int, strategy: TruncationStrategy
) -> None:
    context = result(chunks, budget, strategy, len, "text", {})
    for options in ({"dialect": "spec"}, {"dialect": "spec", "fields": ["title", "year"], "include_scores": True}):
        rendering = context.rendering("toon", **options)
        assert rendering.total_tokens == len(rendering.text) <= budget
        check_text(context, "toon", rendering, options)


def check_text(context: ContextResult, format: str, rendering: Rendering, options: dict[str, Any]) -> None:
    """The text is of its format, and holds the chunks."""
    text, chunks = rendering.text, rendering.chunks
    numbers = {one.id: number for number, one in enumerate(context, 1)}
    if text == "":
        assert chunks == ()
    elif format == "json":
        assert [(row["id"], row["text"]) for row in json.loads(text)] == [(one.id, one.text) for one in chunks]
    elif format == "toon":
        _, _, rows = from_toon(text, dialect=options.get("dialect", "classic"))
        assert [(row["id"], row["text"]) for row in rows] == [(one.id, one.text) for one in chunks]
    elif format == "text":
        assert text == options.get("separator", "\n\n").join(one.text for one in chunks)
    elif "fields" not in options:
        assert text == "\n\n".join(f"## Chunk {numbers[one.id]}\n\n{one.text}" for one in chunks)
    else:
        assert text.endswith(chunks[-1].text)
        assert all(f"## Chunk {numbers[one.id]} (score {one.relevance:.2f})\n\n" in text for one in chunks)


@pytest.mark.parametrize("name", ADDITIVE)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_room_is_wasted(name: str, data: st.DataObject) -> None:
    count = ADDITIVE[name]
    chunks = data.draw(chunk_lists())
    budget = data.draw(st.integers(1, 1500))
    format, options = data.draw(st.sampled_from(FORMATS))
    render = renderer(format, options)

    def size(some: Sequence[ContextChunk]) -> int:
        return count(render(list(enumerate(some, 1))))

    taken: list[ContextChunk] = []
    for chunk in chunks:
        if size([*taken, chunk]) <= budget:
            taken.append(chunk)
    dropped = result(chunks, budget, TruncationStrategy.DROP, count, format, options)
    assert [one.id for one in dropped] == [one.id for one in taken]

    cut = result(chunks, budget, TruncationStrategy.TRUNCATE, count, format, options).chunks
    assert [one.id for one in cut] == [one.id for one in chunks[: len(cut)]]
    assert not any(one.truncated for one in cut[:-1])
    if len(cut) < len(chunks) and not (cut and cut[-1].truncated):
        assert size([*cut, chunks[len(cut)]]) > budget

    if size(chunks) <= budget:
        for strategy in TruncationStrategy:
            assert [one.text for one in result(chunks, budget, strategy, count, format, options)] == [
                one.text for one in chunks
            ]


def words_chunk(id: str, words: int, of: str = "word") -> ContextChunk:
    return ContextChunk(id, " ".join(f"{of}{at}" for at in range(words)), 1.0)


def fitted(chunks: Sequence[ContextChunk], budget: int, strategy: TruncationStrategy) -> list[ContextChunk]:
    """In words, where the mark of a cut is one, too."""
    return result(chunks, budget, strategy, TOKENIZERS["words"], "text", {}).chunks


def test_what_does_not_fit_is_dropped_and_something_shorter_may_come_in() -> None:
    chunks = [words_chunk("a", 40), words_chunk("b", 100), words_chunk("c", 30), words_chunk("d", 31)]
    assert [one.id for one in fitted(chunks, 71, TruncationStrategy.DROP)] == ["a", "c"]
    assert [one.id for one in fitted(chunks, 39, TruncationStrategy.DROP)] == ["c"]
    assert fitted(chunks, 29, TruncationStrategy.DROP) == []


def test_the_first_that_does_not_fit_is_cut() -> None:
    chunks = [words_chunk("a", 40), words_chunk("b", 100), words_chunk("c", 5)]
    first, second = fitted(chunks, 71, TruncationStrategy.TRUNCATE)
    assert (first.text, first.truncated) == (chunks[0].text, False)
    assert (second.truncated, second.tokens) == (True, 31)
    assert second.text == " ".join(chunks[1].text.split()[:30]) + ELLIPSIS
    # A cut chunk has a word at the least, and the mark.
    assert [one.id for one in fitted(chunks, 41, TruncationStrategy.TRUNCATE)] == ["a"]
    assert [one.id for one in fitted(chunks, 42, TruncationStrategy.TRUNCATE)] == ["a", "b"]
    assert fitted(chunks, 1, TruncationStrategy.TRUNCATE) == []


def test_all_are_cut_to_the_same_share() -> None:
    chunks = [words_chunk("a", 400), words_chunk("b", 200), words_chunk("c", 10)]
    cut = fitted(chunks, 313, TruncationStrategy.PROPORTIONAL)
    sizes = [len(one.text.split()) for one in cut]
    assert [one.truncated for one in cut] == [True, True, False]
    assert sizes[2] == 10
    assert 305 <= sum(sizes) <= 313
    assert sizes[0] - 1 == pytest.approx(2 * (sizes[1] - 1), abs=2)


def test_shares_have_a_least_size_and_what_has_no_room_for_it_is_dropped() -> None:
    chunks = [words_chunk(str(at), 1000) for at in range(9)]
    cut = fitted(chunks, 4 * (LEAST_WORDS + 1), TruncationStrategy.PROPORTIONAL)
    assert [len(one.text.split()) for one in cut] == [LEAST_WORDS + 1] * 4
    (alone,) = fitted(chunks, 10, TruncationStrategy.PROPORTIONAL)
    assert len(alone.text.split()) == 10


def test_texts_without_spaces_are_cut_between_characters() -> None:
    text = "トークンの予算を超えない" * 20
    (chunk,) = result([ContextChunk("a", text, 1.0)], 60, TruncationStrategy.TRUNCATE, len, "text", {}).chunks
    assert chunk.text == text[: 60 - len(ELLIPSIS)] + ELLIPSIS
    # A voiced sound mark stays with what is before it.
    marked = "か\u3099" * 20
    (chunk,) = result([ContextChunk("a", marked, 1.0)], 7, TruncationStrategy.TRUNCATE, len, "text", {}).chunks
    assert chunk.text == "か\u3099" * 2 + ELLIPSIS


def test_one_word_is_never_cut() -> None:
    chunks = [ContextChunk("a", "x" * 50, 1.0)]
    for strategy in TruncationStrategy:
        assert result(chunks, 49, strategy, len, "text", {}).chunks == []


def test_a_budget_too_small_for_brackets_gives_no_text() -> None:
    chunks = [words_chunk("a", 5)]
    context = result(chunks, 1, TruncationStrategy.DROP, len, "text", {})
    assert [context.as_text(), context.as_markdown(), context.as_toon(), context.as_json()] == [""] * 4
    assert result(chunks, 2, TruncationStrategy.DROP, len, "json", {}).text == "[]"
    assert result([], 30, TruncationStrategy.DROP, len, "toon", {}).text == "context[0]{id,text}:"


def test_a_budget_below_what_an_empty_text_costs_is_refused() -> None:
    with pytest.raises(ValidationError, match="budget 1 is less than the 2 tokens"):
        result([], 1, TruncationStrategy.DROP, TOKENIZERS["begin and end"], "text", {})


def test_the_numbers_of_chunks_are_their_places_in_every_format() -> None:
    chunks = [words_chunk("a", 3), words_chunk("b", 40, "long"), words_chunk("c", 3)]
    context = result(chunks, 308, TruncationStrategy.DROP, len, "text", {})
    assert [one.id for one in context] == ["a", "b", "c"]
    # Markdown is longer, and leaves out the long one.
    assert context.rendering("markdown").chunks == (context.chunks[0], context.chunks[2])
    assert context.as_markdown() == f"## Chunk 1\n\n{chunks[0].text}\n\n## Chunk 3\n\n{chunks[2].text}"


def test_few_texts_are_counted() -> None:
    """Counting is what costs time, so it must not be done for each of a thousand chunks again and again."""
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return len(text) // 4

    chunks = [words_chunk(str(at), 60 + at % 7) for at in range(1000)]
    whole = sum(len(one.text) for one in chunks)
    for strategy in TruncationStrategy:
        counted = 0
        context = result(chunks, 40_000, strategy, count, "markdown", {})
        assert context.total_tokens > 39_500
        assert counted < 30 * whole
