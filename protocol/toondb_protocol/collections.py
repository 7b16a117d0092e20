"""Namespaces and collections of a store: what callers type, the same in every mode.

The classes here check and normalise arguments and ask their store for one operation, a name and a map of plain values
(``OPERATIONS`` lists them): an embedded store carries it out, a client sends it. So every mode has the same methods,
defaults and errors.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from typing import Any

from .arguments import Items, pairs, plain_number, scan_range, sendable_filter, several, shown, text, whole_number
from .errors import CollectionConfigError, ValidationError
from .keys import BytesLike, KeyLike, as_namespace_key, as_value
from .search import (
    Aggregation,
    CollectionConfig,
    DistanceMetric,
    Document,
    NamespaceConfig,
    SearchRequest,
    SearchResult,
    check_name,
    is_number,
)
from .vectors import PackedVectors, pack_vector, pack_vectors, unpack_vector

__all__ = ["MAX_VALUES", "OPERATIONS", "READING", "Collection", "HasCollections", "Namespace"]

OPERATIONS: dict[str, str] = {
    "namespace_create": "name, display_name, labels -> nil",
    "namespace_get": "name -> map of name, display_name, labels",
    "namespace_list": "-> array of names, in order",
    "namespace_delete": "name -> bool; with everything in it",
    "namespace_kv_get": "namespace, keys -> array of values, nil where there is none; of the first keys when large",
    "namespace_kv_put": "namespace, keys, values -> nil",
    "namespace_kv_delete": "namespace, keys -> nil",
    "namespace_kv_scan": "namespace, start, end, limit, reverse -> flat array of keys and values",
    "collection_create": "namespace, name, dimension, metric, m, ef_construction, hybrid, content_field -> nil",
    "collection_get": "namespace, name -> the map it was created with, dimension as it is now",
    "collection_list": "namespace -> array of names, in order",
    "collection_delete": "namespace, name -> bool",
    "document_put": "namespace, collection, ids, vectors (bin), dimension, metadatas, contents -> nil; all or none",
    "document_put_multi": "namespace, collection, id, names, vectors (bin), dimension, metadata, content -> nil",
    "document_get": "namespace, collection, ids -> array of documents, nil where there is none; of the first ids when "
    "large",
    "document_delete": "namespace, collection, ids -> how many there were",
    "document_count": "namespace, collection, filter -> how many",
    "document_iterate": "namespace, collection, after (id or nil), limit, filter -> array of documents, by id",
    "search": "namespace, collection, and the fields of a SearchRequest, vector as bin -> array of results",
    "search_multi": "namespace, collection, names, vectors (bin), dimension, k, aggregation, weights, filter, "
    "ef_search -> array of results",
}
"""The operations: their arguments, and what they answer. A document is ``[id, metadata, content, vector (bin), names,
vectors (bin)]``, a result ``[id, score, metadata, content, vector (bin), distance]``; nil for what is not there."""

READING = frozenset(
    name for name in OPERATIONS if name.endswith(("_get", "_list", "_scan", "_count", "_iterate")) or "search" in name
)
"""The operations that change nothing."""

MAX_VALUES = 1 << 22
"""Values in the arguments of one operation that is sent: in all arrays and maps, and the names in maps."""

_PAGE = 256
_SCAN_PAGE = 1024


class HasCollections(ABC):
    """A store that has namespaces."""

    @abstractmethod
    def _operate(self, operation: str, arguments: dict[str, Any]) -> Any:
        """Carry out one of ``OPERATIONS``."""

    def create_namespace(
        self,
        namespace: NamespaceConfig | str,
        *,
        display_name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Namespace:
        """Create a namespace.

        Args:
            namespace: Its name, 1 to 64 of letters, digits, ``_``, ``-`` and ``.``; or a :class:`NamespaceConfig`.
            display_name: A name for people.
            labels: Text by text.

        Raises:
            NamespaceExistsError: There is one of that name.
            ValidationError, NamespaceError: An argument cannot be.
        """
        config = namespace_of(namespace, display_name, labels)
        self._operate("namespace_create", config.to_wire())
        return Namespace(self, config)

    def namespace(self, name: str) -> Namespace:
        """An existing namespace.

        Raises:
            NamespaceNotFoundError: There is none of that name.
        """
        found = self._operate("namespace_get", {"name": check_name("namespace", name)})
        return Namespace(self, NamespaceConfig(**found))

    def list_namespaces(self) -> list[str]:
        """The names of all namespaces, in order."""
        names: list[str] = self._operate("namespace_list", {})
        return names

    def delete_namespace(self, name: str) -> bool:
        """Delete a namespace with everything in it; answers whether there was one."""
        return bool(self._operate("namespace_delete", {"name": check_name("namespace", name)}))

    def collection(self, namespace: str, name: str) -> Collection:
        """An existing collection; the short form of ``namespace(namespace).collection(name)``.

        Raises:
            NamespaceNotFoundError, CollectionNotFoundError: There is none.
        """
        return _collection(self, check_name("namespace", namespace), name)


def _collection(store: HasCollections, namespace: str, name: str) -> Collection:
    found = store._operate("collection_get", {"namespace": namespace, "name": check_name("collection", name)})
    return Collection(store, namespace, config_of(found))


def config_of(found: Mapping[str, Any]) -> CollectionConfig:
    """The configuration in the answer of ``collection_get``."""
    return CollectionConfig(
        name=found["name"],
        dimension=found["dimension"],
        metric=DistanceMetric(found["metric"]),
        m=found["m"],
        ef_construction=found["ef_construction"],
        enable_hybrid_search=found["hybrid"],
        content_field=found["content_field"],
    )


def namespace_of(
    namespace: NamespaceConfig | str, display_name: str | None, labels: Mapping[str, str] | None
) -> NamespaceConfig:
    """The configuration that ``create_namespace`` was given."""
    if not isinstance(namespace, NamespaceConfig):
        return NamespaceConfig(namespace, display_name, labels or {})
    if display_name is not None or labels is not None:
        raise ValidationError("give a NamespaceConfig or a name with keywords, not both.")
    return namespace


def creation_of(collection: CollectionConfig | str, options: Mapping[str, Any]) -> CollectionConfig:
    """The configuration that ``create_collection`` was given."""
    if isinstance(collection, CollectionConfig):
        if options:
            raise CollectionConfigError("give a CollectionConfig or a name with keywords, not both.")
        return collection
    try:
        return CollectionConfig(collection, **options)
    except TypeError:
        known = ", ".join(CollectionConfig.__dataclass_fields__)
        raise CollectionConfigError(f"an option of {sorted(options)} is unknown; known: {known}.") from None


def creation_arguments(namespace: str, config: CollectionConfig) -> dict[str, Any]:
    """The arguments of ``collection_create``."""
    return {
        "namespace": namespace,
        "name": config.name,
        "dimension": config.dimension,
        "metric": str(config.metric),
        "m": config.m,
        "ef_construction": config.ef_construction,
        "hybrid": config.enable_hybrid_search,
        "content_field": config.content_field,
    }


class Namespace:
    """A namespace of a store: its collections, and keys that no other namespace sees.

    Attributes:
        name: Its name.
        config: What it was created with.
    """

    def __init__(self, store: HasCollections, config: NamespaceConfig) -> None:
        self._store = store
        self.config = config
        self.name = config.name

    def create_collection(self, collection: CollectionConfig | str, **options: Any) -> Collection:
        """Create a collection.

        Args:
            collection: A :class:`CollectionConfig`, or a name.
            **options: The other fields of a :class:`CollectionConfig`.

        Raises:
            CollectionExistsError: There is one of that name.
            CollectionConfigError: An option cannot be.
        """
        config = creation_of(collection, options)
        self._store._operate("collection_create", creation_arguments(self.name, config))
        return Collection(self._store, self.name, config)

    def collection(self, name: str) -> Collection:
        """An existing collection.

        Raises:
            CollectionNotFoundError: There is none of that name.
        """
        return _collection(self._store, self.name, name)

    get_collection = collection

    def list_collections(self) -> list[str]:
        """The names of its collections, in order."""
        names: list[str] = self._store._operate("collection_list", {"namespace": self.name})
        return names

    def delete_collection(self, name: str) -> bool:
        """Delete a collection with its documents; answers whether there was one."""
        arguments = {"namespace": self.name, "name": check_name("collection", name)}
        return bool(self._store._operate("collection_delete", arguments))

    # Keys

    def get(self, key: KeyLike) -> bytes | None:
        """The value of a key of this namespace, None when there is none. Keys are 1 to 500 bytes."""
        value: bytes | None = self._store._operate(
            "namespace_kv_get", {"namespace": self.name, "keys": [as_namespace_key(key)]}
        )[0]
        return value

    def put(self, key: KeyLike, value: BytesLike) -> None:
        """Store a value under a key of this namespace."""
        self.put_many({as_namespace_key(key): value})

    def put_many(self, items: Items) -> int:
        """Store all pairs atomically; answers how many."""
        arguments, count = put_arguments(self.name, items)
        if count:
            self._store._operate("namespace_kv_put", arguments)
        return count

    def delete(self, key: KeyLike) -> None:
        """Delete a key of this namespace; no error when it is absent."""
        self._store._operate("namespace_kv_delete", {"namespace": self.name, "keys": [as_namespace_key(key)]})

    def exists(self, key: KeyLike) -> bool:
        """Whether this namespace has a key."""
        return self.get(key) is not None

    def scan(
        self,
        start: KeyLike | None = None,
        end: KeyLike | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """The keys and values of this namespace in a range; the arguments are those of :meth:`Store.scan`.

        It is read in pages, each as of when it is read.
        """
        pages = ScanPages(self.name, start, end, limit, reverse)
        while (arguments := pages.next_arguments()) is not None:
            yield from pages.rows(self._store._operate("namespace_kv_scan", arguments))

    def __repr__(self) -> str:
        return f"<Namespace {self.name}>"


def put_arguments(namespace: str, items: Items) -> tuple[dict[str, Any], int]:
    """The arguments of ``namespace_kv_put``, and how many pairs they have."""
    rows = pairs(items, as_namespace_key)
    return {
        "namespace": namespace,
        "keys": [row[0] for row in rows],
        "values": [as_value(row[1]) for row in rows],
    }, len(rows)


class ScanPages:
    """The pages of a scan of a namespace's keys."""

    def __init__(
        self, namespace: str, start: KeyLike | None, end: KeyLike | None, limit: int | None, reverse: bool
    ) -> None:
        scan = scan_range(start, end, limit=limit, reverse=reverse)
        self._namespace = namespace
        self._start, self._end, self._reverse = scan.start, scan.end, scan.reverse
        self._left = scan.limit or None
        self._over = False

    def next_arguments(self) -> dict[str, Any] | None:
        """The arguments for the next page, None when there is none."""
        if self._over:
            return None
        return {
            "namespace": self._namespace,
            "start": self._start,
            "end": self._end,
            "limit": _SCAN_PAGE if self._left is None else min(self._left, _SCAN_PAGE),
            "reverse": self._reverse,
        }

    def rows(self, flat: list[bytes]) -> list[tuple[bytes, bytes]]:
        """The rows of a page."""
        found = list(zip(flat[::2], flat[1::2], strict=True))
        if self._left is not None:
            self._left -= len(found)
        # A page may be shorter than asked, for its size; only an empty one is the last.
        if not found or self._left == 0:
            self._over = True
        elif self._reverse:
            self._end = found[-1][0]
        else:
            self._start = found[-1][0] + b"\0"
        return found


class Collection:
    """A collection of documents, each with a vector (or several, or none), metadata and a text.

    Attributes:
        name: Its name.
        namespace: The name of its namespace.
        config: What it was created with.
    """

    def __init__(self, store: HasCollections, namespace: str, config: CollectionConfig) -> None:
        self._store = store
        self.namespace = namespace
        self.config = config
        self.name = config.name

    def _operate(self, operation: str, arguments: dict[str, Any]) -> Any:
        return self._store._operate(operation, {"namespace": self.namespace, "collection": self.name, **arguments})

    # Writes

    def insert(
        self,
        *arguments: Any,
        vector: Any = None,
        metadata: Mapping[str, Any] | None = None,
        id: str | None = None,
        content: str | None = None,
    ) -> str:
        """Store a document; the same id again replaces it.

        Args:
            *arguments: ``vector, metadata, id, content`` in this order; when the first is text, it is the id and the
                others follow.
            vector: Its vector; None for a document of words alone.
            metadata: JSON-like values by name.
            id: 1 to 400 bytes of UTF-8; None = one is made.
            content: Its text; None = the field ``content_field`` of the metadata, where the collection has one.

        Returns:
            Its id.

        Raises:
            DimensionMismatchError: The vector has another dimension than the collection.
            ValidationError: An argument cannot be.
        """
        given = insert_arguments(self.config, arguments, vector, metadata, id, content)
        self._operate("document_put", given)
        return str(given["ids"][0])

    def upsert(
        self,
        *arguments: Any,
        vector: Any = None,
        metadata: Mapping[str, Any] | None = None,
        id: str | None = None,
        content: str | None = None,
    ) -> str:
        """The same as :meth:`insert`."""
        return self.insert(*arguments, vector=vector, metadata=metadata, id=id, content=content)

    def insert_batch(
        self,
        vectors: Any = None,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str | None] | None = None,
        contents: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Store documents, all or none.

        Args:
            vectors: Vectors, or tuples ``(id, vector, metadata[, content])``.
            metadatas, ids, contents: One for each vector; see :meth:`insert`.

        Returns:
            Their ids.

        Raises:
            ValidationError: They do not fit together, or an id comes twice.
            DimensionMismatchError: A vector has another dimension.
        """
        given = batch_arguments(self.config, vectors, metadatas, ids, contents)
        if given["ids"]:
            self._operate("document_put", given)
        return list(given["ids"])

    def insert_multi_vector(
        self,
        id: str,
        vectors: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        content: str | None = None,
    ) -> str:
        """Store a document with several vectors, by name; the same id again replaces it. Answers its id."""
        self._operate("document_put_multi", multi_arguments(self.config, id, vectors, metadata, content))
        return id

    def delete(self, id: str) -> bool:
        """Delete a document; answers whether there was one."""
        return bool(self._operate("document_delete", {"ids": [check_id(id)]}))

    def delete_batch(self, ids: Iterable[str]) -> int:
        """Delete documents, all or none; answers how many there were."""
        return int(self._operate("document_delete", {"ids": check_ids(ids)}))

    # Reads

    def get(self, id: str) -> Document | None:
        """A document, None when there is none of that id."""
        return document_of(self._operate("document_get", {"ids": [check_id(id)]})[0])

    def get_batch(self, ids: Iterable[str]) -> list[Document | None]:
        """Documents in the order of the ids, None where there is none.

        It is read in pages, each as of when it is read.
        """
        pages = IdPages(ids)
        while (arguments := pages.next_arguments()) is not None:
            pages.add(self._operate("document_get", arguments))
        return pages.found

    def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """How many documents there are, or meet a filter."""
        return int(self._operate("document_count", {"filter": given_filter(filter)}))

    def __len__(self) -> int:
        return self.count()

    def iterate(
        self, *, filter: Mapping[str, Any] | None = None, after: str | None = None, limit: int | None = None
    ) -> Iterator[Document]:
        """The documents in the order of their ids.

        It is read in pages, each as of when it is read.

        Args:
            filter: Only those whose metadata meets it.
            after: Begin behind this id.
            limit: So many at the most.
        """
        pages = DocumentPages(filter, after, limit)
        while (arguments := pages.next_arguments()) is not None:
            yield from pages.documents(self._operate("document_iterate", arguments))

    # Searches

    def search(self, request: SearchRequest) -> list[SearchResult]:
        """Search by vector, by words or by both; see :class:`SearchRequest`. Best first.

        Raises:
            CollectionConfigError: Words are asked for, and the collection was created without them.
            DimensionMismatchError: The vector has another dimension than the collection.
            ValidationError: Something else cannot be asked.
        """
        return self._search(checked(request))

    def _search(self, request: SearchRequest) -> list[SearchResult]:
        return results_of(self._operate("search", search_arguments(request)))

    def vector_search(
        self,
        vector: Any,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,
        *,
        ef_search: int | None = None,
        min_score: float | None = None,
    ) -> list[SearchResult]:
        """The documents nearest to a vector."""
        return self._search(SearchRequest(vector, None, k, filter, ef_search=ef_search, min_score=min_score))

    def keyword_search(
        self, text_query: str, k: int = 10, filter: Mapping[str, Any] | None = None, *, min_score: float | None = None
    ) -> list[SearchResult]:
        """The documents that fit words best, by BM25."""
        return self._search(SearchRequest(None, text_query, k, filter, min_score=min_score))

    def hybrid_search(
        self,
        vector: Any,
        text_query: str,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,
        *,
        alpha: float = 0.5,
        rrf_fusion: bool = True,
        k_rrf: int = 60,
        ef_search: int | None = None,
    ) -> list[SearchResult]:
        """The documents that fit a vector and words best, see :class:`SearchRequest`."""
        return self._search(
            SearchRequest(
                vector,
                text_query,
                k,
                filter,
                alpha=alpha,
                rrf_fusion=rrf_fusion,
                k_rrf=k_rrf,
                ef_search=ef_search,
            )
        )

    def multi_vector_search(
        self,
        query_vectors: Mapping[str, Any],
        k: int = 10,
        aggregation: Aggregation | str = Aggregation.MAX_POOLING,
        *,
        weights: Mapping[str, float] | None = None,
        filter: Mapping[str, Any] | None = None,
        ef_search: int | None = None,
    ) -> list[SearchResult]:
        """The documents of several vectors that fit several query vectors best.

        Args:
            query_vectors: Vectors by name; each is compared with the vector of that name.
            k: How many documents.
            aggregation: How the scores of a document's vectors become one: the highest, the mean (over the names asked
                for) or the sum weighted by ``weights``.
            weights: By name, 1 for those without; with ``weighted_sum`` only.
            filter: Only documents whose metadata meets it.
            ef_search: See :class:`SearchRequest`.
        """
        return results_of(
            self._operate(
                "search_multi",
                multi_search_arguments(self.config, query_vectors, k, aggregation, weights, filter, ef_search),
            )
        )

    def __repr__(self) -> str:
        return f"<Collection {self.namespace}/{self.name}>"


# Arguments, for the sync and the async classes

_MAX_ID_BYTES = 400
_NAMES = ("vector", "metadata", "id", "content")
_MOST_WEIGHT = 1e18


def check_id(id: object) -> str:
    """The id of a document.

    Raises:
        ValidationError: It is not 1 to 400 bytes of UTF-8 text.
    """
    if not isinstance(id, str):
        raise ValidationError(f"the id of a document is text, got {shown(id)}.")
    try:
        size = len(id.encode())
    except UnicodeEncodeError:
        raise ValidationError(f"the id {id!r} is not valid Unicode text.") from None
    if not 1 <= size <= _MAX_ID_BYTES:
        raise ValidationError(f"the id of a document has 1 to {_MAX_ID_BYTES} bytes, got {size}.")
    return id


def check_ids(ids: Iterable[str]) -> list[str]:
    """The ids of several documents.

    Raises:
        ValidationError: They are no collection, or one of them is no id.
    """
    return [check_id(id) for id in several("ids", ids)]


def _plain(value: object, where: str, depth: int = 0) -> Any:
    """A value of metadata as JSON has it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value if value.isascii() else text(where, value)
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise ValidationError(f"{where} is an integer beyond 64 bits.")
        return int(value)
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValidationError(f"{where} is {value}; numbers of metadata are finite.")
        return float(value)
    if depth >= 32:
        raise ValidationError(f"{where} is nested deeper than 32 levels.")
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValidationError(f"{where} has the name {shown(name)}, which is not text.")
            text(f"a name in {where}", name)
        return {str(name): _plain(item, f"{where}.{name}", depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{at}]", depth + 1) for at, item in enumerate(value)]
    number = plain_number(value)
    if number is not value:
        return _plain(number, where, depth)
    raise ValidationError(
        f"{where} is of type {type(value).__name__}; metadata is made of None, bool, int, float, str, list and dict.",
        remediation="Give array.tolist()." if hasattr(value, "tolist") else "",
    )


def given_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The metadata of a document."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise ValidationError(f"metadata is a mapping, got {shown(metadata)}.")
    plain: dict[str, Any] = _plain(metadata, "metadata")
    return plain


def given_filter(filter: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A filter; what it means is checked where it is applied."""
    if filter is None:
        return None
    if not isinstance(filter, Mapping):
        raise ValidationError(f"filter is a mapping, got {shown(filter)}.")
    sendable: dict[str, Any] = sendable_filter(filter)
    return sendable


def _content(config: CollectionConfig, content: object, metadata: Mapping[str, Any]) -> str | None:
    if content is None and config.content_field is not None:
        content = metadata.get(config.content_field)
        if not isinstance(content, str):
            return None
    return None if content is None else text("content", content)


def insert_arguments(
    config: CollectionConfig,
    arguments: tuple[Any, ...],
    vector: Any,
    metadata: Mapping[str, Any] | None,
    id: str | None,
    content: str | None,
) -> dict[str, Any]:
    """The arguments of ``document_put`` for one document."""
    names = _NAMES
    if arguments and isinstance(arguments[0], str):
        names = ("id", "vector", "metadata", "content")
    if len(arguments) > len(names):
        raise ValidationError(f"insert takes {len(names)} positional arguments at the most, got {len(arguments)}.")
    given = {"vector": vector, "metadata": metadata, "id": id, "content": content}
    for name, value in zip(names, arguments, strict=False):
        if given[name] is not None:
            raise ValidationError(f"insert was given {name} twice.")
        given[name] = value
    fields = given_metadata(given["metadata"])
    packed = None if given["vector"] is None else pack_vector(given["vector"])
    chosen = uuid.uuid4().hex if given["id"] is None else check_id(given["id"])
    return _put([chosen], packed, [fields], [_content(config, given["content"], fields)])


def _put(
    ids: list[str], packed: PackedVectors | None, metadatas: list[dict[str, Any]], contents: list[str | None]
) -> dict[str, Any]:
    return {
        "ids": ids,
        "vectors": None if packed is None else packed.data,
        "dimension": None if packed is None else packed.dimension,
        "metadatas": metadatas,
        "contents": contents,
    }


def batch_arguments(
    config: CollectionConfig,
    vectors: Any,
    metadatas: Sequence[Mapping[str, Any] | None] | None,
    ids: Sequence[str | None] | None,
    contents: Sequence[str | None] | None,
) -> dict[str, Any]:
    """The arguments of ``document_put`` for many."""
    if isinstance(vectors, Sequence) and vectors and _is_document(vectors[0]):
        if not (metadatas is None and ids is None and contents is None):
            raise ValidationError("give tuples of (id, vector, metadata), or lists of each, not both.")
        for at, row in enumerate(vectors):
            if not isinstance(row, tuple) or not 2 <= len(row) <= 4:
                raise ValidationError(f"document {at} is (id, vector[, metadata[, content]]), got {shown(row)}.")
        ids = [row[0] for row in vectors]
        metadatas = [row[2] if len(row) > 2 else None for row in vectors]
        contents = [row[3] if len(row) > 3 else None for row in vectors]
        vectors = [row[1] for row in vectors]
    given = {"metadatas": metadatas, "ids": ids, "contents": contents}
    each: dict[str, list[Any]] = {
        name: list(several(name, values)) for name, values in given.items() if values is not None
    }
    packed = None if vectors is None else pack_vectors(vectors)
    sizes = {name: len(values) for name, values in each.items()}
    if packed is not None:
        sizes["vectors"] = packed.vectors
    if len(set(sizes.values())) > 1:
        raise ValidationError(
            "a batch has one of each for every document, got "
            + ", ".join(f"{size} {name}" for name, size in sizes.items())
            + "."
        )
    count = next(iter(sizes.values()), 0)
    nothing = [None] * count
    chosen = [uuid.uuid4().hex if id is None else check_id(id) for id in each.get("ids", nothing)]
    if len(set(chosen)) != count:
        twice = Counter(chosen).most_common(1)[0][0]
        raise ValidationError(f"the id {shown(twice)} comes twice in the batch.")
    fields = [given_metadata(metadata) for metadata in each.get("metadatas", nothing)]
    texts = [
        _content(config, content, metadata)
        for content, metadata in zip(each.get("contents", nothing), fields, strict=True)
    ]
    return _put(chosen, packed, fields, texts)


def _is_document(row: object) -> bool:
    """Whether it is a tuple that begins with an id, and no vector."""
    return isinstance(row, tuple) and (not row or row[0] is None or isinstance(row[0], str))


def _named_vectors(vectors: object, what: str) -> tuple[list[str], PackedVectors]:
    if not isinstance(vectors, Mapping) or not vectors:
        raise ValidationError(f"{what} are a mapping of vectors by name, got {shown(vectors)}.")
    for name in vectors:
        if not isinstance(name, str) or not name:
            raise ValidationError(f"a vector is named with text, got {shown(name)}.")
        text("the name of a vector", name)
    return list(vectors), pack_vectors(list(vectors.values()), what)


def multi_arguments(
    config: CollectionConfig,
    id: str,
    vectors: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
    content: str | None,
) -> dict[str, Any]:
    """The arguments of ``document_put_multi``."""
    names, packed = _named_vectors(vectors, "vectors")
    fields = given_metadata(metadata)
    return {
        "id": check_id(id),
        "names": names,
        "vectors": packed.data,
        "dimension": packed.dimension,
        "metadata": fields,
        "content": _content(config, content, fields),
    }


_SEARCH_DEFAULTS = tuple(
    (each.name, each.default) for each in dataclass_fields(SearchRequest) if each.name not in ("vector", "k", "filter")
)


def checked(request: SearchRequest) -> SearchRequest:
    """A request that somebody else made: its fields may have been set since."""
    if not isinstance(request, SearchRequest):
        raise ValidationError(f"search takes a SearchRequest, got {shown(request)}.")
    request.__post_init__()
    return request


def search_arguments(request: SearchRequest) -> dict[str, Any]:
    """The arguments of ``search``."""
    arguments: dict[str, Any] = {"k": request.k}
    if request.vector is not None:
        arguments["vector"] = pack_vector(request.vector, "the query vector").data
    # Most are as they are by default, which need not be said.
    for name, default in _SEARCH_DEFAULTS:
        value = getattr(request, name)
        if value != default:
            arguments[name] = value
    if request.filter is not None:
        arguments["filter"] = given_filter(request.filter)
    return arguments


def multi_search_arguments(
    config: CollectionConfig,
    query_vectors: Mapping[str, Any],
    k: int,
    aggregation: Aggregation | str,
    weights: Mapping[str, float] | None,
    filter: Mapping[str, Any] | None,
    ef_search: int | None,
) -> dict[str, Any]:
    """The arguments of ``search_multi``."""
    names, packed = _named_vectors(query_vectors, "query_vectors")
    try:
        how = Aggregation(str(aggregation))
    except ValueError:
        raise ValidationError(
            f"the aggregation {shown(aggregation)} is unknown; known: {', '.join(Aggregation)}."
        ) from None
    if weights is not None:
        if how is not Aggregation.WEIGHTED_SUM:
            raise ValidationError("weights go with the aggregation weighted_sum.")
        if not isinstance(weights, Mapping):
            raise ValidationError(f"weights are a mapping of numbers by name, got {shown(weights)}.")
        weights = {name: plain_number(weight) for name, weight in weights.items()}
        for name, weight in weights.items():
            if name not in names or not is_number(weight) or not 0 <= weight <= _MOST_WEIGHT:
                raise ValidationError(
                    f"weights are numbers of 0 to {_MOST_WEIGHT:g} by the names asked for, "
                    f"got {shown(name)}: {shown(weight)}."
                )
    checked = SearchRequest([0.0], k=k, ef_search=ef_search)
    return {
        "names": names,
        "vectors": packed.data,
        "dimension": packed.dimension,
        "k": checked.k,
        "aggregation": str(how),
        "weights": None if weights is None else {name: float(weight) for name, weight in weights.items()},
        "filter": given_filter(filter),
        "ef_search": checked.ef_search,
    }


class IdPages:
    """The pages of documents that are asked for by their ids.

    Attributes:
        found: Those of the pages so far.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = check_ids(ids)
        self.found: list[Document | None] = []
        self._asked = False

    def next_arguments(self) -> dict[str, Any] | None:
        """The arguments for the next page, None when there is none."""
        at = len(self.found)
        if self._asked and at >= len(self._ids):
            return None
        self._asked = True  # also when no id is given: whether there is such a collection is told
        return {"ids": self._ids[at : at + _PAGE]}

    def add(self, rows: list[Any]) -> None:
        """Take a page, which may be shorter than asked, for its size."""
        self.found += [document_of(row) for row in rows]


class DocumentPages:
    """The pages of an iteration over documents."""

    def __init__(self, filter: Mapping[str, Any] | None, after: str | None, limit: int | None) -> None:
        self._filter = given_filter(filter)
        self._after = None if after is None else check_id(after)
        self._left = None if limit is None else whole_number("limit", limit)
        self._over = self._left == 0

    def next_arguments(self) -> dict[str, Any] | None:
        """The arguments for the next page, None when there is none."""
        if self._over:
            return None
        limit = _PAGE if self._left is None else min(self._left, _PAGE)
        return {"after": self._after, "limit": limit, "filter": self._filter}

    def documents(self, rows: list[Any]) -> list[Document]:
        """The documents of a page."""
        found = [document for row in rows if (document := document_of(row)) is not None]
        if self._left is not None:
            self._left -= len(found)
        # A page may be shorter than asked, for its size; only an empty one is the last.
        if not found or self._left == 0:
            self._over = True
        else:
            self._after = found[-1].id
        return found


def document_of(row: list[Any] | None) -> Document | None:
    """A document as it was answered."""
    if row is None:
        return None
    id, metadata, content, vector, names, vectors = row
    named: dict[str, list[float]] = {}
    if names:
        size = len(vectors) // len(names)
        named = {name: unpack_vector(vectors[at * size : (at + 1) * size]) for at, name in enumerate(names)}
    return Document(id, metadata, content, None if vector is None else unpack_vector(vector), named)


def results_of(rows: list[list[Any]]) -> list[SearchResult]:
    """Results as they were answered."""
    return [
        SearchResult(id, score, metadata, content, None if vector is None else unpack_vector(vector), distance)
        for id, score, metadata, content, vector, distance in rows
    ]
