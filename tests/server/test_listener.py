"""toondb_server.listener with real sockets, real processes and the real systemd-socket-activate."""

from __future__ import annotations

import asyncio
import fcntl
import grp
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

import pytest
import uvloop

from toondb_protocol.errors import ConfigurationError, DatabaseLockedError, LockTimeoutError
from toondb_server import listener as listener_module
from toondb_server.listener import (
    MAX_PATH_BYTES,
    ListenOptions,
    PeerCredentials,
    activated_listener,
    open_listener,
    peer_credentials,
    probe,
)

NOBODY_UID = 65534
SECONDS = 30.0  # bound of every wait for another process; never reached in a passing run
ACTIVATE = shutil.which("systemd-socket-activate")
needs_activate = pytest.mark.skipif(ACTIVATE is None, reason="systemd-socket-activate is not installed")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only: O_PATH, SO_PEERCRED")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path that other users can enter (pytest's tmp_path is neither)."""
    path = Path(tempfile.mkdtemp(prefix="toondb-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def make_stale(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
    """Leave a socket file whose owner is gone, as a killed server does."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))


def ask(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect(str(path))
        return sock.recv(100)


def inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def open_descriptors() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


# Opening


def test_serves_and_removes_its_file(folder: Path) -> None:
    path = folder / "t.sock"
    listener = open_listener(ListenOptions(path))
    assert (listener.path, listener.activated) == (path, False)
    assert not listener.socket.getblocking()
    assert not listener.socket.get_inheritable()
    assert listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert listener.still_ours()
    assert probe(path)
    listener.close()
    assert not path.exists()
    assert listener.socket.fileno() == -1
    assert not listener.still_ours()
    assert not probe(path)
    make_stale(path)
    listener.close()  # idempotent, and nothing of a later owner is touched
    assert path.exists()


@needs_linux
def test_no_descriptor_is_left_open(folder: Path) -> None:
    before = open_descriptors()
    for _ in range(3):
        with open_listener(ListenOptions(folder / "t.sock")) as listener, pytest.raises(DatabaseLockedError):
            open_listener(ListenOptions(folder / "t.sock"))
        assert listener.socket.fileno() == -1
        with pytest.raises(ConfigurationError):
            open_listener(ListenOptions(folder / "none" / "t.sock"))
    assert open_descriptors() == before


def test_relative_path_survives_a_change_of_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    listener = open_listener(ListenOptions(Path("t.sock")))
    monkeypatch.chdir("/")
    assert listener.path == folder / "t.sock"
    assert listener.still_ours()
    listener.close()
    assert not (folder / "t.sock").exists()


def test_dotdot_behind_a_symbolic_link_is_the_kernels_dotdot(folder: Path) -> None:
    (folder / "real" / "deep").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "real" / "deep")
    with open_listener(ListenOptions(folder / "link" / ".." / "t.sock")) as listener:
        assert listener.still_ours()
        assert probe(folder / "real" / "t.sock")
    assert not (folder / "real" / "t.sock").exists()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o200])
@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_file_is_private_until_it_is_ready(folder: Path, mode: int, umask: int) -> None:
    """Looks at the file at the moment bind() returns and at the moment listen() is called."""
    path = folder / "t.sock"
    seen: list[tuple[str, int, bool]] = []

    def watch(_frame: object, event: str, function: object) -> None:
        called = (event, getattr(function, "__name__", ""))
        if called in {("c_return", "bind"), ("c_call", "listen")} and path.exists():
            seen.append((called[1], stat.S_IMODE(path.stat().st_mode), probe(path)))

    previous = os.umask(umask)
    try:
        sys.setprofile(watch)
        try:
            listener = open_listener(ListenOptions(path, mode=mode))
        finally:
            sys.setprofile(None)
        after = os.umask(umask)
    finally:
        os.umask(previous)
    with listener:
        assert after == umask
        assert seen == [("bind", 0o600, False), ("listen", mode, False)]
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert probe(path)


def test_no_observer_ever_sees_a_wider_mode(folder: Path) -> None:
    path, seen, done = folder / "t.sock", set[int](), threading.Event()

    def poll() -> None:
        while not done.is_set():
            try:
                seen.add(stat.S_IMODE(path.stat().st_mode))
            except FileNotFoundError:
                continue

    previous = os.umask(0)
    watcher = threading.Thread(target=poll)
    watcher.start()
    try:
        for _ in range(200):
            open_listener(ListenOptions(path)).close()
    finally:
        done.set()
        watcher.join()
        os.umask(previous)
    assert seen <= {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to any group")
def test_group_is_applied(folder: Path) -> None:
    other = next(entry for entry in grp.getgrall() if entry.gr_gid != os.getegid())
    for group in (other.gr_name, str(other.gr_gid)):
        with open_listener(ListenOptions(folder / "t.sock", mode=0o660, group=group)):
            found = (folder / "t.sock").stat()
            assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (other.gr_gid, 0o660)


# What the user can do wrong


def refused(options: ListenOptions, error: type[Exception] = ConfigurationError) -> str:
    """The message with which opening is refused; the umask must be as before."""
    umask = os.umask(0o027)
    try:
        with pytest.raises(error) as caught:
            open_listener(options)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(umask)
    return str(caught.value)


def test_missing_folder(folder: Path) -> None:
    message = refused(ListenOptions(folder / "none" / "t.sock"))
    assert str(folder / "none") in message
    assert f"mkdir -p -m 0700 {folder / 'none'}" in message


def test_folder_is_a_file(folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    assert f"{folder / 'file'} is not a folder" in refused(ListenOptions(folder / "file" / "t.sock"))


def test_deleted_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    assert "does not exist" in refused(ListenOptions(Path("t.sock")))


def test_longest_path_is_accepted_and_one_byte_more_is_refused(folder: Path) -> None:
    room = MAX_PATH_BYTES - len(os.fsencode(folder)) - 1
    longest = folder / ("ü" * (room // 2) + "x" * (room % 2))  # bytes count, not characters
    assert len(os.fsencode(longest)) == MAX_PATH_BYTES
    with open_listener(ListenOptions(longest)):
        assert probe(longest)
    message = refused(ListenOptions(Path(f"{longest}y")))
    assert f"{MAX_PATH_BYTES + 1} bytes long" in message
    assert f"allows {MAX_PATH_BYTES}" in message
    assert "--socket" in message
    assert os.listdir(folder) == []


def test_nul_in_path(folder: Path) -> None:
    assert "NUL" in refused(ListenOptions(folder / "a\0b"))


@pytest.mark.parametrize("mode", [-1, 0o1000, 660])
def test_mode_that_is_none(folder: Path, mode: int) -> None:
    assert "octal" in refused(ListenOptions(folder / "t.sock", mode=mode))


@pytest.mark.parametrize("group", ["no-such-group-here", "", "4294967295", "9" * 5000, "a\0b", "-1", "\u0661"])
def test_unknown_group(folder: Path, group: str) -> None:
    assert "There is no group" in refused(ListenOptions(folder / "t.sock", mode=0o660, group=group))
    assert os.listdir(folder) == []


def test_group_that_could_not_connect(folder: Path) -> None:
    message = refused(ListenOptions(folder / "t.sock", mode=0o600, group="0"))
    assert "--socket-mode 0660" in message


def test_regular_file_is_untouched_byte_for_byte(folder: Path) -> None:
    path, content = folder / "precious.txt", os.urandom(5000)
    path.write_bytes(content)
    before = path.stat()
    assert "a regular file" in refused(ListenOptions(path))
    after = path.stat()
    assert path.read_bytes() == content
    assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns, before.st_mode) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_ctime_ns,
        after.st_mode,
    )


def test_folder_link_and_pipe_are_not_replaced(folder: Path) -> None:
    (folder / "dir").mkdir()
    (folder / "file").write_bytes(b"data")
    (folder / "to-file").symlink_to(folder / "file")
    (folder / "to-nothing").symlink_to(folder / "nothing")
    make_stale(folder / "socket")
    (folder / "to-socket").symlink_to(folder / "socket")
    os.mkfifo(folder / "pipe")
    before = {name: (folder / name).lstat() for name in os.listdir(folder)}
    assert "a folder" in refused(ListenOptions(folder / "dir"))
    for name in ("to-file", "to-nothing", "to-socket"):
        assert "a symbolic link" in refused(ListenOptions(folder / name))
    assert "a pipe" in refused(ListenOptions(folder / "pipe"))
    assert {name: (folder / name).lstat() for name in os.listdir(folder)} == before
    assert (folder / "file").read_bytes() == b"data"


def test_another_server_is_named(folder: Path) -> None:
    path = folder / "t.sock"
    with open_listener(ListenOptions(path)) as listener:
        identity = inode(path)
        with pytest.raises(DatabaseLockedError) as caught:
            open_listener(ListenOptions(path))
        assert f"listens on {path}" in str(caught.value)
        if sys.platform.startswith("linux"):
            assert caught.value.details["pid"] == os.getpid()
        assert inode(path) == identity
        assert listener.still_ours()


def test_server_with_full_backlog_is_alive(folder: Path) -> None:
    path = folder / "t.sock"
    with ExitStack() as stack:
        stack.enter_context(open_listener(ListenOptions(path), backlog=0))
        for _ in range(5):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        else:
            pytest.fail("the backlog never filled")
        assert probe(path)
        assert "Another server listens" in refused(ListenOptions(path), DatabaseLockedError)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_live_socket_of_another_kind_is_left_alone(folder: Path, kind: socket.SocketKind) -> None:
    path = folder / "t.sock"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if kind == socket.SOCK_SEQPACKET:
            other.listen()
        identity = inode(path)
        assert not probe(path)
        assert "socket of another kind" in refused(ListenOptions(path))
        assert inode(path) == identity


def test_locked_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "_LOCK_SECONDS", 0.05)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert str(folder) in refused(ListenOptions(folder / "t.sock"), LockTimeoutError)
    finally:
        os.close(descriptor)
    open_listener(ListenOptions(folder / "t.sock")).close()


AS_NOBODY = """
import os, sys
from pathlib import Path
from toondb_protocol.errors import ToonDBError
from toondb_server.listener import ListenOptions, open_listener
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
mode, group = int(sys.argv[2], 8), sys.argv[3] or None
try:
    open_listener(ListenOptions(Path(sys.argv[1]), mode, group)).close()
except ToonDBError as error:
    print(type(error).__name__, error)
else:
    print("opened")
"""


def as_nobody(path: Path, mode: int = 0o600, group: str = "") -> str:
    """What an unprivileged process gets when it opens ``path``."""
    return run_python(AS_NOBODY, str(path), f"{mode:o}", group)


def python_path() -> str:
    return os.pathsep.join(path for path in sys.path if path)


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_folder_without_permission(folder: Path) -> None:
    own = os.geteuid() != 0
    for mode in (0o755, 0o700):
        folder.chmod(0o555 if own else mode)
        said = as_nobody(folder / "t.sock")
        folder.chmod(0o755)
        assert said.startswith("ConfigurationError")
        assert str(folder) in said
        assert f"uid {os.geteuid() or NOBODY_UID}" in said
        assert os.listdir(folder) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to own a socket that another user may not open")
def test_socket_of_another_user(folder: Path) -> None:
    folder.chmod(0o777)
    path = folder / "t.sock"
    with open_listener(ListenOptions(path)) as listener:
        assert "cannot tell whether a server listens" in as_nobody(path)
        assert listener.still_ours()
    assert as_nobody(path) == "opened"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be sure that group 0 is not one's own")
def test_group_of_others(folder: Path) -> None:
    folder.chmod(0o777)
    said = as_nobody(folder / "t.sock", 0o660, "0")
    assert said.startswith("ConfigurationError")
    assert "may not give the socket" in said
    assert os.listdir(folder) == []  # the half-made socket is gone


# Stale sockets


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_stale_socket_is_replaced(folder: Path, kind: socket.SocketKind) -> None:
    path = folder / "t.sock"
    make_stale(path, kind)
    assert not probe(path)
    with open_listener(ListenOptions(path)) as listener:
        assert listener.still_ours()
        assert probe(path)


def test_socket_of_a_killed_server_is_replaced(folder: Path) -> None:
    path = folder / "t.sock"
    code = """
        import os, signal, sys
        from pathlib import Path
        from toondb_server.listener import ListenOptions, open_listener
        listener = open_listener(ListenOptions(Path(sys.argv[1])))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        env={**os.environ, "PYTHONPATH": python_path()},
        timeout=SECONDS,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert stat.S_ISSOCK(path.stat().st_mode)
    with open_listener(ListenOptions(path)):
        assert probe(path)


RACER = """
import os, sys
from pathlib import Path
from toondb_protocol.errors import DatabaseLockedError
from toondb_server.listener import ListenOptions, open_listener, peer_credentials
path = Path(sys.argv[1])
print("ready", flush=True)
while sys.stdin.readline().strip() == "start":
    try:
        listener = open_listener(ListenOptions(path))
    except DatabaseLockedError:
        listener = None
    print("lost" if listener is None else "won", flush=True)
    sys.stdin.readline()
    if listener is not None:
        listener.socket.setblocking(True)
        connection, _ = listener.socket.accept()
        while peer_credentials(connection).pid != int(sys.argv[2]):
            connection.close()  # the loser's probe
            connection, _ = listener.socket.accept()
        connection.sendall(str(os.getpid()).encode())
        connection.close()
        listener.close()
    print("closed", flush=True)
"""


@needs_linux
def test_of_two_starting_servers_exactly_one_takes_the_stale_socket(folder: Path) -> None:
    path = folder / "t.sock"
    with ExitStack() as stack:
        racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-W", "error", "-c", RACER, str(path), str(os.getpid())],
                    env={**os.environ, "PYTHONPATH": python_path()},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(2)
        ]
        for racer in racers:
            stack.callback(racer.kill)
        assert [hear(racer.stdout) for racer in racers] == ["ready", "ready"]
        for number in range(150):
            make_stale(path)
            for racer in racers if number % 2 else reversed(racers):
                say(racer.stdin, "start")
            outcome = [hear(racer.stdout) for racer in racers]
            assert sorted(outcome) == ["lost", "won"], f"round {number}"
            for racer in racers:
                say(racer.stdin, "finish")
            assert int(ask(path)) == racers[outcome.index("won")].pid
            assert [hear(racer.stdout) for racer in racers] == ["closed", "closed"]
            assert not path.exists()
        for racer in racers:
            say(racer.stdin, "end")
        assert [racer.wait(SECONDS) for racer in racers] == [0, 0]


def say(stream: IO[str] | None, word: str) -> None:
    assert stream is not None
    stream.write(word + "\n")
    stream.flush()


def hear(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


# Socket theft


def test_a_thiefs_socket_is_left_alone(folder: Path) -> None:
    path = folder / "t.sock"
    listener = open_listener(ListenOptions(path))
    path.unlink()
    assert not listener.still_ours()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as thief:
        thief.bind(str(path))
        thief.listen()
        identity = inode(path)
        assert not listener.still_ours()
        assert not listener.unlink()
        listener.close()
        assert inode(path) == identity
        assert probe(path)


@needs_linux
def test_inode_of_a_deleted_socket_is_not_mistaken_for_ours(folder: Path) -> None:
    """File systems give a freed inode number to the next file; the pin keeps ours from being freed."""
    path = folder / "t.sock"
    listener = open_listener(ListenOptions(path))
    listener.socket.close()  # what an event loop does with it
    path.unlink()
    for _ in range(20):
        make_stale(path)
        assert not listener.still_ours()
        path.unlink()
    path.write_bytes(b"data")
    listener.close()
    assert path.read_bytes() == b"data"


def test_socket_replaced_while_close_waits_for_the_folder(folder: Path) -> None:
    """The file is looked at again under the lock: a starting server may have replaced it meanwhile."""
    path = folder / "t.sock"
    listener = open_listener(ListenOptions(path))
    waiting = threading.Event()

    def watch(_frame: object, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__name__", "") == "flock":
            waiting.set()

    def close() -> None:
        sys.setprofile(watch)  # of this thread alone
        listener.close()

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        closer = threading.Thread(target=close)
        closer.start()
        assert waiting.wait(SECONDS)
        path.unlink()
        make_stale(path)
    finally:
        os.close(descriptor)
    closer.join()
    assert path.exists()


def test_moved_socket_is_left_where_it_is(folder: Path) -> None:
    listener = open_listener(ListenOptions(folder / "t.sock"))
    (folder / "t.sock").rename(folder / "moved.sock")
    (folder / "t.sock").write_bytes(b"data")
    listener.close()
    assert sorted(os.listdir(folder)) == ["moved.sock", "t.sock"]
    assert (folder / "t.sock").read_bytes() == b"data"


def test_file_is_removed_also_after_the_loop_closed_the_socket(folder: Path) -> None:
    listener = open_listener(ListenOptions(folder / "t.sock"))
    listener.socket.close()
    listener.close()
    assert os.listdir(folder) == []


def test_unlink_while_listening_keeps_accepted_clients(folder: Path) -> None:
    path = folder / "t.sock"
    with (
        open_listener(ListenOptions(path)) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
    ):
        client.connect(str(path))
        assert listener.unlink()
        assert not listener.unlink()
        assert not path.exists()
        connection, _ = listener.socket.accept()
        with connection:
            connection.sendall(b"still here")
        assert client.recv(100) == b"still here"


def test_vanished_folder_does_not_disturb_close(folder: Path) -> None:
    (folder / "run").mkdir()
    listener = open_listener(ListenOptions(folder / "run" / "t.sock"))
    shutil.rmtree(folder / "run")
    listener.close()
    assert listener.socket.fileno() == -1


def test_locked_folder_does_not_hang_close(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "_CLOSE_LOCK_SECONDS", 0.05)
    listener = open_listener(ListenOptions(folder / "t.sock"))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        listener.close()
    finally:
        os.close(descriptor)
    assert not probe(folder / "t.sock")  # left behind, dead: the next server replaces it
    open_listener(ListenOptions(folder / "t.sock")).close()
    assert os.listdir(folder) == []


def test_forked_child_does_not_remove_the_parents_socket(folder: Path) -> None:
    path = folder / "t.sock"
    code = """
        import os, sys
        from pathlib import Path
        from toondb_server.listener import ListenOptions, open_listener, probe
        path = Path(sys.argv[1])
        with open_listener(ListenOptions(path)) as listener:
            child = os.fork()
            if child == 0:
                listener.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert listener.still_ours() and probe(path)
        print(path.exists())
    """
    assert run_python(textwrap.dedent(code), str(path)) == "False"


# Peer credentials


@needs_linux
def test_peer_credentials_of_both_ends(folder: Path) -> None:
    me = PeerCredentials(os.getpid(), os.getuid(), os.getgid())
    with (
        open_listener(ListenOptions(folder / "t.sock")) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
    ):
        assert peer_credentials(client) is None
        client.connect(str(folder / "t.sock"))
        connection, _ = listener.socket.accept()
        with connection:
            assert peer_credentials(connection) == me
            assert peer_credentials(client) == me
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        assert peer_credentials(other) is None
    assert peer_credentials(client) is None  # closed


@needs_linux
def test_peer_credentials_are_the_other_process(folder: Path) -> None:
    path = folder / "t.sock"
    code = "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1); s.close()"
    with open_listener(ListenOptions(path)) as listener:
        listener.socket.settimeout(SECONDS)
        with subprocess.Popen([sys.executable, "-c", code, str(path)]) as child:
            connection, _ = listener.socket.accept()
            with connection:
                found = peer_credentials(connection)
        assert found == PeerCredentials(child.pid, os.getuid(), os.getgid())


# Under an event loop


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_under_an_event_loop(folder: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The order of the daemon's end: unlink, stop the server, serve those who are in, close."""
    path = folder / "t.sock"

    async def run() -> None:
        connected: asyncio.Future[tuple[PeerCredentials | None, asyncio.Transport]] = loop.create_future()

        class Session(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                # A cast, because uvloop's transports are asyncio.Transport by duck typing only.
                stream = cast(asyncio.Transport, transport)
                connected.set_result((peer_credentials(stream.get_extra_info("socket")), stream))

        server = await loop.create_unix_server(Session, sock=listener.socket)
        reader, writer = await asyncio.open_unix_connection(str(path))
        credentials, transport = await connected
        if sys.platform.startswith("linux"):
            assert credentials == PeerCredentials(os.getpid(), os.getuid(), os.getgid())
        assert listener.unlink()
        server.close()
        make_stale(path)  # a successor's file, while we still serve
        transport.write(b"last words")
        transport.close()
        assert await reader.read() == b"last words"
        writer.close()
        await writer.wait_closed()
        await server.wait_closed()

    listener = open_listener(ListenOptions(path))
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loop = runner.get_loop()
        runner.run(asyncio.wait_for(run(), SECONDS))
    listener.close()
    assert path.exists()


# Socket activation


def activation(**values: str) -> dict[str, str]:
    return {f"LISTEN_{name.upper()}": value for name, value in values.items()}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        activation(pid="1", fds="1", fdnames="x", pidfdid="7"),  # meant for another process
        activation(pid=str(os.getpid()), fds="0"),
        activation(pid=str(os.getpid())),
        activation(fds="1"),
    ],
)
def test_not_activated(environ: dict[str, str]) -> None:
    environ = {**environ, "OTHER": "kept"}
    assert activated_listener(environ) is None
    assert environ == {"OTHER": "kept"}


@pytest.mark.parametrize(("pid", "fds"), [("x", "1"), ("1", "-1"), ("1", "1.5"), ("\u0661", "1"), ("1", "9" * 5000)])
def test_malformed_activation(pid: str, fds: str) -> None:
    environ = activation(pid=pid, fds=fds)
    with pytest.raises(ConfigurationError, match="must be numbers"):
        activated_listener(environ)
    assert environ == {}


def test_more_than_one_descriptor() -> None:
    environ = activation(pid=str(os.getpid()), fds="2", fdnames="a:b")
    with pytest.raises(ConfigurationError, match=r"passed 2 descriptors \(a:b\)"):
        activated_listener(environ)
    assert environ == {}


ACTIVATED = """
import os, sys
from toondb_protocol.errors import ToonDBError
from toondb_server.listener import activated_listener
try:
    listener = activated_listener()
except ToonDBError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(0)
if listener is None:
    print("not activated", flush=True)
    sys.exit(0)
left = [name for name in os.environ if name.startswith("LISTEN_")]
print(listener.path, listener.activated, listener.still_ours(), listener.socket.getblocking(),
      listener.socket.get_inheritable(), left, flush=True)
listener.socket.setblocking(True)
connection, _ = listener.socket.accept()
connection.sendall(b"served by %d" % os.getpid())
connection.close()
listener.close()
"""


def activate(*options: str, folder: Path, code: str = ACTIVATED) -> tuple[subprocess.Popen[str], ExitStack]:
    """Start ``code`` under systemd-socket-activate; returns once that listens."""
    assert ACTIVATE is not None
    stack = ExitStack()
    process = stack.enter_context(
        subprocess.Popen(
            [ACTIVATE, "-E", f"PYTHONPATH={python_path()}", *options, sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
    )
    stack.callback(process.kill)
    listening = sum(option.startswith(("--listen", "-l")) for option in options)
    for _ in range(listening):
        assert process.stderr is not None
        assert "Listening on" in process.stderr.readline()
    return process, stack


@needs_activate
def test_activated_by_systemd(folder: Path) -> None:
    path = folder / "t.sock"
    process, stack = activate(f"--listen={path}", "--fdname=toondb", folder=folder)
    with stack:
        identity = inode(path)
        assert ask(path) == b"served by %d" % process.pid
        assert hear(process.stdout) == f"{path} True True False False []"
        assert process.wait(SECONDS) == 0
        assert inode(path) == identity  # systemd's file is never unlinked


@needs_activate
def test_activated_on_an_abstract_address(folder: Path) -> None:
    name = f"toondb-test-{os.getpid()}"
    process, stack = activate(f"--listen=@{name}", folder=folder)
    with stack, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(SECONDS)
        client.connect(f"\0{name}")
        assert client.recv(100) == b"served by %d" % process.pid
        assert hear(process.stdout) == "None True True False False []"
        assert process.wait(SECONDS) == 0


@needs_activate
def test_accepted_connection_is_refused(folder: Path) -> None:
    path = folder / "t.sock"
    process, stack = activate(f"--listen={path}", "--accept", folder=folder)
    with stack, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))
        said = hear(process.stdout)
        assert "a Unix socket that does not listen" in said
        assert "Accept=no" in said


@needs_activate
def test_datagram_socket_is_refused(folder: Path) -> None:
    path = folder / "t.sock"
    process, stack = activate(f"--listen={path}", "--datagram", folder=folder)
    with stack, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(b"wake up", str(path))
        assert "a Unix socket of type SOCK_DGRAM" in hear(process.stdout)
        assert process.wait(SECONDS) == 0


@needs_activate
def test_tcp_socket_is_refused(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process, stack = activate(f"--listen=127.0.0.1:{port}", folder=folder)
    with stack, socket.create_connection(("127.0.0.1", port), timeout=SECONDS):
        assert "a socket of family AF_INET" in hear(process.stdout)
        assert process.wait(SECONDS) == 0


@needs_activate
def test_two_sockets_are_refused(folder: Path) -> None:
    paths = [folder / "a.sock", folder / "b.sock"]
    process, stack = activate(*(f"--listen={path}" for path in paths), folder=folder)
    with stack, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(paths[0]))
        assert "passed 2 descriptors" in hear(process.stdout)
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize(("source", "got"), [("/dev/null", "a file that is not a socket"), ("", "a closed descriptor")])
def test_descriptor_that_is_no_socket(source: str, got: str) -> None:
    code = """
        import os, sys
        from toondb_protocol.errors import ConfigurationError
        from toondb_server.listener import activated_listener
        if sys.argv[1]:
            os.dup2(os.open(sys.argv[1], os.O_RDONLY), 3)
        else:
            os.closerange(3, 4)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
        try:
            activated_listener()
        except ConfigurationError as error:
            print(error.details["got"])
    """
    assert run_python(textwrap.dedent(code), source) == got
