"""The options of the command line that say which workers a run has."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from .cluster_config import QUEUES, ClusterConfig, read_cluster_config

_OF_QUEUES = f"(of {', '.join(QUEUES)})"


class _Workers(click.ParamType[Any]):
    """A number, or the least and the most."""

    name = "N|MIN:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from .errors import RequestError

        try:
            return read_cluster_config(cluster=QUEUES[0], workers=value).workers
        except RequestError as error:
            self.fail(str(error), param, ctx)


def cluster_options(command: Any) -> Any:
    """Add the options; `take_cluster_config` reads them."""
    options = (
        click.option(
            "--cluster", metavar="WHERE", help="local (default), cuda, slurm, pbs, lsf, sge, the address of a "
            "scheduler (tcp://host:port), or the path of its scheduler file.",
        ),
        click.option(
            "--cluster-config", metavar="FILE", type=click.Path(dir_okay=False),
            help="YAML with these options: their names with _ for -, directives and setup_lines as lists.",
        ),
        click.option(
            "--workers", type=_Workers(),
            help="Worker processes, at most one per GPU; local without it: threads of this one, or one for each GPU. "
            f"MIN:MAX {_OF_QUEUES}: as the work needs them.",
        ),
        click.option("--tls", metavar="FILE|auto",
                     help="Encrypt and check all connections by a PEM file with certificate and key, such as "
                     "cluster/tls.sh makes; auto (local, cuda): by one that is made for this run."),
        click.option("--gpus-per-node", type=click.IntRange(min=1), metavar="N",
                     help=f"GPUs of a job, with a worker process each {_OF_QUEUES}."),
        click.option("--walltime", metavar="HH:MM:SS", help=f"How long a job may run {_OF_QUEUES}."),
        click.option("--queue", metavar="NAME", help=f"Queue or partition {_OF_QUEUES}."),
        click.option("--account", metavar="NAME", help=f"Who pays {_OF_QUEUES}."),
        click.option("--memory", metavar="SIZE", help=f"Of a job, such as 32GB; 4GiB a core unless said {_OF_QUEUES}."),
        click.option("--cores", type=click.IntRange(min=1), metavar="N",
                     help=f"Of a job; 4, or 3 for each GPU, unless said {_OF_QUEUES}."),
        click.option("--interface", metavar="NAME", help=f"Network to talk over, such as ib0 {_OF_QUEUES}."),
        click.option("--directive", "directives", multiple=True, metavar="TEXT",
                     help=f'What else to ask the queue for, such as "--exclusive"; repeatable {_OF_QUEUES}.'),
        click.option("--setup-line", "setup_lines", multiple=True, metavar="TEXT",
                     help=f'Shell line before the workers start, such as "module load cuda"; repeatable {_OF_QUEUES}.'),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def take_cluster_config(options: dict[str, Any]) -> ClusterConfig:
    """What the options say, of the file and over it; they are taken out. Raises RequestError."""
    given = {field.name: options.pop(field.name) for field in fields(ClusterConfig)}
    said = {name: value for name, value in given.items() if value != ()}  # what may be repeated, and was not said
    return read_cluster_config(options.pop("cluster_config"), **said)
