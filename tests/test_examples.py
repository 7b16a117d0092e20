"""The examples run as their users run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, child_environ
from toondb import IpcClient, TransactionConflictError

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120.0
SMALL = ("--cities", "300", "--workers", "2", "--moves", "10")


def command(name: str, *args: str) -> list[str]:
    return [sys.executable, "-W", "error", str(ROOT / "examples" / name), *args]


def run(name: str, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(name, *args),
        env=child_environ(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture
def temp() -> Iterator[Path]:
    """A temporary folder for a program, short enough for sockets; it must be empty at the end."""
    folder = Path(tempfile.mkdtemp(prefix="toondb-"))
    yield folder
    left = list(folder.iterdir())
    folder.rmdir() if not left else None
    assert left == []


def processes_that_name(text: str) -> list[str]:
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it has just ended
            if text in line:
                found.append(line)
    return found


def test_workers(daemon: Daemon) -> None:
    done = run("workers.py", str(daemon.socket), "--workers", "3", "--jobs", "60")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("60 jobs counted, 60 results, each job done exactly once\n")


def check_embedded(*target: str) -> None:
    done = run("embedded.py", *target)
    assert (done.returncode, done.stderr) == (0, "")
    assert "40 views of 2 pages" in done.stdout
    assert "report: group-commit: 20, snapshots: 20" in done.stdout
    assert "articles about who waits: group-commit, locks" in done.stdout
    assert done.stdout.endswith("all counted, reported and indexed\n")


def test_embedded(tmp_path: Path) -> None:
    check_embedded()
    for _ in range(2):  # again on what the first run left
        check_embedded(str(tmp_path / "data"))


def test_the_embedded_example_on_a_daemon(daemon: Daemon) -> None:
    check_embedded(str(daemon.socket))


def test_the_job_of_a_worker_that_died_is_done_by_another(daemon: Daemon) -> None:
    from examples import workers

    with IpcClient.connect(daemon.socket) as client:
        client.put("jobs/todo/1", b"7")
        dead, other = b"dead", b"other"
        assert workers.claim(client, dead) == ("1", 7)
        assert workers.claim(client, other) is None
        changes = client.watch("jobs/claim/", timeout=SECONDS)
        assert client.expire("jobs/claim/1", 0.01)
        assert [str(next(changes).kind) for _ in range(2)] == ["put", "expire"]
        assert workers.claim(client, other) == ("1", 7)
        with client.transaction() as late, client.transaction() as txn:
            assert workers.finish(txn, "1", 49)
            assert workers.finish(late, "1", 49)
            txn.commit()
            with pytest.raises(TransactionConflictError):
                late.commit()
        assert not client.run_transaction(lambda txn: workers.finish(txn, "1", 49))
        assert (client.get("jobs/done/1"), client.get("jobs/count")) == (b"49", b"1")


def test_asyncio_client(daemon: Daemon) -> None:
    done = run("asyncio_client.py", str(daemon.socket))
    assert (done.returncode, done.stderr) == (0, "")
    assert "result[2]{title,words}:Snapshots,900;Group commit,1200" in done.stdout


def check_sql(*target: str) -> None:
    done = run("sql.py", *target)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "45 of 60 customers got what they wanted\n"
        "Laptop: 5 sold, 0 left, 4995.00 so far\n"
        "Mouse: 20 sold, 10 left, 5495.00 so far\n"
        "Cable: 20 sold, 0 left, 5585.00 so far\n"
        "light things: Laptop, Mouse\n"
        "as TOON: result[3]{name,stock}:Laptop,0;Mouse,10;Cable,0\n"
        "every order has its invoice, and nothing was sold twice\n"
    )


def test_sql(tmp_path: Path) -> None:
    check_sql()
    for _ in range(2):  # again on what the first run left
        check_sql(str(tmp_path / "data"))


def test_the_sql_example_on_a_daemon(daemon: Daemon) -> None:
    check_sql(str(daemon.socket))


@pytest.mark.parametrize("name", ["workers.py", "asyncio_client.py", "embedded.py", "sql.py"])
def test_an_example_without_a_server_says_so(name: str, tmp_path: Path) -> None:
    done = run(name, str(tmp_path / "none.sock"))
    assert done.returncode == 1
    assert "there is no socket" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo(temp: Path) -> None:
    done = run("demo.py", *SMALL, env={"TMPDIR": str(temp)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok: 300 cities, byte for byte as in the data set" in done.stdout
    assert "ok: 20 acknowledged moves" in done.stdout
    assert "No damage found." in done.stdout
    assert "LOST" not in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_demo_leaves_nothing_behind(temp: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        command("demo.py", *SMALL),
        env=child_environ({"TMPDIR": str(temp)}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("2. Load"):
                break
        # As the terminal does: to the whole foreground process group.
        os.killpg(demo.pid, number)
        rest = demo.stdout.read()
        assert demo.wait(SECONDS) == 130, rest
    assert rest.endswith("Interrupted; nothing is left behind.\n")
    assert processes_that_name(str(temp)) == []


def test_a_demo_whose_reader_goes_away_leaves_nothing_behind(temp: Path) -> None:
    with subprocess.Popen(
        command("demo.py", *SMALL),
        env=child_environ({"TMPDIR": str(temp)}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.stderr.read() == ""
        assert demo.wait(SECONDS) == 141
    assert processes_that_name(str(temp)) == []
