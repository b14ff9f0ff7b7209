"""Local workers, or a scheduler that runs already -> a Dask client."""

from __future__ import annotations

import importlib.util
import signal

from dask.system import CPU_COUNT
from distributed import Client, Worker, WorkerPlugin

from .errors import RequestError


def connect(cluster: str = "local", *, workers: int | None = None) -> Client:
    """A Dask client to compute on; close it, or use it in a ``with`` statement.

    cluster : ``"local"``, or the address of a scheduler that runs.
    workers : local worker processes, which share the cores; None computes in this process, which needs no
        start-up and no second copy of the model. A scheduler that runs has its own.
    Raises RequestError for what is no cluster or cannot be reached, or fewer workers than one.
    """
    if cluster != "local":
        if "://" not in cluster:
            raise RequestError(f"cluster is {cluster!r}; local or a scheduler's address (tcp://host:port) is needed.")
        if workers is not None:
            raise RequestError(f"workers is {workers}; the scheduler at {cluster} has its own. Leave it out.")
        try:
            return Client(cluster)
        except (OSError, ValueError) as error:
            raise RequestError(f"No Dask scheduler can be reached at {cluster}: {error}. Does it run?") from error
    if workers is not None and workers < 1:
        raise RequestError(f"workers is {workers}; at least 1 is needed.")
    count = workers or 1
    client = Client(
        n_workers=count,
        threads_per_worker=max(1, CPU_COUNT // count),
        processes=workers is not None,
        dashboard_address="127.0.0.1:0" if importlib.util.find_spec("bokeh") else None,
    )
    if workers is not None:
        client.register_plugin(_InterruptsAreForTheClient())
    return client


class _InterruptsAreForTheClient(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal: worker processes leave it to the client, which closes them."""

    name = "interrupts-are-for-the-client"

    def setup(self, worker: Worker) -> None:
        """Runs in the main thread of a worker process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def dashboard_of(client: Client) -> str | None:
    """Address of the dashboard of the client's scheduler; None where it has none (bokeh is not installed)."""
    port = client.scheduler_info()["services"].get("dashboard")
    if not port:
        return None
    # The dashboard of a scheduler in this process listens to this machine alone, whatever the link says.
    is_inside = client.scheduler_info()["address"].startswith("inproc")
    return f"http://127.0.0.1:{port}/status" if is_inside else client.dashboard_link
