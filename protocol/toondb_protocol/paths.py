"""Hierarchical paths: ``users/alice/email`` or its segments, stored under the joined key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .errors import InvalidPathError

__all__ = ["join_path", "path_key", "split_path"]


def split_path(path: str | Sequence[str]) -> list[str]:
    """The segments of a path.

    Raises:
        InvalidPathError: The path or a segment is empty, a segment contains ``/``, or it is not text.
    """
    if isinstance(path, str):
        segments = path.split("/")
    elif isinstance(path, (bytes, bytearray, memoryview)):
        raise InvalidPathError("a path is text or a list of text segments, not bytes.")
    elif not isinstance(path, Iterable):
        raise InvalidPathError(f"a path is text or a list of text segments, not {type(path).__name__}.")
    else:
        segments = list(path)
    check_segments(segments)
    return segments


def check_segments(segments: Sequence[str]) -> None:
    """Raise InvalidPathError unless every segment can be part of a path."""
    if not segments:
        raise InvalidPathError("the path has no segments.")
    for segment in segments:
        if not isinstance(segment, str):
            raise InvalidPathError(f"path segment {segment!r} is not text.")
        if not segment:
            raise InvalidPathError(f"the path {'/'.join(map(str, segments))!r} has an empty segment.")
        if "/" in segment:
            raise InvalidPathError(f"path segment {segment!r} contains a slash.")


def join_path(segments: Sequence[str]) -> bytes:
    """The key under which a path is stored."""
    check_segments(segments)
    try:
        return "/".join(segments).encode()
    except UnicodeEncodeError:
        raise InvalidPathError(f"the path {segments!r} is not valid Unicode text.") from None


def path_key(path: str | Sequence[str]) -> bytes:
    """The key of a path given as text or segments."""
    return join_path(split_path(path))
