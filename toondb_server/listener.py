"""The daemon's Unix socket: made safely, taken over safely, removed safely.

What can go wrong with a socket file, and what is done here:

- Somebody connects before the mode is right: the file is created under umask 0177, so it is 0600 from its
  first moment; mode and group are applied before ``listen()``, and until then the kernel refuses everyone.
- ``--socket`` names a file that holds data: only a socket is ever replaced, and only a dead one.
- A crashed server left its socket: it is probed, and replaced when nobody answers.
- Two servers start at once and both find it dead: the whole of probe, unlink, bind and listen runs under an
  exclusive ``flock`` on the parent folder. The folder is locked rather than a file beside the socket, because
  a lock file would itself have to be created, owned and removed.
- Somebody replaced our file: it is told from ours by its inode, and never unlinked.

The socket can also come from the supervisor (systemd socket activation, sd_listen_fds(3)).

This module knows nothing of asyncio. Everything here runs once, at the start or the end of the daemon.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol, Self

from toondb_protocol.errors import ConfigurationError, DatabaseLockedError, LockTimeoutError

__all__ = [
    "MAX_PATH_BYTES",
    "ListenOptions",
    "Listener",
    "PeerCredentials",
    "activated_listener",
    "open_listener",
    "peer_credentials",
    "probe",
]

#: Longest socket path in bytes: ``sizeof(sockaddr_un.sun_path)`` without the final NUL (unix(7); 104 on the BSDs).
MAX_PATH_BYTES = 107 if sys.platform.startswith("linux") else 103

_FIRST_ACTIVATED_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_CREATION_UMASK = 0o177
_LOCK_SECONDS = 10.0  # a starting server holds the folder for milliseconds; ten seconds means it hangs
_CLOSE_LOCK_SECONDS = 1.0
_LOCK_POLL_SECONDS = 0.01
_UCRED = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid
_NO_ID = 0xFFFFFFFF  # (uid_t) -1: the kernel knows no peer

# O_PATH pins an inode without opening it, which is the only way to hold on to a socket file.
_O_PIN = getattr(os, "O_PATH", 0)


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """Where and for whom the daemon listens.

    Args:
        path: The socket file. Its folder must exist.
        mode: Permission bits of the socket file; write permission is what lets a user connect.
        group: Name or number of the group that owns the file; the process's group when omitted.
    """

    path: Path
    mode: int = 0o600
    group: str | None = None


class PeerCredentials(NamedTuple):
    """Who is at the other end, as the kernel recorded it at ``connect()`` or ``listen()``.

    ``pid`` is 0 for a process of a PID namespace that is invisible from here.
    """

    pid: int
    uid: int
    gid: int


class SupportsGetsockopt(Protocol):
    """A socket, or what asyncio and uvloop give for ``get_extra_info("socket")``."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


class Listener:
    """A bound, listening, non-blocking ``AF_UNIX`` stream socket and the file that leads to it.

    Attributes:
        socket: The listening socket.
        path: Absolute path of its file; None for an abstract or unnamed address.
        activated: True when the supervisor made it: then the file is the supervisor's, never unlinked here.
    """

    def __init__(self, sock: socket.socket, path: Path | None, *, activated: bool) -> None:
        self.socket = sock
        self.path = path
        self.activated = activated
        self._owner_pid = os.getpid()
        self._pin = -1
        self._identity: tuple[int, int] | None = None
        if path is not None:
            self._remember(path)

    def _remember(self, path: Path) -> None:
        try:
            if _O_PIN:
                # While the pin is open the inode number cannot be given to another file, so that a
                # thief's socket never looks like ours, not even after our own file was deleted.
                self._pin = os.open(path, _O_PIN | os.O_NOFOLLOW)
                found = os.fstat(self._pin)
            else:
                found = os.lstat(path)
        except OSError:
            return  # an activated socket whose file is gone or out of sight; open_listener checks its own
        if stat.S_ISSOCK(found.st_mode):
            self._identity = (found.st_dev, found.st_ino)

    def still_ours(self) -> bool:
        """Whether clients that open :attr:`path` still reach this socket's file.

        Returns:
            False after the file was deleted or replaced by somebody. True for an abstract address, whose name
            nobody can take while the socket is open.
        """
        if self.path is None:
            return True
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def unlink(self) -> bool:
        """Remove the file while the socket still listens, so that new clients see no server at all.

        Call it before the event loop closes the socket. Does nothing for an activated socket, for a file that
        is no longer ours and in a forked child.

        Returns:
            Whether the file was removed by this call.
        """
        if self.path is None or self.activated or self._owner_pid != os.getpid() or not self.still_ours():
            return False
        try:
            # The lock matters when the socket was closed before its file: then a starting server may find it
            # stale and replace it between our look at the inode and our unlink. If the lock stays taken, the
            # file is left behind, which is harmless: the next server replaces it.
            with _locked_folder(self.path.parent, seconds=_CLOSE_LOCK_SECONDS):
                if not self.still_ours():
                    return False
                self.path.unlink()
        except (OSError, LockTimeoutError, ConfigurationError):
            return False
        return True

    def close(self) -> None:
        """Remove our own file (see :meth:`unlink`) and close the socket. May be called again; never raises."""
        self.unlink()
        with suppress(OSError):
            self.socket.close()
        if self._pin >= 0:
            os.close(self._pin)
            self._pin = -1
        self._identity = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_listener(options: ListenOptions, *, backlog: int = 1024) -> Listener:
    """Bind and listen on a socket file, replacing a dead socket but nothing else.

    Args:
        options: Path, mode and group of the file.
        backlog: Connections that may wait to be accepted; the kernel caps it at ``net.core.somaxconn``.

    Returns:
        The listening socket. The process's umask is as it was before.

    Raises:
        ConfigurationError: The path is too long, is no socket, or its folder is missing or not writable; the
            mode or the group is unusable.
        DatabaseLockedError: Another server listens there; ``details`` names its pid where the system tells it.
        LockTimeoutError: Another process keeps the folder locked.
    """
    path = _absolute(options.path)
    _check_mode(options)
    gid = None if options.group is None else _group_id(options.group)
    with _locked_folder(path.parent, seconds=_LOCK_SECONDS):
        _make_way(options.path)
        return _bind(options, path, gid, backlog)


def activated_listener(environ: MutableMapping[str, str] = os.environ) -> Listener | None:
    """The socket that systemd passed to this process, if it did (sd_listen_fds(3)).

    ``LISTEN_FDS``, ``LISTEN_PID`` and ``LISTEN_FDNAMES`` are removed from ``environ`` in every case, so that no
    child process takes them for its own.

    Args:
        environ: Where the variables are read.

    Returns:
        The listening socket, or None when the process was started without one.

    Raises:
        ConfigurationError: More than one descriptor was passed, or one that is not a listening Unix stream
            socket, or the variables are malformed. The message says what was got.
    """
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    environ.pop("LISTEN_PIDFDID", None)
    if not pid or not count:
        return None
    if not (_is_number(pid) and _is_number(count)):
        raise ConfigurationError(
            f"Socket activation passed LISTEN_PID={pid!r} and LISTEN_FDS={count!r}, which must be numbers.",
            remediation="Start the server through a systemd .socket unit, or without these variables.",
        )
    if int(pid) != os.getpid() or int(count) == 0:
        return None
    if int(count) != 1:
        named = f" ({names})" if names else ""
        raise ConfigurationError(
            f"Socket activation passed {count} descriptors{named}; the server takes exactly one.",
            remediation="Keep a single ListenStream= in the .socket unit.",
            details={"count": int(count), "names": names},
        )
    return _adopt(_FIRST_ACTIVATED_FD)


def probe(path: str | os.PathLike[str], timeout: float = 1.0) -> bool:
    """Whether somebody listens on a Unix stream socket.

    Connects and closes at once, without sending anything.

    Args:
        path: The socket file.
        timeout: Seconds to wait for the connection. Linux never waits: a full backlog is told at once.

    Returns:
        True when a connection was accepted or the backlog is full. False when there is no such file, nobody
        listens there, or it is not a stream socket.

    Raises:
        PermissionError: This user may not connect, so it cannot be told.
    """
    return _probe(path, timeout)[0] is _Answer.LISTENING


def peer_credentials(sock: SupportsGetsockopt) -> PeerCredentials | None:
    """Who is connected to a Unix socket, by ``SO_PEERCRED`` (unix(7)).

    Args:
        sock: A connected Unix socket, or what ``transport.get_extra_info("socket")`` returned.

    Returns:
        The credentials, or None where the platform or the socket has none.
    """
    option: int | None = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, option, _UCRED.size)
    except OSError:
        return None  # not connected any more
    pid, uid, gid = _UCRED.unpack(raw)
    return None if uid == _NO_ID else PeerCredentials(pid, uid, gid)


# Checks before anything is touched


def _absolute(path: Path) -> Path:
    """Check the path as it will be bound, and give the one that survives a change of folder."""
    if "\0" in os.fspath(path):
        raise ConfigurationError(
            f"The socket path {str(path)!r} contains a NUL character.",
            remediation="Give the path of a file with --socket; abstract addresses are not supported.",
        )
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        raise ConfigurationError(
            f"The socket path {str(path)!r} is {length} bytes long; the system allows {MAX_PATH_BYTES}.",
            remediation="Give a shorter path with --socket, for example below /run, or a relative one.",
            details={"limit": MAX_PATH_BYTES, "actual": length},
        )
    try:
        return path.absolute()  # keeps "..", which abspath() would resolve wrongly behind a symbolic link
    except OSError as error:
        _folder_refused(path.parent, error)


def _check_mode(options: ListenOptions) -> None:
    mode = options.mode
    if not 0 <= mode <= 0o777:
        raise ConfigurationError(
            f"{mode:#o} is not a socket mode.", remediation="Give permission bits in octal, for example 0660."
        )
    if options.group is not None and not mode & 0o020:
        raise ConfigurationError(
            f"The socket group {options.group!r} cannot connect with the socket mode {mode:04o}.",
            remediation="Let the group write with --socket-mode 0660, or leave out --socket-group.",
        )


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):  # ValueError: a NUL in the name
        if _is_number(group) and int(group) < _NO_ID:
            return int(group)
    raise ConfigurationError(
        f"There is no group {group!r} on this system.",
        remediation="Give an existing group or its number (getent group lists them).",
    )


def _user() -> str:
    uid = os.geteuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _folder_refused(folder: Path, error: OSError) -> NoReturn:
    """Turn what the system said about the folder into what the user can do about it."""
    if isinstance(error, FileNotFoundError):
        raise ConfigurationError(
            f"The folder {folder} for the socket does not exist.",
            remediation=f"Make it with: mkdir -p -m 0700 {folder}",
        ) from error
    if isinstance(error, NotADirectoryError):
        raise ConfigurationError(
            f"{folder} is not a folder, so no socket can be made in it.",
            remediation="Give another path with --socket.",
        ) from error
    if isinstance(error, PermissionError):
        raise ConfigurationError(
            f"The user {_user()} may not make a socket in the folder {folder}: {error.strerror}.",
            remediation="Give that user read and write permission on the folder, or another path with --socket.",
        ) from error
    raise ConfigurationError(
        f"No socket can be made in the folder {folder}: {error.strerror}.",
        remediation="Give a path on a local file system with --socket, for example below /run.",
    ) from error


# The folder lock, the probe, the takeover


@contextmanager
def _locked_folder(folder: Path, *, seconds: float) -> Iterator[None]:
    """Hold an exclusive flock on ``folder`` itself; wait for it for at most ``seconds``."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        _folder_refused(folder, error)
    try:
        deadline = time.monotonic() + seconds
        while True:
            # Polled, because a blocking flock has no timeout and anybody who can read the folder can hold it.
            try:
                flock(descriptor, LOCK_EX | LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockTimeoutError(
                        f"Another process keeps the folder {folder} locked (flock).",
                        remediation=f"See which one with: lsof {folder}; end it, or give another --socket.",
                    ) from None
                time.sleep(_LOCK_POLL_SECONDS)
            except OSError as error:  # a network file system without flock on folders
                _folder_refused(folder, error)
        try:
            yield
        finally:
            flock(descriptor, LOCK_UN)  # closing is not enough when a child forked meanwhile has a copy
    finally:
        os.close(descriptor)


class _Answer(Enum):
    LISTENING = auto()
    NOBODY = auto()
    OTHER_KIND = auto()


def _probe(path: str | os.PathLike[str], timeout: float) -> tuple[_Answer, PeerCredentials | None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(os.fspath(path))
        except (BlockingIOError, TimeoutError):
            return _Answer.LISTENING, None  # the backlog is full: busy, but alive
        except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError):
            return _Answer.NOBODY, None
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                return _Answer.OTHER_KIND, None  # a live datagram or seqpacket socket
            raise
        return _Answer.LISTENING, peer_credentials(sock)


def _make_way(path: Path) -> None:
    """Leave no file at ``path``: remove a dead socket, refuse everything else. The folder is locked."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        _folder_refused(path.parent, error)
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(
            f"{path} exists and is {_kind(mode)}, not a socket; it was left as it is.",
            remediation="Give another path with --socket, or move that file away yourself.",
        )
    try:
        answer, peer = _probe(path, timeout=1.0)
    except OSError as error:
        raise ConfigurationError(
            f"The user {_user()} cannot tell whether a server listens on {path}: {error.strerror}.",
            remediation="Start as the user that owns this socket, or give another path with --socket.",
        ) from error
    if answer is _Answer.LISTENING:
        # For an activated socket the pid is systemd's, which is the one that listens.
        who = f"Another server (pid {peer.pid})" if peer is not None and peer.pid else "Another server"
        raise DatabaseLockedError(
            f"{who} listens on {path}.",
            remediation=f"Use it, stop it with toondb-server stop --socket {path}, or give another --socket.",
            details={"socket": str(path), "pid": None if peer is None else peer.pid, "role": "listener"},
        )
    if answer is _Answer.OTHER_KIND:
        raise ConfigurationError(
            f"{path} is a socket of another kind that another program has open; it was left as it is.",
            remediation="Give another path with --socket.",
        )
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _folder_refused(path.parent, error)


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISREG(mode):
        return "a regular file"
    return "a pipe or device"


def _bind(options: ListenOptions, path: Path, gid: int | None, backlog: int) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # close-on-exec by default (PEP 446)
    try:
        sock.setblocking(False)
        # The umask belongs to the whole process: a file that another thread makes right now is more private
        # than it asked for, never less.
        previous = os.umask(_CREATION_UMASK)
        try:
            sock.bind(os.fspath(options.path))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigurationError(
                    f"Another program made {path} while the server started; it was left as it is.",
                    remediation="Start again, or give a path in a folder where only the server's user can write.",
                ) from error
            _folder_refused(path.parent, error)
        finally:
            os.umask(previous)
        listener = Listener(sock, path, activated=False)
    except BaseException:
        sock.close()
        raise
    try:
        _grant(listener, options, gid)
        sock.listen(backlog)
    except BaseException:
        # Not close(): that would wait for the folder lock, which is ours already.
        if listener.still_ours():
            with suppress(OSError):
                path.unlink()
        listener.path = None
        listener.close()
        raise
    return listener


def _grant(listener: Listener, options: ListenOptions, gid: int | None) -> None:
    """Give the file its group and mode; it is not listening yet, so nobody can connect meanwhile."""
    if not listener.still_ours():
        raise ConfigurationError(
            f"{options.path} was replaced by another program while the server started.",
            remediation="Give a path in a folder where only the server's user can write.",
        )
    # Through the pinned inode where there is one: a path could be swapped for a link to another file.
    pin = listener._pin
    target = f"/proc/self/fd/{pin}" if pin >= 0 and os.path.exists(f"/proc/self/fd/{pin}") else options.path
    try:
        if gid is not None:
            os.chown(target, -1, gid)
        # Always, also for 0600: a default ACL on the folder overrides the umask (acl(5)).
        os.chmod(target, options.mode)
    except OSError as error:
        raise ConfigurationError(
            f"The user {_user()} may not give the socket {options.path} to the group {options.group!r} with "
            f"mode {options.mode:04o}: {error.strerror}.",
            remediation="Add the user to that group, or leave out --socket-group.",
        ) from error


# Socket activation


def _adopt(descriptor: int) -> Listener:
    """Check that a passed descriptor is what the daemon can serve, and take it."""
    try:
        is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        _wrong_descriptor("a closed descriptor")
    if not is_socket:
        os.close(descriptor)
        _wrong_descriptor("a file that is not a socket")
    sock = socket.socket(fileno=descriptor)
    try:
        if sock.family != socket.AF_UNIX:
            _wrong_descriptor(f"a socket of family {_name(sock.family)}")
        if sock.type != socket.SOCK_STREAM:
            _wrong_descriptor(f"a Unix socket of type {_name(sock.type)}")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            _wrong_descriptor("a Unix socket that does not listen (a connection, as with Accept=yes)")
        sock.set_inheritable(False)
        sock.setblocking(False)
        name = sock.getsockname()
    except BaseException:
        sock.close()
        raise
    # An abstract address comes as bytes that start with NUL, an unnamed one as an empty string.
    return Listener(sock, Path(name) if isinstance(name, str) and name else None, activated=True)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _name(value: int) -> str:
    return getattr(value, "name", str(value))


def _wrong_descriptor(got: str) -> NoReturn:
    raise ConfigurationError(
        f"Socket activation passed {got}; the server needs a listening Unix stream socket.",
        remediation="Use ListenStream=/a/path and Accept=no in the .socket unit.",
        details={"got": got},
    )
