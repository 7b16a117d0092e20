"""A server in this process, for tests of what cannot be seen from outside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from toondb.engine.engine import Engine
from toondb.engine.options import SyncMode
from toondb.engine.writer import Unit
from toondb_client import AsyncIpcClient
from toondb_server.config import ServerConfig
from toondb_server.logs import configure, get_logger
from toondb_server.server import Server
from toondb_server.session import Session

__all__ = ["Rig", "serving"]


class Rig:
    """A server in this process, whose inline commits are counted."""

    def __init__(self, server: Server, path: str) -> None:
        self.server = server
        self.path = path
        self.inline: list[list[Unit]] = []
        commit = server.engine.commit_now

        def count(units: list[Unit]) -> Any:
            results = commit(units)
            if results is not None:
                self.inline.append(units)
            return results

        server.engine.commit_now = count  # type: ignore[method-assign]

    async def client(self) -> AsyncIpcClient:
        return await AsyncIpcClient.connect(self.path, max_connections=4)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Rig]:
    configure("error")
    config = ServerConfig(database=str(folder / "db"), socket=str(folder / "s"), sync_mode=SyncMode.OFF)
    with Engine(config.database, config.engine_options(), role="daemon") as engine:
        server = Server(engine, config, asyncio.get_running_loop(), get_logger())
        acceptor = await asyncio.get_running_loop().create_unix_server(lambda: Session(server), config.socket)
        try:
            yield Rig(server, config.socket or "")
        finally:
            acceptor.close()
            await server.drain(5)
            server.stop()
