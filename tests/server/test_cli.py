"""The command line with real daemons: options, starting, status, stop, stats."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest

from tests.support.daemon import SECONDS, Daemon, DaemonError, child_environ, run_server, server_command
from toondb.engine.engine import Engine
from toondb_client import IpcClient
from toondb_protocol.errors import (
    HistoryTrimmedError,
    PeerNotAllowedError,
    SqlError,
    SqlInterruptedError,
    TooManyClientsError,
    TransactionExpiredError,
    TransactionTooLargeError,
)
from toondb_protocol.hello import ServerHello
from toondb_server import cli_admin
from toondb_server.cli import cli
from toondb_server.control import ControlConnection, server_pid
from toondb_server.listener import PeerCredentials

cli_admin.register(cli)  # as main() does

ROOT = Path(__file__).parents[2]
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
COMMANDS = (
    "serve",
    "status",
    "stop",
    "stats",
    "sql",
    "sql-import",
    "sql-export",
    "check",
    "backup",
    "restore",
    "compact",
    "completion",
)


def run_as_nobody(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command as an unprivileged user; what it imports is read before, as root."""
    code = f"""
        import os, sys
        import asyncio, uvloop, toondb_server.cli_admin, toondb_server.daemon, toondb_server.logs
        from toondb_server.cli import main
        os.setgroups([])
        os.setgid({NOBODY})
        os.setuid({NOBODY})
        main()
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env=child_environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def hello_of(path: Path) -> ServerHello:
    with ControlConnection(str(path)) as connection:
        return connection.hello()


# Options


SETTINGS = {
    "max-clients": "3",
    "timeout-ms": "20000",
    "drain-ms": "3000",
    "cache-size": "1m",
    "change-history": "64k",
    "max-transaction-age-ms": "300",
    "log-level": "debug",
    "sync-mode": "normal",
    "map-size": "64MiB",
    "max-frame": "128k",
    "max-transaction-bytes": "2000",
    "socket-mode": "660",
    "socket-group": grp.getgrgid(os.getegid()).gr_name,
    "allow-uid": str(os.geteuid()),
    "loop": "asyncio",
    "statement-timeout-ms": "400",
    "sql-memory": "32MiB",
}


@pytest.fixture(scope="module", params=["option", "environment"])
def configured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with every option that has an effect from outside, given in one of the two ways."""
    db = tmp_path_factory.mktemp("options") / "db"
    path = Path("/tmp") / f"toondb-test-{os.getpid()}-{request.param}.sock"
    if request.param == "option":
        args = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
        running = Daemon(db, *args, "--socket", path, "--foreign-keys", loop=None)
    else:
        env = {f"TOONDB_{name.upper().replace('-', '_')}": value for name, value in SETTINGS.items()}
        env |= {"TOONDB_SOCKET": str(path), "TOONDB_FOREIGN_KEYS": "1"}
        running = Daemon(db, env=env, loop=None)
    with running:
        yield running


def test_change_history(configured: Daemon) -> None:
    with IpcClient.connect(configured.socket) as client:
        lsn = client.checkpoint()
        for _ in range(4):
            with client.pipeline() as pipeline:
                for n in range(200):
                    pipeline.put(f"history/{n % 10}", b"x" * 500)
        with pytest.raises(HistoryTrimmedError):
            list(client.watch(since_lsn=lsn, timeout=0))
        client.delete_path("history", recursive=True)


def test_sql(configured: Daemon) -> None:
    with IpcClient.connect(configured.socket) as client:
        assert client.execute_sql("PRAGMA foreign_keys").tuples == [(1,)]
        forever = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
        with pytest.raises(SqlInterruptedError, match="longer than it may"):
            client.execute_sql(forever)
        with pytest.raises(SqlError, match="more memory than SQL may take"):
            client.execute_sql(
                forever.replace("n) SELECT count(*)", "n LIMIT 900) SELECT count(DISTINCT zeroblob(99999) || x)")
            )
        with pytest.raises(SqlError, match="--max-frame"):
            client.execute_sql("SELECT length(zeroblob(1048577))")
        assert client.execute_sql("SELECT length(zeroblob(1000000))").tuples == [(1_000_000,)]


def test_hello(configured: Daemon) -> None:
    hello = hello_of(configured.socket)
    assert (hello.sync_mode, hello.max_frame, hello.timeout_ms) == ("normal", 128 * 1024, 20_000)
    assert hello.socket == str(configured.socket)


def test_socket(configured: Daemon) -> None:
    found = configured.socket.stat()
    assert found.st_mode & 0o777 == 0o660
    assert found.st_gid == os.getegid()


def test_map_size(configured: Daemon) -> None:
    with ControlConnection(str(configured.socket)) as connection:
        stats = connection.stats()
    assert stats["storage_map_bytes"] == 64 << 20
    assert stats["max_clients"] == 3


def test_max_clients(configured: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(ControlConnection(str(configured.socket))).hello()
        with ControlConnection(str(configured.socket)) as fourth, pytest.raises(TooManyClientsError):
            fourth.hello()


def test_log_level_and_loop(configured: Daemon) -> None:
    hello_of(configured.socket)
    lines = [json.loads(line) for line in configured.log.splitlines()]
    ready = next(line for line in lines if line["event"] == "ready")
    assert ready["loop"] == "asyncio"
    assert any(line["event"] == "connected" for line in lines)


def test_transaction_limits(configured: Daemon) -> None:
    with IpcClient.connect(str(configured.socket)) as client:
        with pytest.raises(TransactionTooLargeError), client.transaction() as transaction:
            for number in range(10):
                transaction.put(b"%d" % number, bytes(1000))
        with pytest.raises(TransactionExpiredError), client.transaction() as transaction:
            while True:  # it is kept in use, so only its age can end it
                transaction.get(b"key")


def test_every_option_of_serve_is_tested() -> None:
    serve = cli.commands["serve"]
    known = {opt.removeprefix("--") for param in serve.params for opt in param.opts if opt.startswith("--")}
    assert known == {*SETTINGS, "db", "socket", "foreign-keys"}
    for param in serve.params:
        option = max(param.opts, key=len)
        assert isinstance(param, click.Option)
        assert param.envvar == "TOONDB_" + option.removeprefix("--").upper().replace("-", "_")


def test_other_users_can_be_kept_out(tmp_db: Path) -> None:
    with Daemon(tmp_db, "--allow-uid", "nobody") as daemon:
        with ControlConnection(str(daemon.socket)) as connection, pytest.raises(PeerNotAllowedError):
            connection.hello()
        # It runs all the same.
        result = run_server("status", "--db", tmp_db)
        assert result.returncode == 0
        assert result.stdout.splitlines()[0] == f"[Server] Running (PID: {daemon.pid})"
        assert "may not use this server" in result.stderr


BAD_VALUES = [
    ("--max-clients", "0", "x>=1"),
    ("--max-clients", "many", "not a valid integer"),
    ("--timeout-ms", "-1", "x>=1"),
    ("--max-transaction-age-ms", "-1", "x>=0"),
    ("--log-level", "loud", "'trace', 'debug', 'info', 'warn', 'error'"),
    ("--sync-mode", "fast", "'full', 'normal', 'off'"),
    ("--map-size", "big", "write for example 1048576, 64MiB or 2GiB"),
    ("--map-size", "1", "it must be 1048576 to"),
    ("--max-frame", "1", "it must be 1024 to 4294967295"),
    ("--max-transaction-bytes", "0", "it must be positive"),
    ("--socket-mode", "rw", "write for example 600 or 660"),
    ("--socket-mode", "7777", "write for example 600 or 660"),
    ("--allow-uid", "no such user", "there is no user 'no such user'"),
    ("--loop", "fast", "'auto', 'uvloop', 'asyncio'"),
    ("--nonsense", "1", "No such option"),
]


@pytest.mark.parametrize(("option", "value", "message"), BAD_VALUES)
def test_bad_values(tmp_db: Path, option: str, value: str, message: str) -> None:
    result = run_server("--db", tmp_db, option, value)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not tmp_db.exists()


@pytest.mark.parametrize("command", COMMANDS[1:-1])
def test_bad_values_of_other_commands(command: str) -> None:
    result = run_server(command, "--nonsense")
    assert result.returncode == 2
    assert "No such option" in result.stderr


def test_bad_values_from_the_environment(tmp_db: Path) -> None:
    result = run_server("--db", tmp_db, env={"TOONDB_MAX_CLIENTS": "0"})
    assert result.returncode == 2
    assert "TOONDB_MAX_CLIENTS" in result.stderr or "--max-clients" in result.stderr


def test_db_from_the_environment(tmp_db: Path) -> None:
    tmp_db.touch()
    for args in ([], ["check"]):
        result = run_server(*args, env={"TOONDB_DB": str(tmp_db)})
        assert result.returncode == 1
        assert f"the database path {tmp_db} is a file" in result.stderr


def test_help_names_everything() -> None:
    result = run_server("--help")
    assert result.returncode == 0
    for param in cli.commands["serve"].params:
        for name in (*param.opts, param.envvar):
            assert isinstance(name, str)
            assert name in result.stdout
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", result.stdout, re.MULTILINE)
        assert run_server(command, "--help").returncode == 0


def test_documented_options_exist() -> None:
    """Every option on a line of the documentation that calls toondb-server."""
    known = {
        name: {opt for param in command.params for opt in param.opts} | {"--help", "-h"}
        for name, command in cli.commands.items()
    }
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        for line in page.read_text().splitlines():
            for call in re.findall(r"toondb-server( [^`#|&)]*)", line):
                words = call.split()
                command = words[0] if words and words[0] in known else "serve"
                used = {word.partition("=")[0] for word in words if word.startswith("--")}
                assert used - {"--version"} <= known[command], f"{page.name}: {line}"


def test_version() -> None:
    result = run_server("--version")
    assert result.returncode == 0
    assert re.fullmatch(r"toondb-server, version \d+\.\d+\.\d+\S*\n", result.stdout)


# Starting


def test_two_daemons_on_one_folder(daemon: Daemon) -> None:
    result = run_server("--db", daemon.db)
    assert result.returncode == 1
    assert f"in use by daemon with pid {daemon.pid}" in result.stderr
    assert f"toondb-server stop --db {daemon.db}" in result.stderr
    assert "Traceback" not in result.stderr
    assert hello_of(daemon.socket).pid == daemon.pid


def test_daemon_beside_an_embedded_owner(tmp_db: Path) -> None:
    with Engine(tmp_db):
        result = run_server("--db", tmp_db)
    assert result.returncode == 1
    assert f"in use by embedded with pid {os.getpid()}" in result.stderr


def test_missing_parent(tmp_db: Path) -> None:
    result = run_server("--db", tmp_db / "below")
    assert result.returncode == 1
    assert f"the folder {tmp_db} does not exist" in result.stderr
    assert f"mkdir -p {tmp_db}" in result.stderr


def test_socket_that_is_a_file(tmp_db: Path) -> None:
    precious = tmp_db.parent / "precious"
    precious.write_text("data")
    result = run_server("--db", tmp_db, "--socket", precious)
    assert result.returncode == 1
    assert "is a regular file, not a socket; it was left as it is" in result.stderr
    assert precious.read_text() == "data"


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_unwritable_folder(tmp_db: Path, mode: int) -> None:
    tmp_db.parent.chmod(0o755)
    tmp_db.mkdir(mode)
    for db in (tmp_db, tmp_db / "below"):
        result = run_as_nobody("--db", db)
        assert result.returncode == 1, result.stderr
        assert result.stderr.startswith("Error: ")
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_gracefully(daemon: Daemon, number: signal.Signals) -> None:
    with IpcClient.connect(str(daemon.socket)) as client:
        client.put(b"key", b"value")
        assert daemon.stop(number) == 0
    assert f'"signal": "{number.name}"' in daemon.log
    assert not daemon.socket.exists()
    with Engine(daemon.db) as engine:
        assert engine.get(b"key") == b"value"


def test_a_daemon_that_cannot_start_is_reported_by_the_test_support(tmp_db: Path) -> None:
    tmp_db.touch()
    with pytest.raises(DaemonError, match="is a file"):
        Daemon(tmp_db)


# Status


def test_status(tmp_db: Path) -> None:
    cwd = tmp_db.parent
    with Daemon(tmp_db) as daemon:
        result = run_server("status", "--db", "./db", cwd=cwd)
        assert result.returncode == 0
        assert result.stdout == f"[Server] Running (PID: {daemon.pid})\nSocket: ./db/toondb.sock\nDatabase: {tmp_db}\n"
        assert result.stderr == ""
        result = run_server("status", "--db", "db/", "--json", cwd=cwd)
        body = json.loads(result.stdout)
        assert (result.returncode, body["running"], body["answering"]) == (0, True, True)
        assert (body["pid"], body["socket"], body["database"]) == (daemon.pid, "db/toondb.sock", str(tmp_db))
        by_socket = run_server("status", env={"TOONDB_SOCKET": str(daemon.socket)}, cwd=cwd)
        assert by_socket.stdout.splitlines()[1:] == [f"Socket: {daemon.socket}", f"Database: {tmp_db}"]
    result = run_server("status", "--db", "./db", cwd=cwd)
    assert (result.returncode, result.stdout) == (3, "[Server] Not running\n")
    result = run_server("status", "--db", "./db", "--json", cwd=cwd)
    assert (result.returncode, json.loads(result.stdout)["running"]) == (3, False)


def test_status_after_a_crash(daemon: Daemon) -> None:
    daemon.kill()
    assert daemon.socket.exists()
    result = run_server("status", "--db", daemon.db)
    assert (result.returncode, result.stdout) == (3, "[Server] Not running\n")
    result = run_server("stop", "--db", daemon.db)
    assert (result.returncode, result.stdout) == (0, "[Server] Not running\n")
    with Daemon(daemon.db) as again:
        assert hello_of(again.socket).pid == again.pid


def test_status_finds_another_socket(tmp_db: Path) -> None:
    path = tmp_db.parent / "other.sock"
    with Daemon(tmp_db, "--socket", path) as daemon:
        result = run_server("status", "--db", tmp_db)
        assert result.stdout.splitlines() == [
            f"[Server] Running (PID: {daemon.pid})",
            f"Socket: {path}",
            f"Database: {tmp_db}",
        ]
        # What is asked for by name is not replaced by a guess.
        assert run_server("status", "--db", tmp_db, "--socket", tmp_db / "toondb.sock").returncode == 3
        assert run_server("stop", "--db", tmp_db).returncode == 0
        assert daemon.wait() == 0


def test_status_does_not_follow_a_stale_hint(tmp_db: Path) -> None:
    """A crashed daemon named a socket that a daemon of another database has now."""
    path = tmp_db.parent / "other.sock"
    with Daemon(tmp_db, "--socket", path) as crashed:
        crashed.kill()
    with Daemon(tmp_db.parent / "db2", "--socket", path):
        assert run_server("status", "--db", tmp_db).returncode == 3


def test_status_of_a_full_server(tmp_db: Path) -> None:
    with Daemon(tmp_db, "--max-clients", "1") as daemon, ControlConnection(str(daemon.socket)) as only:
        only.hello()
        result = run_server("status", "--db", tmp_db)
        assert result.returncode == 0
        assert result.stdout.splitlines()[0] == f"[Server] Running (PID: {daemon.pid})"
        assert "already serves 1 clients" in result.stderr
        result = run_server("stop", "--db", tmp_db)
        assert result.returncode == 1
        assert "takes no connection" in result.stderr
        assert daemon.running


def test_status_of_something_that_does_not_answer(tmp_db: Path) -> None:
    tmp_db.mkdir()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_db / "toondb.sock"))
        mute.listen(0)
        result = run_server("status", "--db", tmp_db, "--timeout", "0.2")
        assert result.returncode == 4
        assert result.stdout.splitlines()[0] == f"[Server] Not answering (PID: {os.getpid()})"
        assert "does not answer within 0.2 s" in result.stderr
        # The connection from before was never accepted, so the backlog is full now.
        result = run_server("status", "--db", tmp_db, "--timeout", "0.2", "--json")
        assert result.returncode == 4
        assert json.loads(result.stdout)["answering"] is False
        result = run_server("stop", "--db", tmp_db, "--timeout", "0.2")
        assert result.returncode == 1
        assert "does not accept connections within 0.2 s" in result.stderr


def test_status_of_something_else(tmp_db: Path) -> None:
    tmp_db.mkdir()
    code = """
        import socket, sys
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(sys.argv[1])
            sock.listen()
            print("ready", flush=True)
            connection, _ = sock.accept()
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\\r\\n\\r\\n" * 10)
            connection.close()
    """
    path = tmp_db / "toondb.sock"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        result = run_server("status", "--db", tmp_db)
        child.kill()
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


@needs_root
def test_status_without_permission(tmp_db: Path) -> None:
    tmp_db.parent.chmod(0o755)
    with Daemon(tmp_db, "--socket", tmp_db.parent / "s"):
        result = run_as_nobody("status", "--socket", tmp_db.parent / "s")
    assert result.returncode == 1
    assert f"uid {NOBODY} may not connect" in result.stderr


def test_socket_path_that_is_too_long(tmp_path: Path) -> None:
    result = run_server("status", "--socket", tmp_path / ("x" * 200))
    assert result.returncode == 1
    assert "is too long" in result.stderr


# Stop


def test_stop(daemon: Daemon) -> None:
    with IpcClient.connect(str(daemon.socket)) as client:
        client.put(b"key", b"value")
        result = run_server("stop", "--db", daemon.db)
        assert (result.returncode, result.stdout) == (0, f"[Server] Stopped (PID: {daemon.pid})\n")
    assert daemon.wait() == 0
    result = run_server("stop", "--db", daemon.db)
    assert (result.returncode, result.stdout) == (0, "[Server] Not running\n")


@needs_root
def test_stop_without_permission(tmp_db: Path) -> None:
    tmp_db.parent.chmod(0o755)
    path = tmp_db.parent / "s"
    with Daemon(tmp_db, "--socket", path, "--socket-mode", "666") as daemon:
        result = run_as_nobody("stop", "--socket", path)
        assert result.returncode == 1
        assert f"uid {NOBODY} may not stop the server with pid {daemon.pid}" in result.stderr
        assert daemon.running


def test_stop_gives_up_in_time(tmp_db: Path) -> None:
    """A daemon that answers but does not end: played by a program that ignores SIGTERM."""
    tmp_db.mkdir()
    code = """
        import os, signal, socket, sys
        from toondb_protocol.frames import FrameReader, encode_frame
        from toondb_protocol.layout import encode_map
        from toondb_protocol.opcodes import PROTOCOL_VERSION, Reply
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hello = encode_map({"version": PROTOCOL_VERSION, "pid": os.getpid()})
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(sys.argv[1])
            sock.listen()
            print("ready", flush=True)
            connection, _ = sock.accept()
            reader = FrameReader()
            while data := connection.recv(1000):
                for _ in reader.feed(data):
                    connection.sendall(encode_frame(Reply.PONG, hello))
            connection.close()
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_db / "toondb.sock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        result = run_server("stop", "--db", tmp_db, "--timeout", "0.2")
        child.kill()
    assert result.returncode == 1
    assert f"Still stopping (PID: {child.pid}) after 0.2 s" in result.stderr
    assert f"kill -TERM {child.pid}" in result.stderr


def test_the_pid_to_signal(daemon: Daemon) -> None:
    hello = hello_of(daemon.socket)
    own = PeerCredentials(os.getpid(), 0, 0)
    assert server_pid(hello, PeerCredentials(daemon.pid, 0, 0)) == daemon.pid
    assert server_pid(hello, None) == daemon.pid
    # Activated: the service manager listens, here played by this process. It must never be signalled.
    assert server_pid(hello, own) == daemon.pid
    # The hello names a process of this namespace that is no daemon.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        assert server_pid(replace(hello, pid=other.pid), own) is None
        other.communicate()
    assert server_pid(replace(hello, pid=0), own) is None


@needs_root
def test_the_pid_to_signal_across_pid_namespaces(daemon: Daemon) -> None:
    hello = hello_of(daemon.socket)
    command = ["unshare", "--pid", "--fork", "--kill-child", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as outer:
        assert outer.stdin is not None
        assert outer.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            outer.stdin.write(b"started\n")
            outer.stdin.flush()
        if outer.stdout.readline() != b"started\n":
            pytest.skip("this sandbox forbids pid namespaces")
        inner = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        assert server_pid(replace(hello, pid=1), PeerCredentials(inner, 0, 0)) == inner
        outer.communicate()


# Stats


def test_stats(daemon: Daemon) -> None:
    with IpcClient.connect(str(daemon.socket)) as client:
        client.put(b"key", b"value")
    result = run_server("stats", "--db", daemon.db, "--json")
    stats = json.loads(result.stdout)
    assert (result.returncode, stats["pid"], stats["keys_count"]) == (0, daemon.pid, 1)
    result = run_server("stats", "--db", daemon.db)
    table = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert set(table) == set(stats)
    assert (table["keys_count"], table["pid"]) == ("1", str(daemon.pid))


def test_stats_when_not_running(tmp_db: Path) -> None:
    for args in ([], ["--json"], ["--watch", "1"]):
        result = run_server("stats", "--db", tmp_db, *args)
        assert (result.returncode, result.stdout) == (3, "")
        assert f"[Server] Not running\nStart it with: toondb-server --db {tmp_db}\n" in result.stderr


def test_stats_watch_until_interrupted(daemon: Daemon) -> None:
    command = server_command("stats", "--db", daemon.db, "--json", "--watch", "0.1")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environ()
    ) as child:
        assert child.stdout is not None
        first, second = json.loads(child.stdout.readline()), json.loads(child.stdout.readline())
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert second["requests_total"] > first["requests_total"]
    assert second["requests_per_second"] > 0


def test_stats_watch_ends_with_the_server(daemon: Daemon) -> None:
    command = server_command("stats", "--db", daemon.db, "--watch", "0.1")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environ()
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        daemon.stop()
        _, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == 1
    assert errors.startswith("Error: ")


def test_a_closed_pipe_is_no_error(daemon: Daemon) -> None:
    command = server_command("stats", "--db", daemon.db, "--watch", "0.1")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environ()
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        child.stdout.close()
        assert child.stderr is not None
        errors = child.stderr.read()
        child.wait(SECONDS)
    assert errors == ""


def test_output_that_cannot_be_written(daemon: Daemon) -> None:
    with open("/dev/full", "w") as full:
        child = subprocess.run(
            server_command("stats", "--db", daemon.db),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environ(),
            timeout=SECONDS,
            check=False,
        )
    assert child.returncode != 0
    assert "No space left on device" in child.stderr
    assert "Traceback" not in child.stderr


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    result = run_server("completion", shell)
    assert result.returncode == 0
    assert "_TOONDB_SERVER_COMPLETE" in result.stdout
    assert "toondb-server" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("toondb-server ", set(COMMANDS)),
        ("toondb-server st", {"status", "stop", "stats"}),
        ("toondb-server stop --", {"--db", "--socket", "--timeout", "--help"}),
        ("toondb-server --db x --sync-mode ", {"full", "normal", "off"}),
    ],
)
def test_completions(words: str, expected: set[str]) -> None:
    """What the script asks for when the user presses the tabulator."""
    env = {
        "_TOONDB_SERVER_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = run_server(env=env)
    assert result.returncode == 0
    assert {line.partition(",")[2] for line in result.stdout.splitlines()} == expected


def test_unknown_shell() -> None:
    result = run_server("completion", "tcsh")
    assert result.returncode == 2
    assert "'bash', 'zsh', 'fish'" in result.stderr
