"""Let the C library keep memory that was freed, which torch asks for again a moment later.

A network on a CPU frees and takes tensors of tens of megabytes hundreds of times a second. glibc gives such pieces back
to the system at once, and the system hands out new ones zeroed, page by page: with large tiles that took half of the
time. ONNX Runtime keeps its own memory and had looked twice as fast for that reason alone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import ParamSpec, TypeVar

import psutil

Given = ParamSpec("Given")
Answer = TypeVar("Answer")

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
_LARGEST_BYTES, _LARGEST_OF_OLD_BYTES = 1 << 30, 1 << 25
_KEPT_BYTES = (1 << 31) - 1
_NON_MAIN_ARENA = 4
"""Of the word before a piece of memory, in glibc: the piece is of another heap than the process's first."""
_PIECE_BYTES = 1 << 14
_TRIES = 64
"""Threads are begun until one has the first heap; glibc deals heaps out in turn."""

_SHORTAGES = "allocate memory", "out of memory", "not enough memory", "bad_alloc", "alloc_failed"

LESS_MEMORY = "Smaller tiles take less (--tile-size, tile_size=)."
"""What to do where there is not memory enough for a network."""


def keep_freed_memory() -> None:
    """From now on this process keeps up to 2 GiB that it has freed. Does nothing where the C library is not glibc.

    Where other threads have begun before, later ones too may get a heap of their own, in which nothing above 64 MB can
    be kept: see `with_kept_memory`. With MALLOC_ARENA_MAX=1 in its environment a process has one heap from the start.
    """
    if not _is_glibc():
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Before 2.35 glibc refuses more than 32 MB; with the other settings alone everything would be slower.
    if not (mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES) or mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD_BYTES)):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_ARENA_MAX, 1)


def with_kept_memory(function: Callable[Given, Answer], *args: Given.args, **kwargs: Given.kwargs) -> Answer:
    """Call a function where what it frees is kept: in this thread, or in another if this one has a heap of its own.

    So it must not hang on what belongs to a thread. Calls from several threads run side by side. Where glibc gives
    every thread a heap of its own (it does up to eight a core, if there were more than eight before anybody said that
    one is enough), it is this thread all the same.
    """
    helper = None if _has_first_heap() else _lend_helper()
    if helper is None:
        return function(*args, **kwargs)
    try:
        return helper.submit(function, *args, **kwargs).result()
    finally:
        _idle_helpers.append(helper)


_idle_helpers: list[ThreadPoolExecutor] = []
"""Of one thread each, which has the process's first heap."""
_of_thread = threading.local()
_search = threading.Lock()
_search_has_failed = threading.Event()


def _has_first_heap() -> bool:
    """Whether this thread takes its memory from the heap that the process began with; so it is without glibc, too."""
    if not hasattr(_of_thread, "has_first_heap"):
        _of_thread.has_first_heap = not _is_glibc() or not _is_piece_of_another_heap()
    return bool(_of_thread.has_first_heap)


def _is_piece_of_another_heap() -> bool:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    piece = library.malloc(ctypes.c_size_t(_PIECE_BYTES))
    try:
        word = ctypes.c_size_t.from_address(piece - ctypes.sizeof(ctypes.c_size_t)).value
    finally:
        library.free(piece)
    return bool(word & _NON_MAIN_ARENA)


def _lend_helper() -> ThreadPoolExecutor | None:
    """One that is idle, or a new one; None where no thread gets the first heap."""
    try:
        return _idle_helpers.pop()
    except IndexError:
        with _search:
            return None if _search_has_failed.is_set() else _new_helper()


def _new_helper() -> ThreadPoolExecutor | None:
    tried: list[ThreadPoolExecutor] = []  # they all stay until one fits, or the next would get the same heap again
    try:
        for _ in range(_TRIES):
            tried.append(ThreadPoolExecutor(1, thread_name_prefix="geodl-dask-network"))
            if tried[-1].submit(_has_first_heap).result():
                return tried.pop()
    except RuntimeError:  # the system begins no more threads
        pass
    finally:
        for helper in tried:
            helper.shutdown(wait=False)
    _search_has_failed.set()
    return None


def _forget_helpers() -> None:
    """In a process that was forked: it has not got their threads."""
    global _search
    _idle_helpers.clear()
    _search = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


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


@cache
def _is_glibc() -> bool:
    """Whether memory is glibc's own, and not of a library that was loaded in its place (jemalloc, tcmalloc)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    used, own = (ctypes.cast(ctypes.CDLL(name).malloc, ctypes.c_void_p).value for name in (None, "libc.so.6"))
    return used == own
