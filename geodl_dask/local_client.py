"""A Dask client with workers of its own on this machine, of which nothing stays behind."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import Client, core


class LocalClient(Client):
    """A client that starts its own workers, and that memory has forgotten when it is closed."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        loop: Any = self.loop
        loop.asyncio_loop.set_exception_handler(_report)

    def close(self, *args: Any, **keywords: Any) -> None:
        """As Client has it."""
        super().close(*args, **keywords)
        forget_servers()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio says of its loop, less of a wait that has timed out when nobody waited any more.

    distributed leaves one now and then where it closes a stream that is about to send, after a run that went well.
    """
    is_left = isinstance(context.get("exception"), TimeoutError) and "never retrieved" in context.get("message", "")
    if not is_left:
        loop.default_exception_handler(context)


def forget_servers() -> None:
    """Let go of schedulers and workers of this process that have been closed.

    distributed 2026.8 keeps for ever what it looked up of a method, and with it the object.
    """
    if looked_up := getattr(core, "_expects_comm", None):
        looked_up.cache_clear()
