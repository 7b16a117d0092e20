"""toondb_server.notify against a real datagram socket, as the service manager has one."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toondb_server.notify import Notifier, watchdog_interval

SECONDS = 30.0  # bound of a wait for a datagram that was sent already


class Manager:
    """The service manager's end of ``NOTIFY_SOCKET``."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.socket = sock
        self.environ = {"NOTIFY_SOCKET": address}

    def receive(self) -> str:
        return self.socket.recv(65536).decode()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[Manager]:
    if request.param == "abstract" and not sys.platform.startswith("linux"):
        pytest.skip("the abstract namespace exists on Linux only")
    with (
        tempfile.TemporaryDirectory(prefix="toondb-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        address = f"{folder}/notify" if request.param == "path" else f"@toondb-notify-{os.getpid()}"
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(SECONDS)
        yield Manager(sock, address)


def test_messages(manager: Manager) -> None:
    notifier = Notifier(manager.environ)
    assert notifier.enabled
    assert notifier.ready()
    assert manager.receive() == "READY=1"
    assert notifier.ready("serving 3 clients")
    assert manager.receive() == "READY=1\nSTATUS=serving 3 clients"
    assert notifier.status("höher")
    assert manager.receive() == "STATUS=höher"
    assert notifier.watchdog()
    assert manager.receive() == "WATCHDOG=1"
    assert notifier.extend_timeout(1.5)
    assert manager.receive() == "EXTEND_TIMEOUT_USEC=1500000"
    assert notifier.stopping()
    assert manager.receive() == "STOPPING=1"
    assert notifier.stopping("aborting 2 transactions")
    assert manager.receive() == "STOPPING=1\nSTATUS=aborting 2 transactions"


@given(text=st.text(max_size=3000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_status_is_one_assignment_whatever_it_contains(manager: Manager, text: str) -> None:
    assert Notifier(manager.environ).status(text)
    raw = manager.socket.recv(65536)
    assert len(raw) <= 4096
    assert raw.startswith(b"STATUS=")
    assert len(raw.splitlines()) == 1
    assert raw.decode().isprintable()


def test_status_cannot_smuggle_another_assignment(manager: Manager) -> None:
    Notifier(manager.environ).status("fine\nMAINPID=1")
    assert manager.receive() == "STATUS=fine MAINPID=1"


def test_environment_of_the_process_is_the_default(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.environ["NOTIFY_SOCKET"])
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    notifier = Notifier()
    assert notifier.watchdog_interval() == watchdog_interval() == 15.0
    assert notifier.watchdog()
    assert manager.receive() == "WATCHDOG=1"


@pytest.mark.parametrize("address", [None, "", "/", "@", "relative/notify", "vsock:2:1234", "unixgram:/x"])
def test_disabled(address: str | None) -> None:
    environ = {"WATCHDOG_USEC": "30000000"} | ({} if address is None else {"NOTIFY_SOCKET": address})
    notifier = Notifier(environ)
    assert not notifier.enabled
    assert notifier.watchdog_interval() is None
    assert not any([notifier.ready("up"), notifier.status("x"), notifier.watchdog(), notifier.stopping()])


@pytest.mark.parametrize(
    "address", ["/nowhere/notify", "/" + "x" * 200, "/a\0b", "@" + "x" * 200, "/dev/null", "/\ud800"]
)
def test_unusable_address_does_not_raise(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    assert not any([notifier.ready("up"), notifier.status("x"), notifier.watchdog(), notifier.stopping()])


def test_a_manager_that_went_away_and_came_back() -> None:
    with tempfile.TemporaryDirectory(prefix="toondb-") as folder:
        path = Path(folder, "notify")
        notifier = Notifier({"NOTIFY_SOCKET": str(path)})
        for _ in range(2):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.bind(str(path))
                manager.settimeout(SECONDS)
                assert notifier.watchdog()
                assert manager.recv(100) == b"WATCHDOG=1"
            assert not notifier.watchdog()  # refused: the file is there, its owner is not
            path.unlink()
            assert not notifier.ready()  # no such file


def test_a_full_queue_drops_instead_of_blocking(manager: Manager) -> None:
    notifier = Notifier(manager.environ)
    sent = 0
    while notifier.watchdog():  # nobody reads; a blocking send would hang here for ever
        sent += 1
        assert sent < 1_000_000
    for _ in range(sent):
        assert manager.receive() == "WATCHDOG=1"
    assert notifier.watchdog()


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "1"}, 0.0000005),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, None),
        ({}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "30s"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({"WATCHDOG_USEC": "\u0663"}, None),
    ],
)
def test_watchdog_interval_is_half_of_the_timeout(environ: dict[str, str], interval: float | None) -> None:
    assert watchdog_interval(environ) == interval
