"""The asyncio client: many tasks, one client, the same methods with ``await``.

Start a daemon, then give its socket::

    toondb-server --db ./data
    python examples/asyncio_client.py ./data/toondb.sock
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from toondb import AsyncIpcClient, ToonDBError
from toondb_client import AsyncTransaction

_TASKS = 20


async def visit(client: AsyncIpcClient, page: str) -> None:
    """Count one visit of a page, together with the sum of all visits."""

    async def count(txn: AsyncTransaction) -> None:
        for key in (f"visits/{page}", "visits-in-all"):
            await txn.put(key, b"%d" % (int(await txn.get(key) or 0) + 1))

    await client.run_transaction(count, attempts=1000)


async def run(socket: str) -> bool:
    """Show the client's ways; returns whether the counts came out right."""
    async with await AsyncIpcClient.connect(socket) as client:
        print(f"connected to {client.server.software}, round trip {await client.ping() * 1e6:.0f} us")

        await client.delete_path("visits", recursive=True)
        await client.delete("visits-in-all")
        await asyncio.gather(*(visit(client, f"page-{number % 4}") for number in range(_TASKS)))
        visits = {key.decode(): int(value) async for key, value in client.scan("visits/")}
        print("visits:", visits)

        async with client.transaction() as txn:
            await txn.put("articles/1", json.dumps({"title": "Snapshots", "words": 900}).encode())
            await txn.put("articles/2", json.dumps({"title": "Group commit", "words": 1200}).encode())
        print("as TOON:", await client.query("articles/").execute())

        pipeline = client.pipeline()
        for number in (1, 2, 3):
            pipeline.exists(f"articles/{number}")
        print("articles 1 to 3 exist:", await pipeline.execute())
        return sum(visits.values()) == int(await client.get("visits-in-all") or 0) == _TASKS


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("socket", help="socket of a running toondb-server")
    options = parser.parse_args()
    try:
        return 0 if asyncio.run(run(options.socket)) else 1
    except ToonDBError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
