"""The owner lock, between real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import SECONDS, Daemon, child_environ
from toondb.engine.engine import Engine
from toondb.engine.owner_lock import LOCK_FILE, OwnerLock, read_owner
from toondb_protocol.errors import ConfigurationError, DatabaseLockedError


def python(code: str, *args: object) -> subprocess.Popen[str]:
    """A child that runs ``code``; it talks over its pipes."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        env=child_environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = """
import sys
from pathlib import Path
from toondb.engine.owner_lock import OwnerLock
lock = OwnerLock(Path(sys.argv[1]), "embedded")
print("held", flush=True)
sys.stdin.read()
"""

HOLD_WITH_CHILD = """
import os, sys
from pathlib import Path
from toondb.engine.owner_lock import OwnerLock
lock = OwnerLock(Path(sys.argv[1]), "embedded")
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.close(write)
    os.write(1, b"child\\n")  # whole: the parent writes at the same time
    os.read(0, 1)  # until the test ends it: the child outlives the owner
    os._exit(0)
os.write(1, b"%d\\n" % child)
os.close(read)
sys.stdin.close()
os.kill(os.getpid(), 9)
"""


def test_another_process_holds_it(tmp_path: Path) -> None:
    with python(HOLD, tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(DatabaseLockedError) as caught:
            OwnerLock(tmp_path, "embedded")
        assert caught.value.details["pid"] == child.pid
        assert f"embedded with pid {child.pid}" in str(caught.value)
        assert "toondb-server --db" in caught.value.remediation
        child.kill()
        child.wait(SECONDS)
    lock = OwnerLock(tmp_path, "embedded")
    lock.release()


def test_a_daemon_names_its_socket(tmp_db: Path) -> None:
    with Daemon(tmp_db) as daemon:
        with pytest.raises(DatabaseLockedError) as caught:
            Engine(tmp_db)
        details = caught.value.details
        assert (details["pid"], details["role"], details["socket"]) == (daemon.pid, "daemon", str(daemon.socket))
        assert f"IpcClient.connect({str(daemon.socket)!r})" in caught.value.remediation
    assert read_owner(tmp_db) == {}


def test_a_child_of_the_owner_does_not_keep_it(tmp_path: Path) -> None:
    with python(HOLD_WITH_CHILD, tmp_path) as owner:
        assert owner.stdout is not None
        assert {owner.stdout.readline(), owner.stdout.readline()} >= {"child\n"}
        assert owner.wait(SECONDS) == -9
        lock = OwnerLock(tmp_path, "embedded")
        lock.release()
        assert owner.stdin is not None
        owner.stdin.close()  # ends the child


def test_twice_in_one_process(tmp_path: Path) -> None:
    lock = OwnerLock(tmp_path, "first")
    with pytest.raises(DatabaseLockedError, match=f"first with pid {os.getpid()}"):
        OwnerLock(tmp_path, "second")
    lock.release()
    lock.release()
    OwnerLock(tmp_path, "second").release()


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"role": "daemon"}), "\x00" * 10_000])
def test_an_unreadable_owner_is_found_by_its_lock(tmp_path: Path, text: str) -> None:
    lock = OwnerLock(tmp_path, "embedded")
    (tmp_path / LOCK_FILE).write_text(text)
    with pytest.raises(DatabaseLockedError, match=f"with pid {os.getpid()}"):
        OwnerLock(tmp_path, "embedded")
    lock.release()


def test_a_lock_file_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(ConfigurationError, match="Is a directory"):
        OwnerLock(tmp_path, "embedded")
