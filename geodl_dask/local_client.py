"""A Dask client with workers of its own on this machine, of which nothing stays behind."""

from __future__ import annotations

from typing import Any

from distributed import Client, core


class LocalClient(Client):
    """A client that starts its own workers, and that memory has forgotten when it is closed."""

    def close(self, *args: Any, **keywords: Any) -> None:
        """As Client has it."""
        super().close(*args, **keywords)
        forget_servers()


def forget_servers() -> None:
    """Let go of schedulers and workers of this process that have been closed.

    distributed 2026.8 keeps for ever what it looked up of a method, and with it the object.
    """
    if looked_up := getattr(core, "_expects_comm", None):
        looked_up.cache_clear()
