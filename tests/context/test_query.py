"""Context queries on real stores: embedded and through a daemon, plain, in transactions and async."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.daemon import Daemon
from tests.support.stores import KINDS, open_store
from toondb import AsyncContextQuery, AsyncIpcClient, ContextQuery, Database, DeduplicationStrategy, IpcClient
from toondb.context import TruncationStrategy
from toondb.errors import CollectionConfigError, DimensionMismatchError, ToonDBError, ValidationError
from toondb_protocol.collections import Collection

Store = Database | IpcClient


def at(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


DOCUMENTS: list[tuple[str, float, str, str]] = [
    ("snapshot", 5, "A snapshot is the state of the store at one commit; readers never block writers.", "engine"),
    ("commit", 15, "Group commit: one thread writes everything that waits, and syncs once for all of it.", "engine"),
    ("commit-again", 16, "Group commit means that whatever waits is written by one thread and synced once.", "notes"),
    ("conflict", 40, "The first committer wins; the other transaction is run again.", "engine"),
    ("frame", 70, "A frame is an opcode, the length of the payload, and the payload.", "protocol"),
    ("copy", 75, "A frame is an opcode,  the length of the payload, and the payload.\n", "notes"),
    ("budget", 100, "A budget of tokens is never exceeded, whatever the tokenizer.", "context"),
    ("far", 170, "Nothing of interest is written here.", "notes"),
]


def fill(collection: Collection) -> None:
    for id, degrees, text, topic in DOCUMENTS:
        collection.insert(id, at(degrees), {"topic": topic, "title": f"About {id}"}, text)


@pytest.fixture(scope="module", params=KINDS)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    parent = Path(tempfile.mkdtemp(prefix="toondb-"))
    try:
        with open_store(request.param, parent / "db") as store:
            yield store
    finally:
        shutil.rmtree(parent)


@pytest.fixture(scope="module")
def docs(store: Store) -> Collection:
    """The documents above, in a collection that no test changes."""
    collection = store.create_namespace("context").create_collection("docs", dimension=2, enable_hybrid_search=True)
    fill(collection)
    return collection


@pytest.fixture
def make(store: Store) -> Callable[..., Collection]:
    """Makes an empty collection of the test's own."""

    def made(**options: Any) -> Collection:
        name = f"c{len(store.namespace('context').list_collections())}"
        return store.namespace("context").create_collection(name, **options)

    if "context" not in store.list_namespaces():
        store.create_namespace("context")
    return made


def ids(context: Any) -> list[str]:
    return [chunk.id for chunk in context.chunks]


# What users type


def test_the_example_of_the_guide(docs: Collection) -> None:
    collection, query_embedding, user_question = docs, at(12), "Who writes?"
    context = (
        ContextQuery(collection)
        .add_vector_query(query_embedding, weight=0.7)
        .add_keyword_query("group commit", weight=0.3)
        .with_token_budget(4000)
        .with_deduplication(DeduplicationStrategy.SEMANTIC)
        .execute()
    )
    prompt = f"Context: {context.as_markdown()}\n\nQuestion: {user_question}"
    # snapshot, commit-again and conflict are within 25 degrees of commit, copy of frame: nearer than the cosine 0.9.
    assert ids(context) == ["commit", "frame", "budget", "far"]
    assert prompt.startswith("Context: ## Chunk 1\n\nGroup commit: one thread")
    assert context.duplicate_count == 4
    assert (context.dropped_count, context.budget_tokens, context.found_count) == (0, 4000, 8)


def test_a_result_is_a_sequence_of_chunks(docs: Collection) -> None:
    context = ContextQuery(docs).add_keyword_query("frame payload").with_tokenizer(len).execute()
    (chunk,) = context
    assert (len(context), chunk.id, chunk.text) == (1, "frame", DOCUMENTS[4][2])
    assert (chunk.relevance, chunk.score, chunk.truncated) == (1.0, 1.0, False)
    assert chunk.metadata == {"topic": "protocol", "title": "About frame"}
    assert chunk.tokens == context.total_tokens == len(chunk.text)
    assert str(context) == context.text == context.as_text() == chunk.text
    assert context.tokenizer == "len"
    assert repr(context) == f"<ContextResult 1 chunks, {len(chunk.text)} of 4000 tokens, 0 dropped>"


def test_the_formats(docs: Collection) -> None:
    context = ContextQuery(docs).add_vector_query(at(100), top_k=2).with_tokenizer("estimate").execute()
    budget, copy = DOCUMENTS[6][2], DOCUMENTS[5][2].strip()
    assert context.as_text() == f"{budget}\n\n{copy}"
    assert context.as_text(separator="\n--\n") == f"{budget}\n--\n{copy}"
    assert context.as_markdown() == f"## Chunk 1\n\n{budget}\n\n## Chunk 2\n\n{copy}"
    assert context.as_markdown(include_scores=True, fields=["title", "missing"]) == (
        f"## Chunk 1 (score 1.00)\n\ntitle: About budget\n\n{budget}\n\n"
        f"## Chunk 2 (score 0.98)\n\ntitle: About copy\n\n{copy}"
    )
    assert context.as_toon() == f'context[2]{{id,text}}:budget,"{budget}";copy,"{copy}"'
    assert context.as_toon("known", include_scores=True, fields=["topic"]) == (
        f'known[2]{{id,score,topic,text}}:budget,1.0,context,"{budget}";copy,0.9839,notes,"{copy}"'
    )
    assert context.as_toon(dialect="spec", include_scores=True) == (
        f'context[2]{{id,score,text}}:\n  budget,1,"{budget}"\n  copy,0.9839,"{copy}"'
    )
    assert context.as_json() == f'[{{"id":"budget","text":"{budget}"}},{{"id":"copy","text":"{copy}"}}]'
    assert context.as_json(include_scores=True, fields=["topic"]).startswith(
        '[{"id":"budget","score":1.0,"metadata":{"topic":"context"},"text":"A budget'
    )
    assert context.as_json(indent=1).startswith('[\n {\n  "id": "budget",\n')


def test_every_method_answers_the_query(docs: Collection) -> None:
    query = ContextQuery(docs)
    assert query.add_vector_query(at(0)) is query
    assert query.add_keyword_query("commit") is query
    assert query.with_token_budget(100) is query
    assert query.with_min_relevance(0.1) is query
    assert query.with_deduplication("none") is query
    assert query.with_tokenizer(len) is query
    assert query.with_fusion_k(10) is query
    assert query.with_truncation("truncate") is query
    assert query.with_text_field("body") is query
    assert query.with_format("json", indent=1) is query
    assert repr(query) == "<ContextQuery of 2 queries, 100 tokens>"
    assert ids(query.execute()) == ids(query.execute())


# Queries


def test_answers_are_fused_by_their_ranks(docs: Collection) -> None:
    context = (
        ContextQuery(docs)
        .add_vector_query(at(70), weight=2, top_k=4)
        .add_keyword_query("commit thread", weight=1)
        .add_keyword_query("frame opcode", weight=0.5)
        .with_fusion_k(5)
        .with_deduplication(DeduplicationStrategy.NONE)
        .execute()
    )
    answers = [
        docs.vector_search(at(70), 4),
        docs.keyword_search("commit thread", 50),
        docs.keyword_search("frame opcode", 50),
    ]
    expected: dict[str, float] = {}
    for weight, answer in zip((2, 1, 0.5), answers, strict=True):
        for rank, row in enumerate(answer, 1):
            expected[row.id] = expected.get(row.id, 0) + weight / (5 + rank) / (3.5 / 6)
    assert {chunk.id: chunk.relevance for chunk in context} == pytest.approx(expected)
    assert ids(context)[0] == "frame"
    scores = [{row.id: row.score for row in answer} for answer in answers]
    assert all(chunk.scores == tuple(score.get(chunk.id) for score in scores) for chunk in context)


def test_options_of_queries(docs: Collection) -> None:
    query = ContextQuery(docs).add_vector_query(at(0), filter={"topic": {"$ne": "engine"}}, top_k=2, ef_search=100)
    assert ids(query.execute()) == ["commit-again", "frame"]
    assert ids(ContextQuery(docs).add_vector_query(at(0), min_score=0.7).execute()) == [
        *("snapshot", "commit", "commit-again", "conflict")
    ]
    assert ids(ContextQuery(docs).add_keyword_query("committer frame", filter={"topic": "engine"}).execute()) == [
        "conflict"
    ]
    assert ids(ContextQuery(docs).add_keyword_query("committer", min_score=1e6).execute()) == []


def test_a_vector_is_copied(docs: Collection) -> None:
    vector = np.asarray(at(170), dtype=np.float32)
    query = ContextQuery(docs).add_vector_query(vector, top_k=1)
    vector[:] = at(5)
    assert ids(query.execute()) == ["far"]


def test_nothing_is_found(docs: Collection) -> None:
    context = ContextQuery(docs).add_keyword_query("xylophone").execute()
    assert (context.chunks, context.text, context.total_tokens, context.found_count) == ([], "", 0, 0)
    assert (context.as_markdown(), context.as_json()) == ("", "[]")


def test_a_query_sees_what_was_inserted_since(make: Callable[..., Collection]) -> None:
    collection = make(enable_hybrid_search=True)
    query = ContextQuery(collection).add_keyword_query("words")
    assert ids(query.execute()) == []
    collection.insert("a", content="Only words, without a vector.")
    assert ids(query.with_deduplication("semantic").execute()) == ["a"]


# What is kept


def test_min_relevance(docs: Collection) -> None:
    query = ContextQuery(docs).add_vector_query(at(0)).with_fusion_k(1).with_deduplication("none")
    everything = query.execute()
    assert [chunk.relevance for chunk in everything] == pytest.approx([2 / (1 + rank) for rank in range(1, 9)])
    kept = query.with_min_relevance(0.5).execute()
    assert ids(kept) == ids(everything)[:3]
    assert (kept.irrelevant_count, kept.dropped_count, kept.found_count) == (5, 0, 8)


def test_duplicates_go_before_the_budget_is_spent(docs: Collection) -> None:
    query = ContextQuery(docs).add_vector_query(at(72)).with_tokenizer(str.split).with_token_budget(26)
    exact = query.execute()
    assert ids(query.with_deduplication("none").execute())[:2] == ["frame", "copy"]
    assert ids(exact) == ["frame", "budget"]
    assert (exact.duplicate_count, exact.dropped_count, exact.found_count) == (1, 5, 8)
    assert exact.total_tokens == 23


@pytest.mark.parametrize(
    ("threshold", "duplicates"), [(0.9999, 1), (0.999, 2), (0.99, 2), (0.98, 3), (0.7, 5), (1e-6, 6)]
)
def test_semantic_duplicates(docs: Collection, threshold: float, duplicates: int) -> None:
    query = ContextQuery(docs).add_vector_query(at(0)).with_deduplication("semantic", threshold=threshold)
    context = query.execute()
    assert context.duplicate_count == duplicates
    assert len(context) == 8 - duplicates


def test_where_the_text_is(make: Callable[..., Collection]) -> None:
    collection = make(dimension=2)
    collection.insert("a", at(0), {"body": "Of a."})
    collection.insert("b", at(10), {"body": "Of b."})
    query = ContextQuery(collection).add_vector_query(at(0))
    with pytest.raises(ValidationError, match="none of the 2 documents found has a text") as error:
        query.execute()
    assert "with_text_field" in error.value.remediation
    collection.insert("c", at(20), content="Of c.")
    context = query.execute()
    assert (ids(context), context.textless_count, context.found_count) == (["c"], 2, 3)
    assert query.with_text_field("body").execute().as_text() == "Of a.\n\nOf b.\n\nOf c."


# The budget


@pytest.mark.parametrize("strategy", TruncationStrategy)
@pytest.mark.parametrize("format", ["text", "markdown", "toon", "json"])
def test_the_budget(docs: Collection, strategy: TruncationStrategy, format: str) -> None:
    for budget in range(1, 500, 23):
        context = (
            ContextQuery(docs)
            .add_vector_query(at(0))
            .with_token_budget(budget)
            .with_tokenizer(len)
            .with_truncation(strategy)
            .with_format(format)
            .execute()
        )
        assert context.total_tokens == len(context.text) <= budget
        texts = [context.as_text(), context.as_markdown(), context.as_toon(), context.as_json()]
        assert all(len(text) <= budget for text in texts)
        assert context.text in texts
        assert context.format == format


def test_the_format_asked_for_has_what_fits_in_it(docs: Collection) -> None:
    query = ContextQuery(docs).add_vector_query(at(0)).with_tokenizer(len).with_token_budget(300)
    plain = query.execute()
    headed = query.with_format("markdown", include_scores=True).execute()
    assert (len(plain), len(headed)) == (4, 3)
    rendering = plain.rendering("markdown", include_scores=True)
    assert str(rendering) == rendering.text
    assert [chunk.id for chunk in rendering.chunks] == ids(headed)
    # The same, but the numbers are the places in plain.chunks.
    assert rendering.text.startswith(headed.text.partition("## Chunk 3")[0])
    assert f"## Chunk {ids(plain).index(ids(headed)[2]) + 1} (score" in rendering.text
    assert (plain.dropped_count, rendering.dropped_count) == (3, 4)


# Modes


def test_a_transaction_sees_its_own_writes(store: Store, make: Callable[..., Collection]) -> None:
    collection = make(dimension=2, enable_hybrid_search=True)
    collection.insert("kept", at(0), content="It was there before.")
    transaction = store.begin_transaction()
    inside = transaction.collection("context", collection.name)
    inside.insert("new", at(1), content="It is new.")
    collection.insert("later", at(2), content="It came later.")
    assert ids(ContextQuery(inside).add_vector_query(at(0)).execute()) == ["kept", "new"]
    assert ids(ContextQuery(collection).add_vector_query(at(0)).execute()) == ["kept", "later"]
    transaction.abort()


async def test_async(tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon, IpcClient.connect(daemon.socket) as client:
        fill(client.create_namespace("n").create_collection("docs", dimension=2, enable_hybrid_search=True))
        expected = (
            ContextQuery(client.collection("n", "docs"))
            .add_vector_query(at(12), weight=0.7)
            .add_keyword_query("group commit", weight=0.3)
            .with_deduplication("semantic")
            .execute()
        )
        async with await AsyncIpcClient.connect(daemon.socket) as aio:
            collection = await aio.collection("n", "docs")
            query = AsyncContextQuery(collection).add_vector_query(at(12), weight=0.7)
            query.add_keyword_query("group commit", weight=0.3).with_deduplication("semantic")
            context = await query.execute()
            assert (context.chunks, context.text) == (expected.chunks, expected.text)
            with pytest.raises(DimensionMismatchError):
                await AsyncContextQuery(collection).add_vector_query([1.0]).execute()
            with pytest.raises(ValidationError, match="ContextQuery does not take") as error:
                ContextQuery(collection)  # type: ignore[arg-type]
            assert "AsyncContextQuery" in error.value.remediation
        with pytest.raises(ValidationError, match="AsyncContextQuery does not take") as error:
            AsyncContextQuery(client.collection("n", "docs"))  # type: ignore[arg-type]
        assert "Use ContextQuery" in error.value.remediation


# Mistakes


def test_errors_of_the_collection(make: Callable[..., Collection]) -> None:
    collection = make(dimension=2)
    with pytest.raises(CollectionConfigError, match="hybrid"):
        ContextQuery(collection).add_keyword_query("words").execute()
    with pytest.raises(DimensionMismatchError):
        ContextQuery(collection).add_vector_query([1.0, 2.0, 3.0]).execute()


def test_a_query_is_needed(docs: Collection) -> None:
    with pytest.raises(ValidationError, match="a context needs a query"):
        ContextQuery(docs).execute()


@pytest.mark.parametrize("value", [None, "docs", 7])
def test_a_collection_is_needed(value: Any) -> None:
    with pytest.raises(ValidationError, match="ContextQuery takes a collection, got"):
        ContextQuery(value)


def test_a_failing_tokenizer_is_named(docs: Collection) -> None:
    def broken(text: str) -> int:
        raise RuntimeError("no vocabulary")

    query = ContextQuery(docs).add_vector_query(at(0)).with_tokenizer(broken)
    with pytest.raises(ValidationError, match=r"broken failed: RuntimeError: no vocabulary"):
        query.execute()


@pytest.mark.parametrize(
    ("method", "arguments", "options", "said"),
    [
        ("add_vector_query", ["text"], {}, "the vector is a list"),
        ("add_vector_query", [[]], {}, "0 numbers"),
        ("add_vector_query", [[1.0, math.nan]], {}, "nan at 1"),
        ("add_vector_query", [[1.0, math.inf]], {}, "inf at 1"),
        ("add_vector_query", [[1.0]], {"weight": 0}, "weight is a number of more than 0"),
        ("add_vector_query", [[1.0]], {"weight": -0.5}, "got -0.5"),
        ("add_vector_query", [[1.0]], {"weight": math.inf}, "weight is a finite number, got inf"),
        ("add_vector_query", [[1.0]], {"weight": 10**400}, "weight is a finite number, got an integer of 1329 bits"),
        ("add_vector_query", [[1.0]], {"weight": True}, "weight is a finite number, got True"),
        ("add_vector_query", [[1.0]], {"weight": "0.7"}, "weight is a finite number, got '0.7'"),
        ("add_vector_query", [[1.0]], {"top_k": 0}, "top_k is a number of 1 to 100000, got 0"),
        ("add_vector_query", [[1.0]], {"top_k": 2.5}, "top_k is a number of 1 to 100000, got 2.5"),
        ("add_vector_query", [[1.0]], {"filter": "a"}, "filter is a mapping, got 'a'"),
        ("add_vector_query", [[1.0]], {"min_score": math.nan}, "min_score is a number, got nan"),
        ("add_vector_query", [[1.0]], {"ef_search": 0}, "ef_search is a number of 1 to 1000000, got 0"),
        ("add_keyword_query", [None], {}, "text is the words to look for, got None"),
        ("add_keyword_query", ["a"], {"weight": None}, "weight is a finite number, got None"),
        ("add_keyword_query", ["a"], {"top_k": 100_001}, "got 100001"),
        ("with_token_budget", [0], {}, "tokens is a number of 1 to 1099511627776, got 0"),
        ("with_token_budget", ["4000"], {}, "got '4000'"),
        ("with_token_budget", [4000.0], {}, "got 4000.0"),
        ("with_min_relevance", [1.5], {}, "relevance is a number of 0 to 1, got 1.5"),
        ("with_min_relevance", [math.nan], {}, "relevance is a finite number, got nan"),
        ("with_deduplication", ["fuzzy"], {}, "'fuzzy' is unknown; known: none, exact, semantic"),
        ("with_deduplication", [None], {}, "None is unknown; known: none, exact, semantic"),
        ("with_deduplication", ["exact", 0.9], {}, "threshold goes with the deduplication strategy semantic"),
        ("with_deduplication", ["semantic", 0], {}, "threshold is a number of more than 0 to 1, got 0"),
        ("with_deduplication", ["semantic", 1.1], {}, "threshold is a number of more than 0 to 1, got 1.1"),
        ("with_tokenizer", [4], {}, "a tokenizer is a callable from text"),
        ("with_fusion_k", [0], {}, "k is a number of 1 to 1000000, got 0"),
        ("with_truncation", ["head"], {}, "'head' is unknown; known: drop, truncate, proportional"),
        ("with_text_field", [7], {}, "the text field is a name of metadata, got 7"),
        ("with_format", ["xml"], {}, "the format 'xml' is unknown; known: text, markdown, toon, json"),
        ("with_format", ["text"], {"indent": 1}, "the format text has no option 'indent'; it has separator"),
        ("with_format", ["text"], {"separator": 1}, "separator is text, got 1"),
        ("with_format", ["markdown"], {"include_scores": 1}, "include_scores is True or False, got 1"),
        ("with_format", ["markdown"], {"fields": "title"}, "fields is a list of names of metadata, got 'title'"),
        ("with_format", ["markdown"], {"fields": [1]}, "got 1 in it"),
        ("with_format", ["toon"], {"fields": ["id"]}, "id, score, text are fields of the context itself"),
        ("with_format", ["toon"], {"fields": ["a", "a"]}, "fields names 'a' twice"),
        ("with_format", ["toon"], {"table": 1}, "table is text, got 1"),
        ("with_format", ["toon"], {"dialect": "new"}, "dialect is one of classic, spec, got 'new'"),
        ("with_format", ["json"], {"indent": -1}, "indent is None or a number of 0 to 16, got -1"),
    ],
)
def test_arguments_that_cannot_be(
    docs: Collection, method: str, arguments: list[Any], options: dict[str, Any], said: str
) -> None:
    query = ContextQuery(docs)
    before = repr(query)
    with pytest.raises(ToonDBError) as error:
        getattr(query, method)(*arguments, **options)
    assert isinstance(error.value, ValueError)
    assert said in error.value.message
    assert repr(query) == before
