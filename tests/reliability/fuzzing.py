"""Case after case of broken input: each ends in a result or in an error of ours, soon, and in little memory."""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from collections.abc import Callable

from geodl_dask.errors import GeodlError

from .conftest import SEED, chance

SLOWEST_S = 30.0
"""A case that takes longer hangs; generous, since the machine may be busy."""
MOST_MB = 700
"""More than this process had at its peak before."""


def fuzz(name: str, cases: int, run: Callable[[random.Random], str], counted: Callable[..., None]) -> Counter[str]:
    """How the cases ended: by what ``run`` returned, or an error of ours that it raised."""
    ends, lost, before_mb = Counter(), [], peak_mb()
    for case in range(cases):
        begun = time.monotonic()
        try:
            ends[run(chance(name, case))] += 1
        except GeodlError as error:
            assert [type(each) for each in error.args] == [str]
            ends[type(error).__name__] += 1
        except Exception as error:
            lost.append(f"case {case} of seed {SEED}: {type(error).__name__}: {str(error)[:300]}")
        if time.monotonic() - begun > SLOWEST_S:
            lost.append(f"case {case} of seed {SEED} took {time.monotonic() - begun:.0f} s")
    if (more_mb := peak_mb() - before_mb) > MOST_MB:
        lost.append(f"a case took {more_mb:.0f} MB")
    told = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    counted(f"fuzz: {name}", cases, cases, max(0, cases - len(lost)), told)
    assert not lost, "\n".join(lost[:20])
    return ends


def peak_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
