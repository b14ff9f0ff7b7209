"""The command ``geodl-dask``: parse, call the verbs, print."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from dask.utils import parse_bytes

from . import __version__
from .cluster_options import cluster_options, take_cluster_config
from .pack_command import pack_model_command
from .report_command import report_command
from .run_options import Bands, log_json, run_options, verbosity
from .terminal import (
    Say,
    err,
    manners,
    out,
    print_forecast,
    print_model,
    print_shard,
    print_summary,
    showing_progress,
)

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

    from .cluster_config import ClusterConfig
    from .forecast import Room
    from .outputs import Written

log = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="geodl-dask")
def cli() -> None:
    """Deep-learning change detection between two rasters of any size."""


@cli.command("detect-change", short_help="Classify what changed between two rasters.")
@click.argument("from_raster", metavar="FROM")
@click.argument("to_raster", metavar="TO")
@click.argument("output", metavar="OUT")
@click.argument("model", metavar="MODEL")
@click.option("--from-bands", type=Bands(), help="Bands of FROM by number from 1 or name, in the model's order.")
@click.option("--to-bands", type=Bands(), help="The same of TO.")
@run_options
def detect_change_command(from_raster: str, to_raster: str, output: str, model: str, **options: Any) -> None:
    """Classify what changed between the rasters FROM (earlier) and TO (later).

    MODEL is a model definition (.emd), a deep learning package (.dlpk), a classifier definition (.ecd) or JSON text.
    OUT ending in .tif becomes a Cloud-Optimized GeoTIFF, in .zarr a Zarr store; it may be s3://, gs:// or az://.
    """
    with manners(options["verbose"], options.pop("log_json")) as say:
        from .change import detect_change

        places = {"from_raster": from_raster, "to_raster": to_raster, "model": model}
        _run(partial(detect_change, from_raster, to_raster, model), output, places, say, **options)


@cli.command("classify", short_help="Classify each pixel of one raster.")
@click.argument("raster", metavar="RASTER")
@click.argument("output", metavar="OUT")
@click.argument("model", metavar="MODEL")
@click.option("--bands", type=Bands(), help="Bands by number from 1 or name, in the model's order.")
@run_options
def classify_command(raster: str, output: str, model: str, **options: Any) -> None:
    """Classify each pixel of RASTER.

    MODEL is a classifier definition (.ecd), a model definition (.emd), a deep learning package (.dlpk) or JSON text.
    OUT ending in .tif becomes a Cloud-Optimized GeoTIFF, in .zarr a Zarr store; it may be s3://, gs:// or az://.
    """
    with manners(options["verbose"], options.pop("log_json")) as say:
        from .change import classify_raster

        _run(partial(classify_raster, raster, model), output, {"raster": raster, "model": model}, say, **options)


def _run(
    plan: Callable[..., xr.DataArray | xr.Dataset], output: str, places: dict[str, str], say: Say, *,
    gpu_id: int | None, overwrite: bool, quiet: bool, verbose: int, processor_type: str,
    zarr_format: int | None, pyramid: bool, resume: bool, same_pixels: bool, keep_going: bool,
    shard: tuple[int, int] | None, dry_run: bool, performance_report: Path | None, **keywords: Any,
) -> None:  # fmt: skip
    """Plan, compute, write, sum up. ``plan`` takes the processor and ``keywords``."""
    from .cluster import check_cluster, local_gpus
    from .confidence import layers_of
    from .devices import planning_for_others
    from .finishing import place_of, result_format
    from .forecast import Room, forecast
    from .shards import Shard
    from .writing import kept_blocks

    started = time.perf_counter()
    _say_started(say)
    cluster = take_cluster_config(keywords)
    check_cluster(cluster)
    layout = {key: value for key, value in {"zarr_format": zarr_format, "pyramid": pyramid}.items() if value}
    goes_on = resume or (shard is not None and not overwrite)
    writer = _writer_of(output, overwrite=overwrite, resume=goes_on, provenance={**places, **keywords}, layout=layout)
    write = partial(
        writer, resume=resume, same_pixels=same_pixels, keep_going=keep_going, shard=shard, overwrite=overwrite
    )
    _require_reportable(performance_report)
    with err.status("Opening the model and the rasters") if not quiet else nullcontext():
        gpus = local_gpus(cluster, processor_type, gpu_id)
        if cluster.gpus_per_node and processor_type == "auto":
            processor_type = "gpu"  # a worker that finds none is to say so, and not to take the CPU
        with nullcontext() if cluster.is_here else planning_for_others():
            result = plan(processor=processor_type, **keywords)
    _introduce(layers_of(result)[0], quiet=quiet)
    share, form = Shard(*shard) if shard else Shard(), result_format(result, output, **layout)
    kept = kept_blocks(result, output, form, share, same_pixels=same_pixels) if dry_run and goes_on else 0
    told = forecast(result, chunks=keywords["chunks"], shard=share, kept=kept)
    say("plan", **asdict(told))
    if dry_run:
        print_forecast(told, _room_of(cluster, gpus), free_bytes=shutil.disk_usage(place_of(output).parent).free)
        say("finished", status=0)
        return
    with _client(cluster, gpus, quiet=quiet) as client, _reported(performance_report):
        for warning in told.warnings(Room.of_client(client)):
            log.warning("%s", warning)
        written = showing_progress(partial(write, result, output), output, quiet=quiet)
    seconds = time.perf_counter() - started
    _say_finished(say, written, seconds)
    if not quiet and written.shards_left is None:
        print_summary(result, written, seconds)
    elif not quiet:
        print_shard(result, written, share)


def _room_of(cluster: ClusterConfig, gpus: tuple[str, ...]) -> Room:
    """The workers that a run would have; starts none."""
    from .cluster import connect
    from .cluster_config import GPU_WORKER_THREADS
    from .forecast import Room

    if cluster.is_queue:
        from .job_queue import job_options

        job, processes = job_options(cluster), cluster.processes
        threads, memory_bytes = max(1, job["cores"] // processes), parse_bytes(job["memory"]) // processes
        return Room(cluster.worker_range[1], threads, memory_bytes)
    if not cluster.is_here:
        with connect(config=cluster) as client:
            return Room.of_client(client)
    return Room.here(len(gpus) or cluster.local_workers, GPU_WORKER_THREADS if gpus else None)


def _say_started(say: Say) -> None:
    say("started", version=__version__, command=sys.argv, host=socket.gethostname(), process=os.getpid())


def _say_finished(say: Say, written: Written, seconds: float) -> None:
    say("finished", **asdict(written) | {"path": str(written.path), "seconds": round(seconds, 3)}, status=0)


def _introduce(change: xr.DataArray, *, quiet: bool) -> None:
    """Say what is to be done with what."""
    told = change.attrs
    if not quiet:
        for account in (*told["rasters"], told["prediction"][:1].upper() + told["prediction"][1:]):
            err.print(account, soft_wrap=True)
    _log_plan(change)


def _require_reportable(path: Path | None) -> None:
    """Raise MissingDependencyError or OutputError where Dask's report could not be written there."""
    from .errors import MissingDependencyError, OutputError

    if path is None:
        return
    if not importlib.util.find_spec("bokeh"):
        raise MissingDependencyError(
            "A performance report needs bokeh, which is not installed. Install it with: "
            'pip install "geodl_dask[dashboard]"'
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"The folder {folder} of the performance report does not exist; make it first.")


@contextmanager
def _reported(path: Path | None) -> Iterator[None]:
    """Write Dask's own report of what is done in the block, however it ends."""
    if path is None:
        yield
        return
    from distributed import performance_report

    with ExitStack() as stack:
        stack.enter_context(performance_report(filename=str(path)))
        try:
            yield
        finally:
            try:
                stack.close()
            except (OSError, ValueError) as error:  # the scheduler is lost, and maybe the client, which will be said
                log.warning("The performance report %s could not be written: %s", path, error)


@cli.command("finalize", short_help="Make one result of what runs with --shard have computed.")
@click.argument("output", metavar="OUT")
@log_json
@verbosity
def finalize_command(output: str, log_json: Path | None, quiet: bool, verbose: int) -> None:
    """Make the result OUT of what the runs with --shard I/N have computed.

    Needs neither the model nor the rasters. Where blocks are missing it says which, and nothing is lost.
    """
    with manners(verbose, log_json) as say:
        from .finishing import finalize, left_result

        started = time.perf_counter()
        change = left_result(output)
        _say_started(say)
        written = showing_progress(partial(finalize, output), output, quiet=quiet)
        _say_finished(say, written, seconds := time.perf_counter() - started)
        if change is None and not quiet:
            out.print(f"{written.path} is finished already.")
        elif change is not None and not quiet:
            print_summary(change, written, seconds)


@cli.command("model-info", short_help="Say what a model is, and which arguments it takes.")
@click.argument("model", metavar="MODEL")
@click.option(
    "--trust-code", is_flag=True, help="The model's raster function may run, to say which arguments it takes."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def model_info_command(model: str, trust_code: bool, as_json: bool) -> None:
    """Say what MODEL is, and which arguments it takes. Runs none of its code unless told that it may."""
    with manners(0):
        from .inspection import model_info

        with redirect_stdout(sys.stderr):  # what the model's function prints
            info = model_info(model, trust_code=trust_code)
        if as_json:
            click.echo(json.dumps(asdict(info), indent=2))
        else:
            print_model(info)


@cli.command("model-to-ecd", short_help="Put a model into an Esri classifier definition (.ecd).")
@click.argument("model_file", metavar="MODEL_FILE")
@click.argument("class_info", metavar="CLASS_INFO.json")
@click.argument("output", metavar="OUT.ecd")
@click.option("--reference", is_flag=True, help="Name the model's place instead of carrying the model.")
@click.option("--emd", is_flag=True, help="Write an equivalent model definition (.emd) beside OUT.ecd.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.ecd once the new one is whole.")
def model_to_ecd_command(
    model_file: str, class_info: str, output: str, reference: bool, emd: bool, overwrite: bool
) -> None:
    """Put MODEL_FILE, of any framework, and the description of its classes into an Esri classifier definition."""
    with manners(0):
        from .ecd import deep_learning_model_to_ecd

        started = time.perf_counter()
        ecd = deep_learning_model_to_ecd(
            model_file, class_info, output, reference=reference, emd=emd, overwrite=overwrite
        )
        size = ecd.path.stat().st_size
        out.print(
            f"{ecd.path}: {ecd.classifier} model {ecd.model_name}, {len(ecd.classes)} classes, {size:,} bytes in "
            f"{time.perf_counter() - started:.1f} s"
        )


cli.add_command(pack_model_command)
cli.add_command(report_command)


@cli.command("demo", short_help="Detect change between two images that come along.")
@click.argument("folder", metavar="[DIR]", default="geodl-dask-demo", type=click.Path(file_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo left in DIR.")
@verbosity
def demo_command(folder: Path, overwrite: bool, quiet: bool, verbose: int) -> None:
    """Detect change between two rendered aerial images with the model that comes along.

    Writes both images, the truth, the model, and the result as COG, Zarr and picture to DIR.
    """
    with manners(verbose):
        from .demo import compare_with_truth, prepare_demo, save_demo_picture

        started = time.perf_counter()
        with err.status("Rendering two aerial images") if not quiet else nullcontext():
            demo = prepare_demo(folder, overwrite=overwrite)
            change = demo.detect_change()
        _log_plan(change)
        with _client(None, (), quiet=quiet):
            for output in (demo.cog, demo.zarr):
                write = _writer_of(str(output), overwrite=overwrite)
                work = partial(write, change, output, overwrite=overwrite)
                written = showing_progress(work, str(output), quiet=quiet)
        save_demo_picture(demo)
        if quiet:
            return
        print_summary(change, written, time.perf_counter() - started)
        for name, score in compare_with_truth(demo).items():
            out.print(f"F1 against the truth, {name}: {score:.3f}")
        out.print("Files: " + ", ".join(str(path) for path in demo.files))


@cli.command("cluster-script", short_help="Print the job of a queue; submit nothing.")
@cluster_options
def cluster_script_command(**options: Any) -> None:
    """Print the script that would be submitted to a job queue for each job of workers. Submits nothing."""
    with manners(0):
        from .job_queue import job_script

        cluster = take_cluster_config(options)
        click.echo(job_script(cluster), nl=False)
        least, most = (count // cluster.processes for count in cluster.worker_range)
        jobs = f"{least}" if least == most else f"{least} to {most}"
        err.print(f"Nothing was submitted. Jobs like this: {jobs}; workers in each: {cluster.processes}.")


def main() -> None:
    """Entry point."""
    cli()


@contextmanager
def _client(cluster: ClusterConfig | None, gpus: tuple[str, ...], *, quiet: bool) -> Iterator[Client]:
    from .cluster import connect, dashboard_of

    with connect(config=cluster, gpus=gpus) as client:
        dashboard = dashboard_of(client)
        if dashboard and not quiet:
            err.print(f"Dask dashboard: {dashboard}")
        if cluster and cluster.is_queue:
            _await_worker(client, cluster, quiet=quiet)
        yield client


def _await_worker(client: Client, cluster: ClusterConfig, *, quiet: bool) -> None:
    from .job_queue import await_worker, how_to_look, jobs_of

    started, jobs = time.perf_counter(), jobs_of(client)
    if not quiet:
        err.print(f"Submitted to {cluster.cluster}: {', '.join(jobs)}; look with: {how_to_look(cluster, jobs)}")
    with err.status("Waiting for the first worker") if not quiet else nullcontext():
        await_worker(client, cluster)
    if not quiet:
        err.print(f"The first worker is there after {time.perf_counter() - started:.0f} s; others join as they come.")


def _writer_of(
    output: str, *, overwrite: bool, resume: bool = False, provenance: dict[str, Any] | None = None,
    layout: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """The writer that the output's ending asks for, once it is clear that the output may be written."""
    from .outputs import check_output

    path = check_output(output, (".tif", ".tiff", ".zarr"), overwrite=overwrite, resume=resume, provenance=provenance)
    if Path(path).suffix.lower() == ".zarr":
        from .zarr_store import write_zarr

        return partial(write_zarr, **(layout or {}))
    if layout:
        from .errors import OutputError

        options = " and ".join(f"--{key.replace('_', '-')}" for key in layout)
        raise OutputError(f"{options} is for Zarr stores, and {output} is none; a GeoTIFF always has overviews.")
    from .cog import write_cog

    return write_cog


def _log_plan(change: xr.DataArray) -> None:
    (heights, widths), told = change.chunks or ((), ()), change.attrs
    log.info("%s (%s): %s, padding %s", told["model"], told["runner"], told["prediction"], told["padding"])
    log.info("%s x %s blocks of up to %s x %s pixels", len(heights), len(widths), max(heights), max(widths))
