"""Job workers in several processes share one queue and one counter, without losing or repeating a job.

Start a daemon, then give its socket::

    toondb-server --db ./data
    python examples/workers.py ./data/toondb.sock --workers 4 --jobs 500

Each job is a key below ``jobs/todo/``. A worker takes one in a transaction: it deletes the key, stores the result and
counts. When two workers take the same job, one of them commits first; the other one's transaction conflicts, and
``run_transaction`` calls its function again, which then finds another job.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys

from toondb import IpcClient, ToonDBError
from toondb_client import Transaction

_CHOICE = 16


def take_job(txn: Transaction) -> bytes | None:
    """Do one job inside a transaction; its name, or None when there is none left."""
    # A random one of the first jobs: workers that all took the very first would conflict all the time.
    waiting = list(txn.scan("jobs/todo/", limit=_CHOICE))
    if not waiting:
        return None
    key, payload = random.choice(waiting)
    name = key.removeprefix(b"jobs/todo/")
    txn.delete(key)
    txn.put(b"jobs/done/" + name, b"%d" % int(payload) ** 2)
    txn.put("jobs/count", b"%d" % (int(txn.get("jobs/count") or 0) + 1))
    return name


def work(socket: str) -> None:
    """Take jobs until there are none: the main function of a worker process."""
    done = 0
    with IpcClient.connect(socket) as client:
        while client.run_transaction(take_job, attempts=1000) is not None:
            done += 1
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
