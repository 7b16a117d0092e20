"""The namespaces, collections and searches that users of the product have learned to type, embedded and over IPC.

Where a guide leaves something open, or does not agree with another one:

- ``[0.1, 0.2, 0.3, ...]`` stands for a vector: here it is filled up to the dimension.
- The dimension of ``[1.0, 2.0, 3.0]`` is wrong in a collection of 384.
- A keyword or hybrid search needs ``enable_hybrid_search``, which the collection of one guide is created without.
- One guide deletes a document from a collection that it never named; the tables of its methods are what is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.conftest import Printed
from tests.support.stores import KINDS, open_store
from toondb import CollectionConfig, DistanceMetric, NamespaceConfig, SearchRequest
from toondb.errors import (
    CollectionConfigError,
    CollectionExistsError,
    CollectionNotFoundError,
    DimensionMismatchError,
    NamespaceExistsError,
    NamespaceNotFoundError,
)

DIMENSION = 384
RNG = np.random.default_rng(384)


def embedding(*numbers: float) -> list[float]:
    """A vector of the guides, filled up."""
    return [*numbers, *[0.01] * (DIMENSION - len(numbers))]


@pytest.fixture(scope="module", params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The guides show one store; the same lines work on both kinds."""
    folder = tmp_path_factory.mktemp("guides") / "db"
    with open_store(request.param, folder) as store:
        yield store


@pytest.fixture
def db(opened: Any) -> Iterator[Any]:
    """A store without namespaces."""
    yield opened
    for name in opened.list_namespaces():
        opened.delete_namespace(name)


@pytest.fixture
def ns(db: Any) -> Any:
    """The namespace of the guides."""
    config = NamespaceConfig(
        name="tenant_123",
        display_name="Acme Corp",
        labels={"tier": "enterprise"},
    )
    return db.create_namespace(config)


@pytest.fixture
def collection(ns: Any) -> Any:
    """The collection of the guides, with words."""
    config = CollectionConfig(
        name="documents",
        dimension=384,  # None = auto-infer from first vector
        metric=DistanceMetric.COSINE,
        m=16,
        ef_construction=100,
        enable_hybrid_search=True,
        content_field="text",
    )
    return ns.create_collection(config)


def test_namespaces(db: Any, ns: Any) -> None:
    found = db.namespace("tenant_123")
    assert found.config == ns.config
    assert (found.config.display_name, found.config.labels) == ("Acme Corp", {"tier": "enterprise"})
    acme = db.create_namespace(
        "tenant_acme",
        display_name="Acme Corporation",
        labels={"tier": "enterprise"},
    )
    assert acme.config.labels == {"tier": "enterprise"}
    assert db.list_namespaces() == ["tenant_123", "tenant_acme"]
    assert db.delete_namespace("tenant_acme") is True
    assert db.list_namespaces() == ["tenant_123"]


def test_errors_of_namespaces(db: Any, ns: Any, printed: Printed) -> None:
    try:
        found = db.namespace("tenant_999")
    except NamespaceNotFoundError:
        # Create if not exists
        found = db.create_namespace("tenant_999")
    assert found.name == "tenant_999"
    try:
        db.create_namespace("tenant_123")
    except NamespaceExistsError:
        print("Namespace already exists")
    assert printed() == "Namespace already exists\n"


def test_collections(db: Any, ns: Any, collection: Any) -> None:
    simpler = ns.create_collection("embeddings", dimension=768)
    assert (simpler.config.dimension, simpler.config.metric) == (768, DistanceMetric.COSINE)
    assert ns.list_collections() == ["documents", "embeddings"]
    assert ns.collection("documents").config == collection.config
    with pytest.raises(CollectionExistsError):
        ns.create_collection("embeddings", dimension=768)
    with pytest.raises(CollectionNotFoundError):
        ns.collection("nothing")
    inferred = ns.create_collection(CollectionConfig(name="inferred", dimension=None))
    inferred.insert([1.0, 2.0])
    assert db.collection("tenant_123", "inferred").config.dimension == 2


def test_vector_operations(collection: Any) -> None:
    made = collection.insert(
        vector=embedding(0.1, 0.2, 0.3),  # 384-dim
        metadata={"source": "web", "url": "https://..."},
        id="doc_001",  # Optional, auto-generated if omitted
    )
    assert made == "doc_001"
    collection.insert_batch(
        vectors=[embedding(0.1), embedding(0.2), embedding(0.3)],
        metadatas=[{"type": "a"}, {"type": "b"}, {"type": "c"}],
        ids=["doc_1", "doc_2", "doc_3"],
    )
    assert collection.count() == 4
    assert collection.get("doc_2").metadata == {"type": "b"}
    assert collection.delete("doc_2") is True
    assert (collection.count(), collection.get("doc_2")) == (3, None)


def test_dimension_errors(collection: Any, printed: Printed) -> None:
    try:
        collection.insert([1.0, 2.0, 3.0])  # 3-dim
    except DimensionMismatchError as e:
        print(f"Expected {e.expected} dimensions, got {e.actual}")
    assert printed() == "Expected 384 dimensions, got 3\n"
    assert collection.count() == 0


TEXTS = {
    "doc_ml": "machine learning algorithms for everyone",
    "doc_nn": "neural networks and deep learning",
    "doc_db": "ToonDB is a fast database",
    "doc_go": "a holiday by the sea",
}


@pytest.fixture
def filled(collection: Any) -> Any:
    """The collection with some texts; their vectors are in the order of the texts away from the query."""
    for at, (id, text) in enumerate(TEXTS.items()):
        collection.insert(
            vector=embedding(1.0, float(at)), metadata={"source": "web" if at % 2 else "disk", "text": text}, id=id
        )
    return collection


query_embedding = embedding(1.0)


def test_unified_search(filled: Any, printed: Printed) -> None:
    results = filled.search(
        SearchRequest(
            vector=query_embedding,
            k=10,
            filter={"source": "web"},
        )
    )
    for result in results:
        print(f"ID: {result.id}, Score: {result.score:.4f}")
    lines = printed().splitlines()
    assert [line.split(",")[0] for line in lines] == ["ID: doc_nn", "ID: doc_go"]
    assert [result.metadata["source"] for result in results] == ["web", "web"]
    results = filled.search(
        SearchRequest(
            text_query="machine learning",
            k=10,
        )
    )
    assert [result.id for result in results] == ["doc_ml", "doc_nn"]
    assert results[0].content == TEXTS["doc_ml"]
    results = filled.search(
        SearchRequest(
            vector=query_embedding,
            text_query="ML algorithms",
            k=10,
            alpha=0.7,  # 0.7 vector + 0.3 keyword
        )
    )
    assert [result.id for result in results] == ["doc_ml", "doc_nn", "doc_db", "doc_go"]


def test_convenience_methods(filled: Any) -> None:
    assert [one.id for one in filled.vector_search(query_embedding, k=10)] == list(TEXTS)
    assert [one.id for one in filled.keyword_search("neural networks", k=10)] == ["doc_nn"]
    results = filled.hybrid_search(query_embedding, "deep learning", k=10)
    assert {one.id for one in results[:2]} == {"doc_ml", "doc_nn"}


def test_words_that_were_not_asked_for(ns: Any) -> None:
    plain = ns.create_collection("plain", dimension=2)
    plain.insert([1.0, 0.0], content="never silently nothing")
    with pytest.raises(CollectionConfigError, match="enable_hybrid_search") as raised:
        plain.keyword_search("never", k=10)
    assert "enable_hybrid_search=True" in raised.value.remediation


def test_hybrid_search_with_content(collection: Any) -> None:
    collection.insert(
        id="doc_1",
        vector=[0.1] * 384,
        metadata={"title": "Guide", "text": "ToonDB is fast"},
        content="ToonDB is a fast database",
    )
    results = collection.hybrid_search(
        vector=query_embedding,
        text_query="fast database",
        k=10,
        alpha=0.7,  # 70% vector, 30% keyword weight
        rrf_fusion=True,  # Reciprocal Rank Fusion
    )
    assert [(one.id, one.content) for one in results] == [("doc_1", "ToonDB is a fast database")]
    assert results[0].score == pytest.approx(1 / 61)
    assert collection.keyword_search("Guide") == []


@pytest.mark.parametrize("aggregation", ["max_pooling", "mean_pooling", "weighted_sum"])
def test_multi_vector_documents(collection: Any, aggregation: str) -> None:
    title_embedding, abstract_embedding, content_embedding = RNG.normal(size=(3, 384)).tolist()
    collection.insert_multi_vector(
        id="article_1",
        vectors={
            "title": title_embedding,  # List[float] of dim 384
            "abstract": abstract_embedding,  # List[float] of dim 384
            "content": content_embedding,  # List[float] of dim 384
        },
        metadata={"title": "Deep Learning Survey"},
    )
    results = collection.multi_vector_search(
        query_vectors={
            "title": title_embedding,
            "content": content_embedding,
        },
        k=10,
        aggregation=aggregation,  # "max_pooling" or "mean_pooling", "weighted_sum"
    )
    assert [(one.id, one.metadata) for one in results] == [("article_1", {"title": "Deep Learning Survey"})]
    assert results[0].score == pytest.approx(2.0 if aggregation == "weighted_sum" else 1.0, abs=1e-5)


def test_tenants_do_not_see_each_other(db: Any) -> None:
    for tenant in ("acme", "acme.sub", "acm"):
        space = db.create_namespace(tenant)
        space.put("config", tenant.encode())
        space.create_collection("documents", dimension=2, enable_hybrid_search=True).insert(
            [1.0, 0.0], {"tenant": tenant}, "doc", f"of {tenant}"
        )
    for tenant in ("acme", "acme.sub", "acm"):
        space = db.namespace(tenant)
        docs = space.collection("documents")
        assert list(space.scan()) == [(b"config", tenant.encode())]
        assert [one.metadata["tenant"] for one in docs.vector_search([1.0, 0.0])] == [tenant]
        assert [one.metadata["tenant"] for one in docs.keyword_search("of")] == [tenant]
    db.delete_namespace("acme")
    assert db.namespace("acme.sub").get("config") == b"acme.sub"
