"""Telling the service manager how the daemon is: the client side of sd_notify(3), without a library.

The protocol is one datagram of ``NAME=value`` lines to the Unix socket in ``$NOTIFY_SOCKET``; a leading ``@``
means the abstract namespace. Without the variable everything here does nothing, so the daemon calls it in
every mode. A service manager that went away must never harm the daemon: nothing here raises.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

__all__ = ["Notifier", "watchdog_interval"]

#: ``READY=1`` is worth a short wait when the manager is busy, because losing it fails the whole start.
_READY_SECONDS = 2.0
#: A status is cut to this many characters; systemd ignores datagrams over 4096 bytes (PIPE_BUF).
_STATUS_CHARACTERS = 512


class Notifier:
    """Sends the daemon's state to the service manager.

    Every method returns whether the datagram was handed over; False also when notification is disabled, the
    manager is gone or its queue is full. Only :meth:`ready` may wait, for two seconds at most; the others
    are safe to call on an event loop. The socket is made for each message, so a notifier survives fork and
    a restart of the manager.

    Args:
        environ: Where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are read; ``os.environ`` when omitted.

    Attributes:
        enabled: Whether there is a manager to talk to. An unset variable, or an address that is neither a
            path nor abstract (``vsock:`` of virtual machines), disables.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        self.enabled = len(address) > 1 and address[0] in "/@"
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_interval = watchdog_interval(environ) if self.enabled else None

    def ready(self, status: str | None = None) -> bool:
        """The daemon accepts connections.

        Args:
            status: One line for ``systemctl status``.
        """
        lines = ["READY=1"] if status is None else ["READY=1", _status_line(status)]
        return self._send(lines, timeout=_READY_SECONDS)

    def status(self, text: str) -> bool:
        """Show ``text`` in ``systemctl status``; line breaks become spaces, long texts are cut."""
        return self._send([_status_line(text)])

    def stopping(self, status: str | None = None) -> bool:
        """The daemon begins its orderly end."""
        return self._send(["STOPPING=1"] if status is None else ["STOPPING=1", _status_line(status)])

    def watchdog(self) -> bool:
        """The daemon is alive; to be sent every :meth:`watchdog_interval` seconds."""
        return self._send(["WATCHDOG=1"])

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for ``seconds`` more from now for a start or stop that is slow, and repeat while it lasts."""
        return self._send([f"EXTEND_TIMEOUT_USEC={max(1, int(seconds * 1_000_000))}"])

    def watchdog_interval(self) -> float | None:
        """Seconds between calls of :meth:`watchdog`; None when disabled. See :func:`watchdog_interval`."""
        return self._watchdog_interval

    def _send(self, lines: list[str], *, timeout: float = 0.0) -> bool:
        if not self.enabled:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(timeout)
                sock.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except (OSError, ValueError):  # ValueError: an address that the system cannot express
            return False
        return True


def watchdog_interval(environ: Mapping[str, str] | None = None) -> float | None:
    """How often the daemon must send :meth:`Notifier.watchdog`, from sd_watchdog_enabled(3).

    Args:
        environ: Where ``WATCHDOG_USEC`` (microseconds) and ``WATCHDOG_PID`` are read; ``os.environ`` when omitted.

    Returns:
        **Half** of the manager's timeout in seconds, as its documentation advises: this is the period to use as
        it is. None when the watchdog is off, meant for another process, or malformed.
    """
    environ = os.environ if environ is None else environ
    pid = environ.get("WATCHDOG_PID")
    if pid is not None and pid != str(os.getpid()):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    microseconds = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
    return microseconds / 2_000_000 if microseconds else None


def _status_line(text: str) -> str:
    # A line break would start another assignment, such as MAINPID=.
    line = "".join(character if character.isprintable() else " " for character in text)
    return "STATUS=" + line[:_STATUS_CHARACTERS]
