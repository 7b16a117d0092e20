"""Namespaces and collections of the async clients: the twins of those in ``toondb_protocol.collections``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from toondb_protocol.arguments import Items
from toondb_protocol.collections import (
    DocumentPages,
    IdPages,
    ScanPages,
    batch_arguments,
    check_id,
    check_ids,
    checked,
    config_of,
    creation_arguments,
    creation_of,
    document_of,
    given_filter,
    insert_arguments,
    multi_arguments,
    multi_search_arguments,
    namespace_of,
    put_arguments,
    results_of,
    search_arguments,
)
from toondb_protocol.keys import BytesLike, KeyLike, as_namespace_key
from toondb_protocol.search import (
    Aggregation,
    CollectionConfig,
    Document,
    NamespaceConfig,
    SearchRequest,
    SearchResult,
    check_name,
)

__all__ = ["AsyncCollection", "AsyncHasCollections", "AsyncNamespace"]


class AsyncHasCollections:
    """A store that has namespaces."""

    async def _operate(self, operation: str, arguments: dict[str, Any]) -> Any:
        """Carry out an operation."""
        raise NotImplementedError

    async def create_namespace(
        self,
        namespace: NamespaceConfig | str,
        *,
        display_name: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncNamespace:
        """Create a namespace; see :meth:`HasCollections.create_namespace`."""
        config = namespace_of(namespace, display_name, labels)
        await self._operate("namespace_create", config.to_wire())
        return AsyncNamespace(self, config)

    async def namespace(self, name: str) -> AsyncNamespace:
        """An existing namespace; see :meth:`HasCollections.namespace`."""
        found = await self._operate("namespace_get", {"name": check_name("namespace", name)})
        return AsyncNamespace(self, NamespaceConfig(**found))

    async def list_namespaces(self) -> list[str]:
        """The names of all namespaces, in order."""
        names: list[str] = await self._operate("namespace_list", {})
        return names

    async def delete_namespace(self, name: str) -> bool:
        """Delete a namespace with everything in it; answers whether there was one."""
        return bool(await self._operate("namespace_delete", {"name": check_name("namespace", name)}))

    async def collection(self, namespace: str, name: str) -> AsyncCollection:
        """An existing collection; see :meth:`HasCollections.collection`."""
        return await _collection(self, check_name("namespace", namespace), name)


async def _collection(store: AsyncHasCollections, namespace: str, name: str) -> AsyncCollection:
    found = await store._operate("collection_get", {"namespace": namespace, "name": check_name("collection", name)})
    return AsyncCollection(store, namespace, config_of(found))


class AsyncNamespace:
    """A namespace of a store: its collections, and keys that no other namespace sees. See :class:`Namespace`."""

    def __init__(self, store: AsyncHasCollections, config: NamespaceConfig) -> None:
        self._store = store
        self.config = config
        self.name = config.name

    async def create_collection(self, collection: CollectionConfig | str, **options: Any) -> AsyncCollection:
        """Create a collection; see :meth:`Namespace.create_collection`."""
        config = creation_of(collection, options)
        await self._store._operate("collection_create", creation_arguments(self.name, config))
        return AsyncCollection(self._store, self.name, config)

    async def collection(self, name: str) -> AsyncCollection:
        """An existing collection; see :meth:`Namespace.collection`."""
        return await _collection(self._store, self.name, name)

    get_collection = collection

    async def list_collections(self) -> list[str]:
        """The names of its collections, in order."""
        names: list[str] = await self._store._operate("collection_list", {"namespace": self.name})
        return names

    async def delete_collection(self, name: str) -> bool:
        """Delete a collection with its documents; answers whether there was one."""
        arguments = {"namespace": self.name, "name": check_name("collection", name)}
        return bool(await self._store._operate("collection_delete", arguments))

    # Keys

    async def get(self, key: KeyLike) -> bytes | None:
        """The value of a key of this namespace, None when there is none. Keys are 1 to 500 bytes."""
        values: list[bytes | None] = await self._store._operate(
            "namespace_kv_get", {"namespace": self.name, "keys": [as_namespace_key(key)]}
        )
        return values[0]

    async def put(self, key: KeyLike, value: BytesLike) -> None:
        """Store a value under a key of this namespace."""
        await self.put_many({as_namespace_key(key): value})

    async def put_many(self, items: Items) -> int:
        """Store all pairs atomically; answers how many."""
        arguments, count = put_arguments(self.name, items)
        if count:
            await self._store._operate("namespace_kv_put", arguments)
        return count

    async def delete(self, key: KeyLike) -> None:
        """Delete a key of this namespace; no error when it is absent."""
        await self._store._operate("namespace_kv_delete", {"namespace": self.name, "keys": [as_namespace_key(key)]})

    async def exists(self, key: KeyLike) -> bool:
        """Whether this namespace has a key."""
        return await self.get(key) is not None

    async def scan(
        self,
        start: KeyLike | None = None,
        end: KeyLike | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """The keys and values of this namespace in a range; see :meth:`Namespace.scan`."""
        pages = ScanPages(self.name, start, end, limit, reverse)
        while (arguments := pages.next_arguments()) is not None:
            for row in pages.rows(await self._store._operate("namespace_kv_scan", arguments)):
                yield row

    def __repr__(self) -> str:
        return f"<AsyncNamespace {self.name}>"


class AsyncCollection:
    """A collection of documents, each with a vector (or several, or none), metadata and a text.

    See :class:`Collection`.
    """

    def __init__(self, store: AsyncHasCollections, namespace: str, config: CollectionConfig) -> None:
        self._store = store
        self.namespace = namespace
        self.config = config
        self.name = config.name

    async def _operate(self, operation: str, arguments: dict[str, Any]) -> Any:
        return await self._store._operate(
            operation, {"namespace": self.namespace, "collection": self.name, **arguments}
        )

    # Writes

    async def insert(
        self,
        *arguments: Any,
        vector: Any = None,
        metadata: Mapping[str, Any] | None = None,
        id: str | None = None,
        content: str | None = None,
    ) -> str:
        """Store a document; the same id again replaces it; see :meth:`Collection.insert`."""
        given = insert_arguments(self.config, arguments, vector, metadata, id, content)
        await self._operate("document_put", given)
        return str(given["ids"][0])

    async def upsert(
        self,
        *arguments: Any,
        vector: Any = None,
        metadata: Mapping[str, Any] | None = None,
        id: str | None = None,
        content: str | None = None,
    ) -> str:
        """The same as :meth:`insert`."""
        return await self.insert(*arguments, vector=vector, metadata=metadata, id=id, content=content)

    async def insert_batch(
        self,
        vectors: Any = None,
        metadatas: Sequence[Mapping[str, Any] | None] | None = None,
        ids: Sequence[str | None] | None = None,
        contents: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Store documents, all or none; see :meth:`Collection.insert_batch`."""
        given = batch_arguments(self.config, vectors, metadatas, ids, contents)
        if given["ids"]:
            await self._operate("document_put", given)
        return list(given["ids"])

    async def insert_multi_vector(
        self,
        id: str,
        vectors: Mapping[str, Any],
        metadata: Mapping[str, Any] | None = None,
        content: str | None = None,
    ) -> str:
        """Store a document with several vectors, by name; the same id again replaces it. Answers its id."""
        await self._operate("document_put_multi", multi_arguments(self.config, id, vectors, metadata, content))
        return id

    async def delete(self, id: str) -> bool:
        """Delete a document; answers whether there was one."""
        return bool(await self._operate("document_delete", {"ids": [check_id(id)]}))

    async def delete_batch(self, ids: Iterable[str]) -> int:
        """Delete documents, all or none; answers how many there were."""
        return int(await self._operate("document_delete", {"ids": check_ids(ids)}))

    # Reads

    async def get(self, id: str) -> Document | None:
        """A document, None when there is none of that id."""
        return document_of((await self._operate("document_get", {"ids": [check_id(id)]}))[0])

    async def get_batch(self, ids: Iterable[str]) -> list[Document | None]:
        """Documents in the order of the ids, None where there is none; see :meth:`Collection.get_batch`."""
        pages = IdPages(ids)
        while (arguments := pages.next_arguments()) is not None:
            pages.add(await self._operate("document_get", arguments))
        return pages.found

    async def count(self, filter: Mapping[str, Any] | None = None) -> int:
        """How many documents there are, or meet a filter."""
        return int(await self._operate("document_count", {"filter": given_filter(filter)}))

    async def iterate(
        self, *, filter: Mapping[str, Any] | None = None, after: str | None = None, limit: int | None = None
    ) -> AsyncIterator[Document]:
        """The documents in the order of their ids; see :meth:`Collection.iterate`."""
        pages = DocumentPages(filter, after, limit)
        while (arguments := pages.next_arguments()) is not None:
            for row in pages.documents(await self._operate("document_iterate", arguments)):
                yield row

    # Searches

    async def search(self, request: SearchRequest) -> list[SearchResult]:
        """Search by vector, by words or by both; see :meth:`Collection.search`."""
        return await self._search(checked(request))

    async def _search(self, request: SearchRequest) -> list[SearchResult]:
        return results_of(await self._operate("search", search_arguments(request)))

    async def vector_search(
        self,
        vector: Any,
        k: int = 10,
        filter: Mapping[str, Any] | None = None,
        *,
        ef_search: int | None = None,
        min_score: float | None = None,
    ) -> list[SearchResult]:
        """The documents nearest to a vector."""
        return await self._search(SearchRequest(vector, None, k, filter, ef_search=ef_search, min_score=min_score))

    async def keyword_search(
        self, text_query: str, k: int = 10, filter: Mapping[str, Any] | None = None, *, min_score: float | None = None
    ) -> list[SearchResult]:
        """The documents that fit words best, by BM25."""
        return await self._search(SearchRequest(None, text_query, k, filter, min_score=min_score))

    async def hybrid_search(
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
        return await self._search(
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

    async def multi_vector_search(
        self,
        query_vectors: Mapping[str, Any],
        k: int = 10,
        aggregation: Aggregation | str = Aggregation.MAX_POOLING,
        *,
        weights: Mapping[str, float] | None = None,
        filter: Mapping[str, Any] | None = None,
        ef_search: int | None = None,
    ) -> list[SearchResult]:
        """The best for several query vectors; see :meth:`Collection.multi_vector_search`."""
        return results_of(
            await self._operate(
                "search_multi",
                multi_search_arguments(self.config, query_vectors, k, aggregation, weights, filter, ef_search),
            )
        )

    def __repr__(self) -> str:
        return f"<AsyncCollection {self.namespace}/{self.name}>"
