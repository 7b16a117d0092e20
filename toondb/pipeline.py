"""Pipelines of an embedded database: many requests at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from toondb.engine.conditional import Conditional, Increment, PutFor
from toondb_protocol.arguments import integer, ttl_to_ms
from toondb_protocol.errors import ToonDBError
from toondb_protocol.keys import BytesLike, KeyLike, as_key, as_value
from toondb_protocol.paths import path_key
from toondb_protocol.store import Store

__all__ = ["Pipeline", "PipelineWrite"]

PipelineWrite: TypeAlias = tuple[bytes, bytes | None] | Conditional
"""A write as the engine takes it; value None = a delete."""


class Pipeline:
    """Requests that are gathered and executed together, in order. This is no transaction.

    Consecutive writes share one sync of the device. As a context manager it executes what was gathered when the
    block ends without an exception.

    Args:
        store: Where reads and other requests go.
        write: Applies writes; answers one result for each, errors among them.
    """

    def __init__(self, store: Store, write: Callable[[list[PipelineWrite]], Sequence[object]]) -> None:
        self._store = store
        self._write = write
        self._requests: list[PipelineWrite | Callable[[], Any]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def _add(self, request: PipelineWrite | Callable[[], Any]) -> Pipeline:
        self._requests.append(request)
        return self

    def get(self, key: KeyLike) -> Pipeline:
        """Read a key; its result is the value or None."""
        name = as_key(key)
        return self._add(lambda: self._store.get(name))

    def put(self, key: KeyLike, value: BytesLike, *, ttl: float | None = None) -> Pipeline:
        """Store a value, for ``ttl`` seconds or for ever; its result is None."""
        name, content = as_key(key), as_value(value)
        return self._add((name, content) if ttl is None else PutFor(name, content, ttl_to_ms(ttl)))

    def delete(self, key: KeyLike) -> Pipeline:
        """Delete a key; its result is None."""
        return self._add((as_key(key), None))

    def exists(self, key: KeyLike) -> Pipeline:
        """Ask for a key; its result is a bool."""
        name = as_key(key)
        return self._add(lambda: self._store.exists(name))

    def increment(self, key: KeyLike, by: int = 1) -> Pipeline:
        """Add to a counter; its result is the new number."""
        return self._add(Increment(as_key(key), integer("by", by)))

    def get_path(self, path: str | Sequence[str]) -> Pipeline:
        """Read a path."""
        return self.get(path_key(path))

    def put_path(self, path: str | Sequence[str], value: BytesLike, *, ttl: float | None = None) -> Pipeline:
        """Store a value under a path."""
        return self.put(path_key(path), value, ttl=ttl)

    def delete_path(self, path: str | Sequence[str]) -> Pipeline:
        """Delete a path."""
        return self.delete(path_key(path))

    def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        """Do everything and answer the results in order; the pipeline is then empty.

        Args:
            raise_on_error: Raise the first error after all requests were done; False puts the errors into the list
                instead.
        """
        requests, self._requests = self._requests, []
        results: list[Any] = []
        writes: list[PipelineWrite] = []
        for request in requests:
            if isinstance(request, (tuple, Conditional)):
                writes.append(request)
                continue
            results += self._written(writes)
            writes = []
            try:
                results.append(request())
            except ToonDBError as error:
                results.append(error)
        results += self._written(writes)
        if raise_on_error:
            for result in results:
                if isinstance(result, ToonDBError):
                    raise result
        return results

    def _written(self, writes: list[PipelineWrite]) -> list[Any]:
        if not writes:
            return []
        return [
            result if isinstance(result, ToonDBError) else write.result if isinstance(write, Increment) else None
            for write, result in zip(writes, self._write(writes), strict=True)
        ]

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        if exc_type is None:
            self.execute()
