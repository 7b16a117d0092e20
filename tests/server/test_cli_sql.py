"""The commands sql, sql-import and sql-export as processes: without a daemon, through one, and at a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pytest

from tests.support.daemon import SECONDS, Daemon, child_environ, server_command
from toondb import Database, IpcClient
from toondb_server.cli import main
from toondb_server.shell.importing import quoted

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c;"


TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO t VALUES (1, 'a');"


@pytest.fixture(scope="module")
def served() -> Iterator[Path]:
    """A database with a daemon that the tests of this file share."""
    folder = Path(tempfile.mkdtemp(prefix="toondb-")) / "db"
    with Daemon(folder, "--sync-mode", "off"):
        yield folder
    shutil.rmtree(folder.parent)


@pytest.fixture(params=["embedded", "daemon"])
def db(request: pytest.FixtureRequest, tmp_db: Path) -> Iterator[Path]:
    """A database with one table, served by a daemon or not."""
    if request.param == "embedded":
        with Database.open(tmp_db, {"sync_mode": "off"}) as store:
            store.execute_script(TABLE)
        yield tmp_db
        return
    folder: Path = request.getfixturevalue("served")
    with IpcClient.connect(folder) as client:
        client.execute_script(TABLE)
        yield folder
        for kind, name in client.execute_sql("SELECT type, name FROM sqlite_schema WHERE type <> 'index'").tuples:
            client.execute_sql(f"DROP {kind} IF EXISTS {quoted(name)}")


class Command(Protocol):
    """Runs a command that must end with a status; its output and its errors."""

    def __call__(self, *args: str | Path, stdin: str = "", status: int = 0) -> tuple[str, str]: ...


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path_factory: pytest.TempPathFactory
) -> Command:
    """The commands in this process, with files for its standard streams."""

    def run(*args: str | Path, stdin: str = "", status: int = 0) -> tuple[str, str]:
        given = tmp_path_factory.mktemp("stdin") / "stdin"
        given.write_text(stdin, encoding="utf-8")
        capfdbinary.readouterr()
        with given.open() as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", file)
            patch.setattr(sys, "argv", ["toondb-server", *map(str, args)])
            with pytest.raises(SystemExit) as end:
                main()
        found = capfdbinary.readouterr()
        out, err = found.out.decode(), found.err.decode()
        assert (end.value.code or 0) == status, out + err
        return out, err

    return run


# Statements


def test_statements_from_arguments(command: Command, db: Path) -> None:
    out, err = command("sql", "--db", db, "INSERT INTO t VALUES (2, NULL), (3, 'é')", "SELECT * FROM t; .tables")
    assert out == "(2 rows affected)\n id | name\n----+------\n  1 | a\n  2 | NULL\n  3 | é\n(3 rows)\nt\n"
    assert err == ""


def test_statements_from_a_file_and_a_pipe(command: Command, db: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.sql"
    script.write_text("INSERT OR REPLACE INTO t VALUES (2, 'b');\n.mode csv\nSELECT name FROM t\n")
    out, _ = command("sql", "--db", db, "--file", script, "SELECT count(*) FROM t")
    assert out == "(1 row affected)\nname\r\na\r\nb\r\ncount(*)\r\n2\r\n"
    out, _ = command("sql", "--db", db, "--jsonl", stdin=f"SELECT 1 AS a;\n.read {script}\n.mode jsonl\nSELECT 2 AS a")
    assert out == '{"a": 1}\nname\r\na\r\nb\r\n{"a": 2}\n'


def test_a_failure_names_the_line_and_ends_the_script(command: Command, db: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.sql"
    script.write_text("INSERT INTO t VALUES (2, 'b');\n\nINSERT INTO t\n  VALUES (1, 'c');\nDELETE FROM t;\n")
    out, err = command("sql", "--db", db, "-f", script, status=1)
    assert out == "(1 row affected)\n"
    assert err.startswith(f"Error: {script}:3: UNIQUE constraint failed: t.id. [SQL_CONSTRAINT]\n  ")
    out, _ = command("sql", "--db", db, "--csv", "--no-header", "SELECT id FROM t")
    assert out == "1\r\n2\r\n"


def test_formats(command: Command, db: Path) -> None:
    query = "SELECT id, name, NULL AS n FROM t"
    assert json.loads(command("sql", "--db", db, "--json", query)[0]) == [{"id": 1, "name": "a", "n": None}]
    assert command("sql", "--db", db, "--toon", query)[0] == "result[1]{id,name,n}:1,a,null\n"
    assert (
        command("sql", "--db", db, "--csv", "--null", "-", "--delimiter", "tab", query)[0]
        == "id\tname\tn\r\n1\ta\t-\r\n"
    )
    assert command("sql", "--db", db, "--csv", f"{query} WHERE 0")[0] == "id,name,n\r\n"
    _, err = command("sql", "--db", db, "--csv", "--json", query, status=2)
    assert "only one of --csv and --json" in err


def test_parameters(command: Command, db: Path) -> None:
    query = "SELECT name, :b, typeof(:c) FROM t WHERE id = :a"
    out, _ = command("sql", "--db", db, "--csv", "--no-header", "-p", "a=1", "--param", "b", "-p", "c=007", query)
    assert out == "a,,text\r\n"
    assert (
        command("sql", "--db", db, "--csv", "--no-header", "-p", "2=x=y", "-p", "1=1.5", "SELECT ?, ?")[0]
        == "1.5,x=y\r\n"
    )
    _, err = command("sql", "--db", db, "-p", "a=1", query, status=1)
    assert "[VALIDATION]" in err
    for wrong in (["-p", "=1"], ["-p", "a=1", "-p", ":a=2"], ["-p", "2=1"]):
        command("sql", "--db", db, *wrong, "SELECT 1", status=2)


def test_transactions(command: Command, db: Path) -> None:
    command("sql", "--db", db, "-q", "BEGIN; INSERT INTO t VALUES (2, 'b')", "INSERT INTO t VALUES (3, 'c'); COMMIT")
    command("sql", "--db", db, "BEGIN", "DELETE FROM t", "ROLLBACK")
    _, err = command("sql", "--db", db, "BEGIN; DELETE FROM t", status=1)
    assert err == "The open transaction was rolled back: there was no COMMIT.\n"
    command("sql", "--db", db, "-1", "DELETE FROM t", "INSERT INTO nowhere VALUES (1)", status=1)
    assert command("sql", "--db", db, "--csv", "--no-header", "SELECT count(*) FROM t")[0] == "3\r\n"
    command("sql", "--db", db, "--single-transaction", "DELETE FROM t", "INSERT INTO t VALUES (9, 'z')")
    assert command("sql", "--db", db, "--csv", "--no-header", "SELECT id FROM t")[0] == "9\r\n"


def test_read_only(command: Command, db: Path) -> None:
    assert command("sql", "--db", db, "--read-only", "-q", "SELECT id FROM t")[0].endswith("  1\n")
    _, err = command("sql", "--db", db, "--read-only", "DELETE FROM t", status=1)
    assert "read-only" in err


def test_the_output_file_appears_when_all_is_done(command: Command, db: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    command("sql", "--db", db, "--json", "-o", path, "SELECT id FROM t", "SELECT bad", status=1)
    assert list(tmp_path.iterdir()) == []
    assert command("sql", "--db", db, "--json", "-o", path, "SELECT id FROM t") == ("", "")
    assert path.read_text() == '[{"id": 1}]\n'


def test_dot_commands(command: Command, db: Path, tmp_path: Path) -> None:
    data, copy = tmp_path / "data.csv", tmp_path / "copy.jsonl"
    data.write_text("id,name\n2,b\n")
    script = f"""
        CREATE INDEX names ON t (name); CREATE VIEW v AS SELECT 1;
        .import {data} t
        .import --create {data} 'new table'
        .export {copy} SELECT * FROM t ORDER BY id;
        .output {tmp_path}/out.txt
        SELECT count(*) AS n FROM t;
        .output
        .headers off
        .nullvalue -
        SELECT NULL, 1;
        .tables %t
        .tables
        .indexes
        .schema t
        .quit
        SELECT 'never';
    """
    out, err = command("sql", "--db", db, stdin=script)
    assert out.splitlines() == [
        " - | 1",
        "(1 row)",
        "t",
        "new table",
        "t",
        "v",
        "names",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT);",
        "CREATE INDEX names ON t (name);",
    ]
    assert err.splitlines() == [
        "Imported 1 row into t.",
        "Imported 1 row into new table (created).",
        f"Exported 2 rows to {copy}.",
    ]
    assert copy.read_text() == '{"id": 1, "name": "a"}\n{"id": 2, "name": "b"}\n'
    assert (tmp_path / "out.txt").read_text() == " n\n---\n 2\n(1 row)\n"
    assert json.loads(command("sql", "--db", db, "--json", ".tables")[0])[0] == {"name": "new table"}
    for wrong in (
        ".nonsense",
        ".mode xml",
        ".import",
        ".import a b --nonsense",
        ".quit now",
        ".export x",
        ".headers maybe",
    ):
        out, err = command("sql", "--db", db, stdin=f"SELECT 1;\n{wrong}\n", status=2)
        assert "standard input:2: " in err, wrong


# Which store


def test_a_missing_database_is_an_error(command: Command, tmp_db: Path) -> None:
    _, err = command("sql", "--db", tmp_db, "SELECT 1", status=1)
    assert "[DATABASE_NOT_FOUND]" in err
    assert "--create" in err
    assert not tmp_db.exists()
    command("sql", "--db", tmp_db, "--create", "CREATE TABLE t (a)")
    assert command("sql", "--db", tmp_db, ".tables")[0] == "t\n"


def test_a_named_socket_needs_a_daemon(command: Command, db: Path, tmp_path: Path) -> None:
    _, err = command("sql", "--db", db, "--socket", tmp_path / "none.sock", "SELECT 1", status=1)
    assert "no server listens" in err


def test_a_folder_that_others_have_open(command: Command, tmp_db: Path) -> None:
    owner = start("sql", "--db", tmp_db, "--create", "--csv", "SELECT 1 AS a", ENDLESS)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"a\r\n"
    _, err = command("sql", "--db", tmp_db, "SELECT 1", status=1)
    owner.kill()
    owner.communicate()
    assert "[DATABASE_LOCKED]" in err
    with Database.open_concurrent(tmp_db) as db:
        other = start("sql", "--db", tmp_db, "CREATE TABLE t (a); INSERT INTO t VALUES (1)")
        out, err_bytes = other.communicate(timeout=SECONDS)
        assert (other.returncode, out) == (0, b"(1 row affected)\n"), err_bytes
        assert db.execute_sql("SELECT a FROM t").tuples == [(1,)]


def test_a_daemon_on_another_socket_is_found(command: Command, tmp_db: Path) -> None:
    path = Path("/tmp") / f"toondb-test-{os.getpid()}-other.sock"
    with Daemon(tmp_db, "--socket", path):
        command("sql", "--db", tmp_db, "CREATE TABLE t (a)")
        assert command("sql", "--db", tmp_db, "--socket", path, ".tables")[0] == "t\n"


def test_foreign_keys(command: Command, tmp_db: Path) -> None:
    script = """
        CREATE TABLE parents (id INTEGER PRIMARY KEY);
        CREATE TABLE children (parent INTEGER REFERENCES parents);
        INSERT INTO children VALUES (1);
    """
    _, err = command("sql", "--db", tmp_db, "--create", "--foreign-keys", script, status=1)
    assert "FOREIGN KEY constraint failed" in err
    with Daemon(tmp_db):
        _, err = command("sql", "--db", tmp_db, "--foreign-keys", "SELECT 1", status=1)
        assert "the daemon does not enforce them" in err


def test_a_statement_may_run_for_so_long(command: Command, db: Path) -> None:
    _, err = command("sql", "--db", db, "--timeout", "0.3", ENDLESS, status=1)
    assert "[SQL_INTERRUPTED]" in err or "[OPERATION_TIMEOUT]" in err


# How it ends


def start(*args: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        server_command(*args),
        env=child_environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_running_statement(command: Command, db: Path, number: int, status: int) -> None:
    # What the first one answers shows how far it is.
    process = start("sql", "--db", db, "--csv", "SELECT 1 AS a", ENDLESS)
    assert process.stdout is not None
    assert process.stdout.readline() == b"a\r\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == status
    assert b"Traceback" not in err
    command("sql", "--db", db, "INSERT INTO t VALUES (2, 'b')")  # nothing is locked


def test_a_reader_that_leaves_ends_it_quietly(db: Path) -> None:
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    for format_option in ("--csv", "--no-header"):
        process = start("sql", "--db", db, format_option, endless)
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(SECONDS) == 1


def test_an_export_that_is_interrupted_leaves_nothing(db: Path, tmp_path: Path) -> None:
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    process = start("sql-export", "--db", db, tmp_path / "out.csv", endless)
    deadline = time.monotonic() + SECONDS
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_an_import_that_is_interrupted_keeps_whole_parts(command: Command, db: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "rows"
    os.mkfifo(pipe)
    args = ("sql-import", "--db", db, pipe, "t", "--format", "csv", "--no-header", "--commit-rows", "2000")
    process = start(*args)
    with pipe.open("w") as writer:
        # More than a pipe holds: what was written was read, and most of it committed.
        writer.write("".join(f"{number},row {number}\n" for number in range(2, 20_002)))
        writer.flush()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    rows = int(command("sql", "--db", db, "--csv", "--no-header", "SELECT count(*) FROM t")[0]) - 1
    assert 0 < rows < 20_000
    assert rows % 2000 == 0


# Import and export


def test_import_and_export(command: Command, db: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,name,blob,price\n1,Zoë,x'00ff',1.5\n2,,,2\n3,\"\",,\n")
    assert command("sql-import", "--db", db, path, "new", "--create")[0] == "Imported 3 rows into new (created).\n"
    report = json.loads(command("sql-import", "--db", db, path, "new", "--json")[0])
    assert report == {"table": "new", "rows": 3, "ignored": 0, "skipped": 0, "created": False, "errors": []}
    copy = tmp_path / "copy.jsonl"
    query = "SELECT * FROM new WHERE id < :limit ORDER BY rowid LIMIT 3"
    assert command("sql-export", "--db", db, copy, query, "-p", "limit=9")[0] == f"Exported 3 rows to {copy}.\n"
    rows = [json.loads(line) for line in copy.read_text().splitlines()]
    assert rows[0] == {"id": 1, "name": "Zoë", "blob": "x'00ff'", "price": 1.5}
    assert stat.S_IMODE(copy.stat().st_mode) == 0o666 & ~umask()
    command("sql-import", "--db", db, "-", "again", "--create", "--format", "jsonl", stdin=copy.read_text())
    assert command("sql-export", "--db", db, "-", "again")[0] == (
        "id,name,blob,price\r\n1,Zoë,x'00ff',1.5\r\n2,,,2.0\r\n3,\"\",,\r\n"
    )
    assert command("sql-export", "--db", db, "-", "again", "--format", "toon")[0].startswith(
        "result[3]{id,name,blob,price}:"
    )


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_mistakes_of_import_and_export(command: Command, db: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,name\n5,x\n1,y\n")
    _, err = command("sql-import", "--db", db, path, "t", status=1)
    assert err.startswith(f"Error: {path}:3: UNIQUE constraint failed: t.id. [SQL_CONSTRAINT]")
    out, _ = command("sql-import", "--db", db, path, "t", "--on-error", "skip")
    assert out == f"skipped: {path}:3: UNIQUE constraint failed: t.id\nImported 1 row into t, 1 skipped.\n"
    mistakes: list[tuple[list[str | Path], str]] = [
        (["sql-import", tmp_path / "none.csv", "t"], "No such file"),
        (["sql-import", path, "nowhere"], "there is no table 'nowhere'"),
        (["sql-export", tmp_path / "x.xml", "t"], "does not tell its format"),
        (["sql-export", tmp_path / "none" / "x.csv", "t"], "No such file"),
        (["sql-export", tmp_path, "t", "--format", "csv"], "Is a directory"),
        (["sql-export", tmp_path / "x.csv", "nowhere"], "neither a table or view nor one query"),
        (["sql-export", tmp_path / "x.csv", "SELECT bad"], "no such column"),
    ]
    for args, words in mistakes:
        _, err = command(args[0], "--db", db, *args[1:], status=1)
        assert words in err
    for wrong in (["--replace", "--ignore"], ["--columns", "a,,b"], ["--delimiter", "ab"], ["--batch", "0"]):
        command("sql-import", "--db", db, path, "t", *wrong, status=2)
    command("sql-import", "--db", db, "-", "t", status=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["rows.csv"]


# The prompt


class Terminal:
    """A ``toondb-server`` command at a terminal of its own, 60 columns wide."""

    def __init__(self, *args: str | Path, env: dict[str, str]) -> None:
        self._fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))

        def control() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal

        environ = child_environ({"TERM": "dumb", "INPUTRC": os.devnull, **env})
        # Of another terminal: the one in which the tests run.
        for name in ("COLUMNS", "LINES"):
            environ.pop(name, None)
        self.process = subprocess.Popen(
            server_command(*args),
            env=environ,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=control,
        )
        os.close(inner)
        self._unread = b""

    def expect(self, text: str) -> str:
        """Wait until the text is written; all up to it."""
        deadline = time.monotonic() + SECONDS
        wanted = text.encode()
        while wanted not in self._unread:
            ready = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"{text!r} does not come after {self._unread!r}"
            self._unread += os.read(self._fd, 65536)
        before, _, self._unread = self._unread.partition(wanted)
        return before.decode().replace("\r\n", "\n")

    def enter(self, text: str, prompt: str = "\ntoondb> ") -> str:
        """Type a line; what is written up to the next prompt."""
        os.write(self._fd, text.encode() + b"\n")
        return self.expect(prompt.replace("\n", "\r\n"))

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._fd, keys.encode())

    def interrupt_prompt(self) -> None:
        """Press Ctrl-C at the prompt, once the process waits for a line.

        A signal between the prompt's last letter and readline's ``select`` is noticed only with the next key.
        """
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert self.process.poll() is None
            time.sleep(0.001)
        self.press("\x03")

    def wait(self) -> int:
        """Wait for the end."""
        return self.process.wait(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._fd)


def test_the_prompt(db: Path, tmp_path: Path) -> None:
    with Terminal("sql", "--db", db, env={"XDG_STATE_HOME": str(tmp_path)}) as terminal:
        banner = terminal.expect("toondb> ")
        assert ("Connected to the daemon" in banner) == (db / "toondb.sock").exists()
        # A statement of several lines.
        terminal.enter("SELECT id,", "   ...> ")
        assert "(1 row)" in terminal.enter("';' FROM t;")
        # A transaction shows in the prompt; only Ctrl-C ends an endless statement, and the prompt goes on.
        terminal.enter("BEGIN; INSERT INTO t VALUES (2, 'b');", "toondb*> ")
        terminal.enter("ROLLBACK;")
        terminal.press(f"SELECT 1; {ENDLESS}\n")
        terminal.expect("(1 row)")
        terminal.press("\x03")
        terminal.expect("Interrupted.")
        terminal.expect("toondb> ")
        terminal.interrupt_prompt()
        terminal.expect("toondb> ")
        assert "\n1 " not in terminal.enter("SELECT count(*) AS rows_left FROM t;")
        # A failure drops the rest of the line.
        answer = terminal.enter("SELECT bad; SELECT 'not ' || 'reached';")
        assert "Error: no such column: bad. [SQL]" in answer
        assert "not reached" not in answer
        # The tabulator, in the middle of a line.
        terminal.press("SELECT cou")
        terminal.press("\x15")  # erase the line
        terminal.press("SELECT nam\t FROM t;\n")
        terminal.expect("(1 row)")
        terminal.expect("toondb> ")
        # A wide table is cut to the terminal.
        answer = terminal.enter("SELECT hex(zeroblob(100)) AS wide, 'x' || char(27) AS escaped;")
        table = answer.splitlines()[-4:-1]
        assert max(map(len, table)) <= 60
        assert "…" in table[2]
        assert "\x1b" not in table[2]
        terminal.enter(".timer on")
        assert "Time: " in terminal.enter("SELECT 1;")
        terminal.enter("BEGIN;", "toondb*> ")
        terminal.press("\x04")
        terminal.expect("The open transaction was rolled back")
        assert terminal.wait() == 0
    history = tmp_path / "toondb" / "sql_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    lines = history.read_text().splitlines()
    assert lines[:3] == ["SELECT id, ';' FROM t;", "BEGIN; INSERT INTO t VALUES (2, 'b');", "ROLLBACK;"]
    assert lines[-1] == "BEGIN;"


def test_history_is_there_the_next_time_and_done_without_where_it_cannot_be(db: Path, tmp_path: Path) -> None:
    history = tmp_path / "toondb" / "sql_history"
    history.parent.mkdir()
    history.write_text("".join(f"SELECT {number} AS old;\n" for number in range(5000)))
    with Terminal("sql", "--db", db, env={"XDG_STATE_HOME": str(tmp_path)}) as terminal:
        terminal.expect("toondb> ")
        terminal.press("\x10\n")  # the line before
        terminal.expect("4999")
        terminal.enter(" SELECT 'a space before it';")
        terminal.enter(".quit", "\n")
        assert terminal.wait() == 0
    lines = history.read_text().splitlines()
    assert len(lines) == 2001
    assert lines[-2:] == ["SELECT 4999 AS old;", ".quit"]
    with Terminal("sql", "--db", db, env={"XDG_STATE_HOME": "/proc/none"}) as terminal:
        terminal.expect("toondb> ")
        assert "(1 row)" in terminal.enter("SELECT 1;")
        terminal.press("\x04")
        assert terminal.wait() == 0


def test_the_prompt_outlives_the_daemon(tmp_db: Path, tmp_path: Path) -> None:
    daemon = Daemon(tmp_db, "--sync-mode", "off")
    try:
        with Terminal("sql", "--db", tmp_db, env={"XDG_STATE_HOME": str(tmp_path)}) as terminal:
            terminal.expect("toondb> ")
            terminal.enter("CREATE TABLE t (a);")
            terminal.enter("BEGIN; INSERT INTO t VALUES (1);", "toondb*> ")
            assert daemon.stop() == 0
            daemon = Daemon(tmp_db, "--sync-mode", "off")
            answer = terminal.enter("INSERT INTO t VALUES (2);", "toondb!> ")
            assert "Error: " in answer
            assert "Traceback" not in answer
            # Not run outside the transaction that it was meant for.
            assert "nothing of it was kept" in terminal.enter("INSERT INTO t VALUES (3);", "toondb!> ")
            terminal.enter("ROLLBACK;")
            assert "\n 0\n" in terminal.enter("SELECT count(*) AS n FROM t;").replace("  ", " ")
            terminal.press("\x04")
            assert terminal.wait() == 0
    finally:
        daemon.stop()


def test_progress_shows_on_a_terminal(tmp_db: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,name\n" + "".join(f"{number},name {number}\n" for number in range(5000)))
    args = ("sql-import", "--db", tmp_db, "--create-database", path, "t", "--create")
    with Terminal(*args, env={}) as terminal:
        shown = terminal.expect("Imported 5,000 rows into t (created).")
        assert terminal.wait() == 0
    assert " rows/s" in shown
    assert shown.endswith("\x1b[K")
