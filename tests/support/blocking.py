"""The async client driven from plain code, so that one test body serves both clients."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any

import uvloop

from toondb_client.aio import AsyncIpcClient, AsyncTransaction
from toondb_client.aio_collections import AsyncCollection, AsyncNamespace
from toondb_client.pipeline import AsyncPipeline
from toondb_protocol.query_builder import AsyncQueryBuilder

__all__ = ["LOOPS", "Blocking", "blocking_client", "make_runner"]

LOOPS = ("uvloop", "asyncio", "debug")


def make_runner(kind: str, errors: list[dict[str, Any]]) -> asyncio.Runner:
    """A runner of one of :data:`LOOPS`; what its loop reports as unhandled is added to ``errors``."""
    factory: Callable[[], asyncio.AbstractEventLoop] = (
        uvloop.new_event_loop if kind == "uvloop" else asyncio.new_event_loop
    )
    runner = asyncio.Runner(loop_factory=factory, debug=kind == "debug")
    runner.get_loop().set_exception_handler(lambda _, context: errors.append(context))
    return runner


_ASYNC = (AsyncIpcClient, AsyncTransaction, AsyncPipeline, AsyncQueryBuilder, AsyncNamespace, AsyncCollection)


class Blocking:
    """Everything of an async object, awaited at once."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target, self._runner = target, runner

    @property
    def unwrapped(self) -> Any:
        """The async object itself."""
        return self._target

    def __getattr__(self, name: str) -> Any:
        return self._plain(getattr(self._target, name))

    def _plain(self, value: Any) -> Any:
        if isinstance(value, _ASYNC):
            return self if value is self._target else Blocking(value, self._runner)
        if inspect.isawaitable(value):
            return self._plain(self._await(value))
        if isinstance(value, AsyncIterator):
            return self._iterate(value)
        if callable(value):
            return lambda *args, **kwargs: self._plain(value(*map(_bare, args), **kwargs))
        return value

    def _await(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return self._runner.run(wait())

    def _iterate(self, items: Any) -> Iterator[Any]:
        loop = self._runner.get_loop()
        try:
            while True:
                try:
                    yield self._await(anext(items))
                except StopAsyncIteration:
                    return
        finally:
            if not loop.is_closed():  # closing it closed them
                self._await(items.aclose())

    def run_transaction(self, function: Callable[[Any], Any], **kwargs: Any) -> Any:
        """The one method that takes a coroutine function."""

        async def call(transaction: AsyncTransaction) -> Any:
            # The plain function cannot wait inside this loop: it runs in a thread that sends its calls here.
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, function, _FromThread(transaction, loop))

        return self._await(self._target.run_transaction(call, **kwargs))

    def __len__(self) -> int:
        if isinstance(self._target, AsyncCollection):
            return int(self.count())
        return len(self._target)

    def __str__(self) -> str:
        if isinstance(self._target, AsyncQueryBuilder):
            return str(self.execute())
        return str(self._target)

    def __enter__(self) -> Blocking:
        self._await(self._target.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        return self._await(self._target.__aexit__(kind, error, trace))


def _bare(value: Any) -> Any:
    return value.unwrapped if isinstance(value, Blocking) else value


class _FromThread:
    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target, self._loop = target, loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not inspect.iscoroutinefunction(value):
            return value
        return lambda *args, **kwargs: asyncio.run_coroutine_threadsafe(value(*args, **kwargs), self._loop).result(30)


def blocking_client(runner: asyncio.Runner, target: Any, **options: Any) -> Blocking:
    """An async client, connected and wrapped."""
    return Blocking(runner.run(AsyncIpcClient.connect(target, **options)), runner)
