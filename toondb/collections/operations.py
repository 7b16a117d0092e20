"""The operations by name: each checks its arguments, and gives what is to be done in a transaction.

What is to be done can be done again: a commit that conflicts is repeated in another transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from toondb.engine.environment import Space
from toondb.engine.transaction import Transaction
from toondb.vector.metrics import Metric, stored
from toondb_protocol.arguments import shown, text
from toondb_protocol.collections import check_id, creation_arguments, given_metadata
from toondb_protocol.errors import CollectionConfigError, ValidationError
from toondb_protocol.search import Aggregation, CollectionConfig, DistanceMetric, NamespaceConfig

from . import catalog, documents, namespace_keys
from .catalog import CollectionEntry
from .given import MAX_EF, MAX_K, Given, Vectors, real
from .multi_vector import AskedMulti, search_multi
from .search import Asked, Searches, mismatch
from .text import TextIndex
from .vector_caches import VectorCaches

__all__ = ["Action", "Operations"]

Action: TypeAlias = Callable[[Transaction], Any]
Handler: TypeAlias = Callable[["Operations", Given], Action]

_MOST_ROWS = 10_000
_PAGE_BYTES = 4 << 20
_WHERE = ("namespace", "collection")


class Operations:
    """What each operation does.

    Args:
        searches: Searches.
        caches: The vectors.
        text: The words.
    """

    def __init__(self, searches: Searches, caches: VectorCaches, text: TextIndex) -> None:
        self._searches = searches
        self._caches = caches
        self._text = text

    def action(self, operation: str, arguments: Mapping[str, Any]) -> Action:
        """Check the arguments of an operation, and answer what is to be done.

        Raises:
            ToonDBError: An argument cannot be.
        """
        names, handler = _HANDLERS[operation]
        return handler(self, Given(arguments, names))

    # Namespaces

    def _namespace_create(self, given: Given) -> Action:
        labels = given.get("labels")
        config = NamespaceConfig(given.get("name"), given.get("display_name"), {} if labels is None else labels)
        for value in (config.display_name or "", *config.labels, *config.labels.values()):
            text("display_name or a label", value)

        def create(transaction: Transaction) -> None:
            catalog.create_namespace(transaction, config)

        return create

    def _namespace_get(self, given: Given) -> Action:
        name = given.name(argument="name")

        def get(transaction: Transaction) -> dict[str, Any]:
            config = catalog.namespace_named(transaction, name).config
            return {"name": config.name, "display_name": config.display_name, "labels": dict(config.labels)}

        return get

    def _namespace_list(self, given: Given) -> Action:
        return catalog.namespace_names

    def _namespace_delete(self, given: Given) -> Action:
        name = given.name(argument="name")
        return lambda transaction: catalog.delete_namespace(transaction, name) is not None

    def _namespace_kv_get(self, given: Given) -> Action:
        name, keys = given.name(), namespace_keys.given_keys(given.listed("keys"))
        return lambda transaction: namespace_keys.get(transaction, catalog.namespace_named(transaction, name), keys)

    def _namespace_kv_put(self, given: Given) -> Action:
        name = given.name()
        pairs = namespace_keys.given_pairs(given.listed("keys"), given.listed("values"))
        return lambda transaction: namespace_keys.put(transaction, catalog.namespace_named(transaction, name), pairs)

    def _namespace_kv_delete(self, given: Given) -> Action:
        name, keys = given.name(), namespace_keys.given_keys(given.listed("keys"))
        return lambda transaction: namespace_keys.delete(transaction, catalog.namespace_named(transaction, name), keys)

    def _namespace_kv_scan(self, given: Given) -> Action:
        name = given.name()
        start, end = given.get("start") or b"", given.get("end")
        for bound in (start, b"" if end is None else end):
            if not isinstance(bound, bytes):
                raise ValidationError(f"a bound of a range is bytes, got {shown(bound)}.")
        limit = given.number("limit", 1 << 62, _MOST_ROWS)
        reverse = given.flag("reverse", False)
        return lambda transaction: namespace_keys.scan(
            transaction, catalog.namespace_named(transaction, name), start, end, min(limit, _MOST_ROWS), reverse=reverse
        )

    # Collections

    def _collection_create(self, given: Given) -> Action:
        namespace = given.name()
        defaults = CollectionConfig("defaults")
        metric = given.get("metric")
        if metric is not None and metric not in list(map(str, DistanceMetric)):
            raise CollectionConfigError(f"the metric {shown(metric)} is unknown; known: {', '.join(DistanceMetric)}.")
        config = CollectionConfig(
            name=given.name("collection", "name"),
            dimension=given.get("dimension"),
            metric=defaults.metric if metric is None else DistanceMetric(metric),
            m=defaults.m if given.get("m") is None else given.get("m"),
            ef_construction=(
                defaults.ef_construction if given.get("ef_construction") is None else given.get("ef_construction")
            ),
            enable_hybrid_search=given.flag("hybrid", False),
            content_field=given.text_or_none("content_field"),
        )

        def create(transaction: Transaction) -> None:
            collection = catalog.create_collection(transaction, namespace, config)
            if config.enable_hybrid_search:
                self._text.create(transaction, collection)

        return create

    def _collection_get(self, given: Given) -> Action:
        namespace, name = given.name(), given.name("collection", "name")

        def get(transaction: Transaction) -> dict[str, Any]:
            found = creation_arguments(namespace, catalog.collection_named(transaction, namespace, name).config)
            del found["namespace"]
            return found

        return get

    def _collection_list(self, given: Given) -> Action:
        namespace = given.name()
        return lambda transaction: catalog.collection_names(transaction, namespace)

    def _collection_delete(self, given: Given) -> Action:
        namespace, name = given.name(), given.name("collection", "name")
        return lambda transaction: catalog.delete_collection(transaction, namespace, name) is not None

    # Documents

    def _where(self, given: Given) -> Callable[[Transaction], CollectionEntry]:
        namespace, name = given.name(), given.name("collection", "collection")
        return lambda transaction: catalog.collection_named(transaction, namespace, name)

    def _document_put(self, given: Given) -> Action:
        where, ids = self._where(given), given.ids()
        vectors = given.vectors(len(ids), given.get("dimension"))
        metadatas, contents = given.metadatas(len(ids)), given.contents(len(ids))

        def put(transaction: Transaction) -> None:
            collection = self._fitting(transaction, where(transaction), vectors)
            values: dict[str, bytes] = {}
            for at, id in enumerate(ids):
                row = b"" if vectors is None else vectors.rows[at].tobytes()
                dimension = 0 if vectors is None else vectors.dimension
                values[id] = documents.encode(dimension, row, None, metadatas[at], contents[at])
            texts = {id: content for id, content in zip(ids, contents, strict=True) if content}
            self._write(transaction, collection, values, texts)

        return put

    def _document_put_multi(self, given: Given) -> Action:
        where, id, names = self._where(given), check_id(given.get("id")), given.names()
        vectors = given.vectors(len(names), given.get("dimension"))
        if vectors is None:
            raise ValidationError("vectors are missing.")
        metadata, content = given_metadata(given.get("metadata")), given.text_or_none("content")

        def put(transaction: Transaction) -> None:
            collection = self._fitting(transaction, where(transaction), vectors)
            value = documents.encode(vectors.dimension, vectors.rows.tobytes(), names, metadata, content)
            self._write(transaction, collection, {id: value}, {id: content} if content else {})

        return put

    def _fitting(
        self, transaction: Transaction, collection: CollectionEntry, vectors: Vectors | None
    ) -> CollectionEntry:
        """The collection to write to, when it takes these vectors; it must stay until the commit."""
        transaction.require(collection.key, Space.CATALOG)
        if vectors is None:
            return collection
        expected = collection.config.dimension
        if expected is not None and expected != vectors.dimension:
            raise mismatch(collection, "the vector", vectors.dimension)
        # Refuses what has no direction, or is too long to be compared.
        what = "the vectors" if len(vectors.rows) > 1 else "the vector"
        stored(vectors.rows, Metric.named(collection.config.metric.value), what)
        return collection if expected is not None else catalog.set_dimension(transaction, collection, vectors.dimension)

    def _write(
        self, transaction: Transaction, collection: CollectionEntry, values: dict[str, bytes], texts: dict[str, str]
    ) -> None:
        # All or nothing, in the transaction of a user, too: first what may fail.
        known: list[str] = []
        if collection.config.enable_hybrid_search:
            known = [id for id in values if documents.read(transaction, collection, id) is not None]
        prefix = collection.prefix
        transaction.check_room(sum(len(prefix) + len(id) + len(value) for id, value in values.items()))
        if collection.config.enable_hybrid_search:
            self._text.replace(transaction, collection, known, texts)
        transaction.put_records(Space.DOCUMENTS, {prefix + id.encode(): value for id, value in values.items()})

    def _document_get(self, given: Given) -> Action:
        where = self._where(given)
        ids = [check_id(id) for id in given.listed("ids")]

        def get(transaction: Transaction) -> list[Any]:
            collection = where(transaction)
            found: list[Any] = []
            size = 0
            for id in ids:
                stored = documents.read(transaction, collection, id)
                found.append(None if stored is None else _document(id, stored[1]))
                size += 0 if stored is None else len(stored[1])
                if size >= _PAGE_BYTES:
                    break
            return found

        return get

    def _document_delete(self, given: Given) -> Action:
        where = self._where(given)
        ids = list(dict.fromkeys(check_id(id) for id in given.listed("ids")))

        def delete(transaction: Transaction) -> int:
            collection = where(transaction)
            transaction.require(collection.key, Space.CATALOG)
            there = [id for id in ids if documents.read(transaction, collection, id) is not None]
            transaction.check_room(sum(len(collection.prefix) + len(id.encode()) for id in there))
            if there and collection.config.enable_hybrid_search:
                self._text.replace(transaction, collection, there, {})
            for id in there:
                transaction.delete(collection.prefix + id.encode(), Space.DOCUMENTS)
            return len(there)

        return delete

    def _document_count(self, given: Given) -> Action:
        where, filter = self._where(given), given.filter()

        def count(transaction: Transaction) -> int:
            collection = where(transaction)
            if filter is None:
                return documents.count(transaction, collection)
            rows = documents.scan(transaction, collection)
            return sum(1 for _, value in rows if filter.matches(documents.metadata_of(value)))

        return count

    def _document_iterate(self, given: Given) -> Action:
        where, filter = self._where(given), given.filter()
        after = given.get("after")
        if after is not None:
            check_id(after)
        limit = min(given.number("limit", 1 << 62, _MOST_ROWS), _MOST_ROWS)

        def iterate(transaction: Transaction) -> list[Any]:
            found: list[Any] = []
            size = 0
            for id, value in documents.scan(transaction, where(transaction), after):
                if filter is not None and not filter.matches(documents.metadata_of(value)):
                    continue
                found.append(_document(id, value))
                size += len(value)
                if len(found) >= limit or size >= _PAGE_BYTES:
                    break
            return found

        return iterate

    # Searches

    def _search(self, given: Given) -> Action:
        vector, text_query, filter = given.vector(), given.text_or_none("text_query"), given.filter()
        if vector is None and text_query is None:
            raise ValidationError("a search needs a vector, a text_query or both.")
        plain = tuple(map(given.get, _PLAIN))
        try:
            namespace, name, how = _asked(*plain)
        except TypeError:  # something in it cannot be a key, and is refused
            namespace, name, how = _asked.__wrapped__(*plain)
        asked = how._replace(vector=vector, text_query=text_query, filter=filter)
        searches = self._searches
        return lambda transaction: searches.search(
            transaction, catalog.collection_named(transaction, namespace, name), asked
        )

    def _search_multi(self, given: Given) -> Action:
        where, names = self._where(given), given.names()
        vectors = given.vectors(len(names), given.get("dimension"))
        if vectors is None:
            raise ValidationError("vectors are missing.")
        ef = given.get("ef_search")
        try:
            aggregation = Aggregation(given.get("aggregation") or Aggregation.MAX_POOLING)
        except (ValueError, TypeError):
            known = ", ".join(Aggregation)
            raise ValidationError(
                f"the aggregation {shown(given.get('aggregation'))} is unknown; known: {known}."
            ) from None
        asked = AskedMulti(
            names=names,
            vectors=vectors,
            k=given.number("k", MAX_K, 10),
            aggregation=aggregation,
            weights=_weights(given.get("weights"), names, aggregation),
            filter=given.filter(),
            ef_search=None if ef is None else given.number("ef_search", MAX_EF),
        )
        return lambda transaction: search_multi(transaction, where(transaction), self._caches, asked)


@lru_cache(256, typed=True)
def _asked(*plain: Any) -> tuple[str, str, Asked]:
    """Where a search is to be made, and how: the same for one search after the other."""
    given = Given(dict(zip(_PLAIN, plain, strict=True)), dict.fromkeys(_PLAIN))
    ef, min_score = given.get("ef_search"), given.get("min_score")
    how = Asked(
        vector=None,
        text_query=None,
        k=given.number("k", MAX_K, 10),
        filter=None,
        alpha=given.real("alpha", 0.5, 0.0, 1.0),
        rrf_fusion=given.flag("rrf_fusion", True),
        k_rrf=given.number("k_rrf", MAX_EF, 60),
        ef_search=None if ef is None else given.number("ef_search", MAX_EF),
        min_score=None if min_score is None else real("min_score", min_score),
        include_vectors=given.flag("include_vectors", False),
        include_content=given.flag("include_content", True),
    )
    return given.name(), given.name("collection", "collection"), how


def _weights(weights: object, names: list[str], aggregation: Aggregation) -> dict[str, float]:
    if weights is None:
        return {}
    if aggregation is not Aggregation.WEIGHTED_SUM:
        raise ValidationError("weights go with the aggregation weighted_sum.")
    if not isinstance(weights, Mapping) or any(name not in names for name in weights):
        raise ValidationError(f"weights are numbers by the names asked for, got {shown(weights)}.")
    return {name: real(f"the weight of {name!r}", weight, 0.0, 1e18) for name, weight in weights.items()}


def _document(id: str, value: bytes) -> list[Any]:
    """A document as it is answered."""
    contents = documents.decode(value)
    if contents.names is None:
        return [id, contents.metadata, contents.content, contents.vector, None, None]
    return [id, contents.metadata, contents.content, None, contents.names, contents.vectors]


_ASKED = ("k", "filter", "ef_search")
_PLAIN = (
    *_WHERE,
    "k",
    "ef_search",
    "alpha",
    "rrf_fusion",
    "k_rrf",
    "min_score",
    "include_vectors",
    "include_content",
)
_NAMES_AND_HANDLERS: dict[str, tuple[tuple[str, ...], Handler]] = {
    "namespace_create": (("name", "display_name", "labels"), Operations._namespace_create),
    "namespace_get": (("name",), Operations._namespace_get),
    "namespace_list": ((), Operations._namespace_list),
    "namespace_delete": (("name",), Operations._namespace_delete),
    "namespace_kv_get": (("namespace", "keys"), Operations._namespace_kv_get),
    "namespace_kv_put": (("namespace", "keys", "values"), Operations._namespace_kv_put),
    "namespace_kv_delete": (("namespace", "keys"), Operations._namespace_kv_delete),
    "namespace_kv_scan": (("namespace", "start", "end", "limit", "reverse"), Operations._namespace_kv_scan),
    "collection_create": (
        ("namespace", "name", "dimension", "metric", "m", "ef_construction", "hybrid", "content_field"),
        Operations._collection_create,
    ),
    "collection_get": (("namespace", "name"), Operations._collection_get),
    "collection_list": (("namespace",), Operations._collection_list),
    "collection_delete": (("namespace", "name"), Operations._collection_delete),
    "document_put": ((*_WHERE, "ids", "vectors", "dimension", "metadatas", "contents"), Operations._document_put),
    "document_put_multi": (
        (*_WHERE, "id", "names", "vectors", "dimension", "metadata", "content"),
        Operations._document_put_multi,
    ),
    "document_get": ((*_WHERE, "ids"), Operations._document_get),
    "document_delete": ((*_WHERE, "ids"), Operations._document_delete),
    "document_count": ((*_WHERE, "filter"), Operations._document_count),
    "document_iterate": ((*_WHERE, "after", "limit", "filter"), Operations._document_iterate),
    "search": ((*_PLAIN, "filter", "vector", "text_query"), Operations._search),
    "search_multi": (
        (*_WHERE, *_ASKED, "names", "vectors", "dimension", "aggregation", "weights"),
        Operations._search_multi,
    ),
}
_HANDLERS = {operation: (dict.fromkeys(names), handler) for operation, (names, handler) in _NAMES_AND_HANDLERS.items()}
