"""Pipelines: many requests, one round trip."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from toondb_protocol.arguments import ttl_to_ms
from toondb_protocol.client_core import ReplyFrame
from toondb_protocol.errors import ToonDBError
from toondb_protocol.keys import BytesLike, KeyLike, as_key, as_value
from toondb_protocol.paths import path_key

from . import calls

__all__ = ["AsyncPipeline", "Pipeline"]


class _Commands:
    """The requests gathered so far. Each method answers the pipeline, for chaining."""

    def __init__(self, txn: int) -> None:
        self._txn = txn
        self._frames: list[bytes] = []
        self._decoders: list[Callable[[ReplyFrame], Any]] = []

    def __len__(self) -> int:
        return len(self._frames)

    def _add(self, call: calls.Call) -> Any:
        self._frames.append(call.frame)
        self._decoders.append(call.decode)
        return self

    def get(self, key: KeyLike) -> Any:
        """Read a key; its result is the value or None."""
        self._frames.append(calls.get_frame(self._txn, as_key(key)))
        self._decoders.append(calls.decode_value)
        return self

    def put(self, key: KeyLike, value: BytesLike, *, ttl: float | None = None) -> Any:
        """Store a value, for ``ttl`` seconds or for ever; its result is None."""
        if ttl is not None:
            return self._add(calls.put_for(self._txn, as_key(key), as_value(value), ttl_to_ms(ttl)))
        self._frames.append(calls.put_frame(self._txn, as_key(key), as_value(value)))
        self._decoders.append(calls.decode_ok)
        return self

    def delete(self, key: KeyLike) -> Any:
        """Delete a key; its result is None."""
        return self._add(calls.delete(self._txn, as_key(key)))

    def exists(self, key: KeyLike) -> Any:
        """Ask for a key; its result is a bool."""
        return self._add(calls.exists(self._txn, as_key(key)))

    def get_path(self, path: str | Sequence[str]) -> Any:
        """Read a path."""
        return self.get(path_key(path))

    def put_path(self, path: str | Sequence[str], value: BytesLike, *, ttl: float | None = None) -> Any:
        """Store a value under a path."""
        return self.put(path_key(path), value, ttl=ttl)

    def increment(self, key: KeyLike, by: int = 1) -> Any:
        """Add to a counter; its result is the new number."""
        return self._add(calls.increment(self._txn, as_key(key), by))

    def delete_path(self, path: str | Sequence[str]) -> Any:
        """Delete a path."""
        return self.delete(path_key(path))

    def _take(self) -> tuple[list[bytes], list[Callable[[ReplyFrame], Any]]]:
        frames, decoders = self._frames, self._decoders
        self._frames, self._decoders = [], []
        return frames, decoders


def _results(
    decoders: list[Callable[[ReplyFrame], Any]], replies: list[ReplyFrame], *, raise_on_error: bool
) -> list[Any]:
    results: list[Any] = []
    failure: ToonDBError | None = None
    for decode, reply in zip(decoders, replies, strict=True):
        try:
            results.append(decode(reply))
        except ToonDBError as error:
            failure = failure or error
            results.append(error)
    if failure is not None and raise_on_error:
        raise failure
    return results


class Pipeline(_Commands):
    """Requests of a sync client, sent together. Each is executed on its own, in order: this is no transaction.

    As a context manager it executes what was gathered when the block ends without an exception.
    """

    def __init__(self, txn: int, exchange: Callable[[list[bytes]], list[ReplyFrame]]) -> None:
        super().__init__(txn)
        self._exchange = exchange

    def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        """Send everything and answer the results in order; the pipeline is then empty.

        Args:
            raise_on_error: Raise the first error after all replies were read; False puts the errors into
                the list instead.
        """
        frames, decoders = self._take()
        return _results(decoders, self._exchange(frames), raise_on_error=raise_on_error) if frames else []

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        if exc_type is None:
            self.execute()


class AsyncPipeline(_Commands):
    """Requests of an async client, sent together; see :class:`Pipeline`."""

    def __init__(self, txn: int, exchange: Callable[[list[bytes]], Awaitable[list[ReplyFrame]]]) -> None:
        super().__init__(txn)
        self._exchange = exchange

    async def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        """Send everything and answer the results in order; see :meth:`Pipeline.execute`."""
        frames, decoders = self._take()
        return _results(decoders, await self._exchange(frames), raise_on_error=raise_on_error) if frames else []

    async def __aenter__(self) -> AsyncPipeline:
        return self

    async def __aexit__(self, exc_type: object, *_: object) -> None:
        if exc_type is None:
            await self.execute()
