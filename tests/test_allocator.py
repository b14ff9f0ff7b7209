"""Freed memory is kept, whatever heap a thread has."""

import json
import os
import platform
import subprocess
import sys
import threading

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only of glibc freed memory is kept")
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


def test_where_no_thread_gets_the_first_heap_the_caller_computes_itself(monkeypatch):
    monkeypatch.setattr(allocator, "_has_first_heap", lambda: False)
    monkeypatch.setattr(allocator, "_idle_helpers", [])
    before = threading.active_count()
    assert allocator.with_kept_memory(threading.current_thread) is threading.current_thread()
    assert allocator._idle_helpers == []
    for _ in range(100):
        if threading.active_count() <= before:
            break
        threading.Event().wait(0.05)
    assert threading.active_count() <= before


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
