"""One engine in many threads, and in a process that forks."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.daemon import SECONDS, child_environ
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, Isolation, SyncMode
from toondb_protocol.errors import DatabaseError, TransactionConflictError


def run(code: str, *args: object) -> str:
    """Run ``code`` in a fresh process; it must end well and within the bound."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", code, *map(str, args)],
        env=child_environ(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_many_threads(tmp_path: Path) -> None:
    """Counters by transactions, puts, gets and scans, side by side: nothing is lost and every sum holds."""
    with Engine(tmp_path / "db", EngineOptions(sync_mode=SyncMode.OFF)) as engine:
        engine.write([(b"acc%d" % n, b"100") for n in range(4)])
        failures: list[BaseException] = []

        def guarded(name: int) -> None:
            try:
                (transfer if name % 2 else audit)(name)
            except BaseException as error:
                failures.append(error)

        def transfer(name: int) -> None:
            for n in range(40):
                source, target = b"acc%d" % (n % 4), b"acc%d" % ((n + name) % 4)
                while True:
                    txn = engine.begin(Isolation.SERIALIZABLE if n % 2 else Isolation.SNAPSHOT)
                    a, b = int(txn.get(source) or b""), int(txn.get(target) or b"")
                    if source != target:
                        txn.put(source, b"%d" % (a - 1))
                        txn.put(target, b"%d" % (b + 1))
                    old = int(txn.get(b"count") or b"0")
                    txn.put(b"count", b"%d" % (old + 1))
                    try:
                        lsn = engine.commit(txn)
                    except TransactionConflictError:
                        continue
                    with engine.environment.lmdb.begin() as view:
                        assert int.from_bytes(view.get(b"lsn", db=engine.environment.meta), "little") >= lsn
                    break

        def audit(name: int) -> None:
            reader = engine.reader()
            for n in range(40):
                rows = engine.scan(b"acc", b"acd").batch(99, 9999)
                assert sum(map(int, rows[1::2])) == 400
                key = b"own%d" % name
                engine.put(key, b"%d" % n)
                raw = reader.get(key)
                assert raw is not None
                assert raw[13:] == b"%d" % n == engine.get(key)
            reader.release()

        threads = [threading.Thread(target=guarded, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert failures == []
        assert engine.get(b"count") == b"160"
        assert engine.active_transactions == 0


CLOSE_UNDER_LOAD = """
import sys, threading
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions, Isolation
from toondb_protocol.errors import DatabaseClosedError, TransactionError

def work(engine, ready, failures, n):
    reader = engine.reader()
    ready.wait()
    try:
        while True:
            try:
                if n == 0:
                    engine.get(b"5")
                elif n == 1:
                    reader.get(b"5")
                elif n == 2:
                    txn = engine.begin(Isolation.SERIALIZABLE)
                    txn.scan().batch(20, 1 << 20)
                    txn.put(b"a", b"1")
                    engine.commit(txn)
                elif n == 3:
                    scan = engine.scan()
                    while not scan.exhausted:
                        scan.batch(7, 1 << 20)
                elif n == 4:
                    engine.stats()
                else:
                    engine.expire()
                    engine.put(b"b", b"2")
            except TransactionError:
                pass
    except DatabaseClosedError:
        pass
    except BaseException as error:
        failures.append(repr(error))

for turn in range(15):
    engine = Engine(sys.argv[1], EngineOptions(sync_mode="off"))
    engine.write([(b"%d" % n, bytes(3000)) for n in range(100)])
    failures = []
    ready = threading.Barrier(7)
    threads = [threading.Thread(target=work, args=(engine, ready, failures, n)) for n in range(6)]
    for thread in threads:
        thread.start()
    ready.wait()
    for n in range(turn):
        engine.put(b"c", b"3")
    closers = [threading.Thread(target=engine.close) for _ in range(2)]
    for thread in closers + threads:
        if thread in closers:
            thread.start()
    for thread in closers + threads:
        thread.join()
    assert failures == [], failures
print("closed")
"""


def test_closing_under_load_neither_crashes_nor_hangs(tmp_path: Path) -> None:
    assert run(CLOSE_UNDER_LOAD, tmp_path / "db") == "closed\n"


FORK = """
import gc, os, sys
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions
from toondb_protocol.errors import ForkedProcessError

engine = Engine(sys.argv[1], EngineOptions(sync_mode="off"))
engine.write([(b"%03d" % n, b"old" * 100) for n in range(200)])
snapshot, scan, txn, reader = engine.snapshot(), engine.scan(), engine.begin(), engine.reader()
txn.put(b"mine", b"1")
reader.get(b"000")
scan.batch(1, 1)
child = os.fork()
if child == 0:
    uses = [
        lambda: engine.get(b"000"), lambda: engine.put(b"a", b""), engine.begin, engine.snapshot, engine.stats,
        lambda: engine.commit(txn), engine.checkpoint, lambda: snapshot.get(b"000"), lambda: scan.batch(1, 1),
        lambda: txn.get(b"mine"), lambda: txn.put(b"a", b""), txn.scan, lambda: reader.get(b"000"), engine.scan,
    ]
    code = 0
    for at, use in enumerate(uses):
        try:
            use()
            code = at + 1
        except ForkedProcessError:
            pass
    # What a child does to its copies must not reach the parent's reader table.
    reader.release(); scan.close(); snapshot.close(); engine.close()
    del engine, snapshot, scan, txn, reader, use, uses
    gc.collect()
    if sys.argv[2] == "exit":
        sys.exit(code)
    os._exit(code)
_, status = os.waitpid(child, 0)
assert status == 0, status
for n in range(50):
    engine.write([(b"%03d" % k, b"new%d" % n * 100) for k in range(200)])
assert {snapshot.get(b"%03d" % k) for k in range(200)} == {b"old" * 100}, "the parent's snapshot was recycled"
assert engine.stats()["storage_used_bytes"] > 2_000_000, "nothing was pinned"
engine.commit(txn)
assert reader.get(b"000")[13:] == b"new49" * 100
engine.close()
print("fine")
"""


def test_a_child_may_not_use_it_and_does_not_harm_it(tmp_path: Path) -> None:
    for how in ("exit", "_exit"):
        assert run(FORK, tmp_path / how, how) == "fine\n"


def test_too_many_open_snapshots_leave_room_for_point_reads(tmp_path: Path) -> None:
    with Engine(tmp_path / "db", EngineOptions(max_readers=16)) as engine:
        engine.put(b"k", b"v")
        transactions = [engine.begin() for _ in range(14)]
        with pytest.raises(DatabaseError, match="14 transactions and snapshots are open"):
            engine.begin()
        with pytest.raises(DatabaseError, match="open at once"):
            engine.snapshot()
        assert engine.get(b"k") == b"v"
        engine.abort(transactions.pop())
        engine.abort(engine.begin())
        for transaction in transactions:
            engine.abort(transaction)


INTERRUPTED = """
import random, signal, sys, time
from toondb.engine.engine import Engine
from toondb.engine.options import EngineOptions

def interrupt(*_):
    raise KeyboardInterrupt

# One that hits a callback of the garbage collector is dropped by Python, which says so; that is no defect of ours.
sys.unraisablehook = lambda got: got.exc_type is KeyboardInterrupt or sys.__unraisablehook__(got)
signal.signal(signal.SIGALRM, interrupt)
chance = random.Random(5)
engine = Engine(sys.argv[1], EngineOptions(sync_mode="off"))
reader = engine.reader()
interrupted = n = 0
while interrupted < 150:
    n += 1
    key = b"k%d" % n
    try:
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 2e-4))
        if n % 3 == 0:
            engine.put(key, b"1")
        elif n % 3 == 1:
            transaction = engine.begin()
            transaction.put(key, b"1")
            engine.commit(transaction)
        else:
            engine.wait_for_commit(engine.environment.announced_lsn, 2e-4)
        for _ in range(300):
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    # What the writer thread may have been given is done when this is; then every reader agrees.
    engine.put(b"after", b"%d" % n)
    assert reader.get(b"after")[13:] == b"%d" % n
    raw = reader.get(key)
    assert (None if raw is None else raw[13:]) == engine.get(key)
    assert engine.environment.announced_lsn == engine.checkpoint()
reader.release()
engine.close()
print("fine")
"""


def test_interrupted_anywhere(tmp_path: Path) -> None:
    """Ctrl-C at any moment: nobody waits for ever after it, and no reader goes on with an older view."""
    assert run(INTERRUPTED, tmp_path / "db") == "fine\n"
