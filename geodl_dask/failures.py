"""What happens to blocks, in words, and what ends a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask.array as da
from distributed import Client, KilledWorker
from distributed.client import ClosedClientError

from .blocks import Index
from .errors import BlockFailedError, GeodlError, SchedulerLostError

NONE = "none could be computed, so the others were not tried"
NAMED = 3
"""Blocks that an error names, of those that failed."""


def killed(error: KilledWorker, memory: str) -> str:
    """Why a block failed whose worker died."""
    return (
        f"its worker process died {error.allowed_failures + 1} times. Most often that is memory{memory}: take smaller "
        "--chunks (chunks=) or fewer workers"
    )


def lost(client: Client) -> SchedulerLostError:
    """The error for a scheduler that does not answer."""
    where = f" at {client.scheduler.address}" if client.scheduler else ""
    return SchedulerLostError(f"The Dask scheduler{where} was lost. Start it again, and go on.")


@contextmanager
def noticing_loss(client: Client) -> Iterator[None]:
    """What distributed raises once its client has given the scheduler up becomes SchedulerLostError.

    Several errors, by what was asked of it (distributed 2026.8), and by `Client.cancel` in a ``finally``, too.
    """
    try:
        yield
    except (OSError, RuntimeError, AttributeError, ClosedClientError) as error:
        if isinstance(error, GeodlError) or client.status not in ("closing", "closed"):
            raise
        raise lost(client) from error


def not_kept(array: da.Array, index: Index, cause: str) -> BlockFailedError:
    """The error for a block that its store could not keep."""
    return BlockFailedError(f"The block at {place(array, index)} could not be kept: {cause}")


def failure(array: da.Array, failed: dict[Index, str], how: str) -> BlockFailedError:
    """The error for blocks that could not be computed."""
    causes = [f"{place(array, index)}: {failed[index]}" for index in sorted(failed)[:NAMED]]
    more = ["and more"] if len(failed) > NAMED else []
    return BlockFailedError(
        f"{len(failed):,} of {array.npartitions:,} blocks failed; {how}. At {'; '.join([*causes, *more])}"
    )


def place(array: da.Array, index: Index) -> str:
    """Where in the raster a block begins."""
    row, col = (sum(lengths[:position]) for lengths, position in zip(array.chunks, index, strict=True))
    return f"row {row}, column {col}"


def event(name: str, **facts: Any) -> dict[str, Any]:
    """What a log record carries beside its text, for handlers that want numbers (see `run_log`)."""
    return {"event": name, "facts": facts}
