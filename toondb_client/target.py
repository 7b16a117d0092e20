"""What a client connects to: a socket path or a ``toondb+unix://`` URL."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from toondb_protocol.errors import ConfigurationError

__all__ = ["URL_SCHEME", "socket_path"]

URL_SCHEME = "toondb+unix"


def socket_path(target: str | os.PathLike[str]) -> str:
    """The socket path of a target.

    Args:
        target: ``./data/toondb.sock``, ``toondb+unix:///run/toondb/main/toondb.sock``, or a database folder
            (then its ``toondb.sock``).

    Raises:
        ConfigurationError: It is empty, a URL of another scheme, or a URL with parts that mean nothing here.
    """
    try:
        text = os.fspath(target)
    except TypeError:
        raise ConfigurationError(f"the target must be text or a path, not {type(target).__name__}.") from None
    if not isinstance(text, str):
        raise ConfigurationError(f"the target must be text or a path, not {type(text).__name__}.")
    if "://" in text:
        try:
            url = urlsplit(text)
        except ValueError as error:
            raise ConfigurationError(f"the URL {text!r} is malformed: {error}.") from None
        if url.scheme != URL_SCHEME:
            raise ConfigurationError(
                f"the URL scheme {url.scheme!r} is unknown.", remediation=f"Write {URL_SCHEME}:///path/to/toondb.sock"
            )
        if url.netloc or url.query or url.fragment:
            raise ConfigurationError(
                f"the URL {text!r} has more than a path.", remediation=f"Write {URL_SCHEME}:///path/to/toondb.sock"
            )
        text = unquote(url.path, errors="surrogateescape")
    if not text or "\0" in text:
        raise ConfigurationError("the socket path is empty or contains NUL.")
    text = os.path.expanduser(text)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ConfigurationError(f"the socket path {text!r} is not valid Unicode text.") from None
    if os.path.isdir(text):
        return os.path.join(text, "toondb.sock")
    return text
