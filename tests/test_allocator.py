"""Freed memory is kept, whatever heap a thread has."""

import ctypes
import json
import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from geodl_dask import allocator

PROGRAM = """
import json, resource, threading
from geodl_dask.allocator import keep_freed_memory, with_kept_memory

held = threading.Barrier(5)
for _ in range(4):  # they take what there is of heaps before anybody can say that one is enough
    threading.Thread(target=lambda: (bytearray(10_000), held.wait(), held.wait()), daemon=True).start()
held.wait()
keep_freed_memory()

def pages_taken():
    taken = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        b"1" * (100 << 20)  # larger than a heap that is not the first can be
        taken.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
    return max(taken[1:])

found = []
for _ in range(8):
    thread = threading.Thread(target=lambda: found.append((pages_taken(), with_kept_memory(pages_taken))))
    thread.start()
    thread.join()
print(json.dumps(found))
held.wait()
"""


def obstacle() -> str:
    """Why here nothing can be seen of it."""
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if platform.libc_ver()[0] != "glibc" or tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 35):
        return "only glibc 2.35 or newer keeps so large a piece"
    return "pages are large here" if pages.exists() and "[always]" in pages.read_text() else ""


@pytest.mark.skipif(bool(obstacle()), reason=obstacle())
def test_a_thread_with_a_heap_of_its_own_has_its_memory_kept_too():
    environment = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"}
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    pages = (100 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert max(plain for plain, _ in found) > pages / 2  # or there is nothing to be shown
    assert max(kept for _, kept in found) < pages / 10


@pytest.fixture
def other_heap(monkeypatch):
    """Every thread has a heap of its own, but for the helpers: glibc deals heaps out as it pleases."""
    monkeypatch.setattr(allocator, "_has_first_heap", lambda: "network" in threading.current_thread().name)
    monkeypatch.setattr(allocator, "_idle_helpers", [])
    monkeypatch.setattr(allocator, "_search_has_failed", threading.Event())


@pytest.mark.usefixtures("other_heap")
def test_calls_run_side_by_side_and_their_helpers_serve_again():
    meeting, threads = threading.Barrier(2, timeout=30), []

    def meet():
        meeting.wait()
        threads.append(threading.get_ident())

    for _ in range(3):
        callers = [threading.Thread(target=allocator.with_kept_memory, args=(meet,)) for _ in range(2)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert (len(threads), len(set(threads)), len(allocator._idle_helpers)) == (6, 2, 2)


@pytest.mark.usefixtures("other_heap")
def test_an_error_is_the_callers_and_the_helper_goes_on():
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            allocator.with_kept_memory(divmod, 1, 0)
    assert allocator.with_kept_memory(divmod, 7, 2) == (3, 1)
    assert len(allocator._idle_helpers) == 1


def wait_for_threads(most):
    for _ in range(100):
        if threading.active_count() <= most:
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"{threading.active_count()} threads, and not {most}")


@pytest.mark.parametrize("cause", ["each has a heap of its own", "the system begins no more"])
def test_where_no_thread_gets_the_first_heap_the_caller_computes_itself_and_none_is_sought_again(cause, monkeypatch):
    begun = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *given):
            begun.append(self)
            if cause == "the system begins no more":
                raise RuntimeError("can't start new thread")
            return super().submit(*given)

    monkeypatch.setattr(allocator, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(allocator, "_has_first_heap", lambda: False)
    monkeypatch.setattr(allocator, "_idle_helpers", [])
    monkeypatch.setattr(allocator, "_search_has_failed", threading.Event())
    before = threading.active_count()
    assert allocator.with_kept_memory(threading.current_thread) is threading.current_thread()
    sought = len(begun)
    assert sought == (1 if cause == "the system begins no more" else allocator._TRIES)
    assert allocator.with_kept_memory(threading.current_thread) is threading.current_thread()
    assert len(begun) == sought
    wait_for_threads(before)


FORKING = """
import os, sys, threading
from geodl_dask import allocator

allocator._has_first_heap = lambda: "network" in threading.current_thread().name
assert allocator.with_kept_memory(divmod, 7, 2) == (3, 1)
assert len(allocator._idle_helpers) == 1
child = os.fork()
if not child:
    os._exit(allocator.with_kept_memory(divmod, 7, 2) != (3, 1))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_was_forked_waits_for_no_helper_that_it_has_not_got():
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr[-2000:]


def test_memory_of_another_library_is_left_alone(monkeypatch):
    """A library in glibc's place (LD_PRELOAD) is made up: what stands before its pieces is not known."""

    class Other:
        malloc = ctypes.CDLL(None).free

    plain = ctypes.CDLL
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Other if name is None else plain(name))
    assert not allocator._is_glibc.__wrapped__()


@pytest.mark.parametrize("largest", [1 << 25, 0])
def test_an_old_c_library_that_refuses_is_not_made_slower(largest, monkeypatch):
    """glibc before 2.35 takes no threshold above 32 MB; with the other settings alone it would be at its lowest."""
    calls = []

    class Library:
        @staticmethod
        def mallopt(setting, value):
            calls.append((setting, value))
            return int(setting != allocator._MMAP_THRESHOLD or value <= largest)

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Library)
    monkeypatch.setattr(allocator, "_is_glibc", lambda: True)
    allocator.keep_freed_memory()
    taken = [setting for setting, _ in calls if setting != allocator._MMAP_THRESHOLD]
    assert taken == ([allocator._TRIM_THRESHOLD, allocator._ARENA_MAX] if largest else [])
