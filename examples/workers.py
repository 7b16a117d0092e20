"""Job workers in several processes share one queue and one counter, without losing or repeating a job.

Start a daemon, then give its socket::

    toondb-server --db ./data
    python examples/workers.py ./data/toondb.sock --workers 4 --jobs 500

Each job is a key below ``jobs/todo/``. A worker claims one with ``compare_and_set`` and a time to live, works on it
with no transaction open, and ends it in a short transaction: it deletes the key, stores the result and counts. When a
worker dies, its claim expires and another one takes the job. A worker that was only slow finds the job gone, or its
transaction conflicts with that of the other one: so each job counts once, whatever happens.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import uuid
from functools import partial

from toondb import IpcClient, Store, ToonDBError

_CHOICE = 16
_LEASE_SECONDS = 10.0


def claim(client: IpcClient, me: bytes) -> tuple[str, int] | None:
    """Take a job for a while: its name and payload. None when there is none that nobody else has."""
    # In any order of the first jobs: workers that all tried the very first would be in each other's way.
    waiting = list(client.scan("jobs/todo/", limit=_CHOICE))
    random.shuffle(waiting)
    for key, payload in waiting:
        name = key.decode().removeprefix("jobs/todo/")
        if client.compare_and_set(f"jobs/claim/{name}", None, me, ttl=_LEASE_SECONDS):
            return name, int(payload)
    return None


def finish(txn: Store, name: str, result: int) -> bool:
    """End a job inside a transaction; False when another worker did so before."""
    if not txn.exists(f"jobs/todo/{name}"):
        return False
    txn.delete_many([f"jobs/todo/{name}", f"jobs/claim/{name}"])
    txn.put(f"jobs/done/{name}", b"%d" % result)
    txn.increment("jobs/count")
    return True


def work(socket: str) -> None:
    """Do jobs until there are none: the main function of a worker process."""
    done = 0
    me = uuid.uuid4().bytes
    with IpcClient.connect(socket) as client:
        while True:
            position = client.stats()["lsn"]
            job = claim(client, me)
            if job is not None:
                name, payload = job
                result = payload**2  # the work itself, however long it takes
                done += client.run_transaction(partial(finish, name=name, result=result), attempts=1000)
            elif next(client.scan("jobs/todo/", limit=1), None) is None:
                break
            else:
                # All are claimed: one of them ends soon, or its claim does.
                next(client.watch("jobs/claim/", since_lsn=position, timeout=_LEASE_SECONDS), None)
    print(f"worker {os.getpid()} did {done} jobs", flush=True)


def main() -> int:
    """Queue the jobs, run the workers, check the outcome; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("socket", help="socket of a running toondb-server")
    parser.add_argument("--workers", type=int, default=4, metavar="N")
    parser.add_argument("--jobs", type=int, default=500, metavar="N")
    options = parser.parse_args()
    try:
        with IpcClient.connect(options.socket) as client:
            client.delete_path("jobs", recursive=True)
            client.put_many({f"jobs/todo/{number:06d}": b"%d" % number for number in range(options.jobs)})
            context = multiprocessing.get_context("spawn")
            workers = [context.Process(target=work, args=(options.socket,)) for _ in range(options.workers)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            results = {int(key[-6:]): int(value) for key, value in client.scan("jobs/done/")}
            count = int(client.get("jobs/count") or 0)
    except ToonDBError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    right = results == {number: number**2 for number in range(options.jobs)} and count == options.jobs
    print(f"{count} jobs counted, {len(results)} results, {'each job done exactly once' if right else 'WRONG'}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
