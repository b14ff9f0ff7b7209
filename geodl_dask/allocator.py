"""Let the C library keep memory that was freed, which torch asks for again a moment later.

A network on a CPU frees and takes tensors of tens of megabytes hundreds of times a second. glibc gives such pieces back
to the system at once, and the system hands out new ones zeroed, page by page: with large tiles that took half of the
time. ONNX Runtime keeps its own memory and had looked twice as fast for that reason alone.
"""

from __future__ import annotations

import ctypes
import platform

import psutil

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_LARGEST_BYTES, _LARGEST_OF_OLD_BYTES = 1 << 30, 1 << 25
_KEPT_BYTES = (1 << 31) - 1

_SHORTAGES = "allocate memory", "out of memory", "not enough memory", "bad_alloc", "alloc_failed"

LESS_MEMORY = 'Smaller tiles take less (--tile-size), and so do fewer at once (--arguments "batch_size 1").'
"""What to do where there is not memory enough for a network."""


def keep_freed_memory() -> None:
    """From now on this process keeps up to 2 GiB that it has freed. Does nothing where the C library is not glibc.

    Where other threads have begun before, later ones too may get a part of the heap of their own, in which nothing
    above 64 MB can be kept; so call it first, or have the process begin with MALLOC_ARENA_MAX=1, as our workers do.
    """
    if not _is_glibc():
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Before 2.35 glibc refuses more than 32 MB; with the other settings alone everything would be slower.
    if not (mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES) or mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD_BYTES)):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_ARENA_MAX, 1)


def give_back_freed_memory() -> None:
    """Give the system what this process keeps by now. Does nothing where the C library is not glibc."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def is_memory_shortage(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that there was not memory enough."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _SHORTAGES)


def bytes_in_use() -> int:
    """Memory that this process has taken and not freed, without what the C library keeps; else all that it occupies."""
    if not (_is_glibc() and hasattr(ctypes.CDLL(None), "mallinfo2")):  # glibc 2.33
        return int(psutil.Process().memory_info().rss)
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallInfo
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


class _MallInfo(ctypes.Structure):
    """malloc.h: in use on the heap (uordblks), mapped each for itself (hblkhd)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    ]  # fmt: skip


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
