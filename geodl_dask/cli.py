"""The command ``geodl-dask``: parse, call the verbs, print."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .cluster_options import cluster_options, take_cluster_config
from .terminal import err, manners, out, print_model, print_summary, write_showing_progress

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

    from .cluster_config import ClusterConfig

log = logging.getLogger(__name__)


class _Pixels(click.ParamType[Any]):
    """A number of pixels, or a word."""

    def __init__(self, *words: str) -> None:
        self._words = words
        self.name = "|".join(["PX", *words])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self._words or isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of pixels above 0 nor {' or '.join(self._words)}", param, ctx)
        return int(value)


class _CellSize(click.ParamType[Any]):
    """A number, two of them, or a raster."""

    name = "SIZE|RASTER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            sizes = tuple(float(each) for each in value.split())
        except ValueError:
            return value
        return sizes * 2 if len(sizes) == 1 else sizes


class _Bands(click.ParamType[Any]):
    """Numbers or names, with commas."""

    name = "BAND,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        bands = [each.strip() for each in value.split(",")] if isinstance(value, str) else value
        if "" in bands:
            self.fail(f"{value!r} has a band without number or name", param, ctx)
        return bands


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="geodl-dask")
def cli() -> None:
    """Deep-learning change detection between two rasters of any size."""


def _verbosity(command: Any) -> Any:
    quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
    return click.option("-v", "--verbose", count=True, help="Log what happens; twice for every detail.")(quiet(command))


def _run_options(command: Any) -> Any:
    """The options of every command that runs a model over rasters."""
    options = (
        click.option("--arguments", metavar="TEXT", help='Model arguments, such as "padding 64;batch_size 16".'),
        click.option("--trust-code", is_flag=True, help="The Python that the model brings may run, with your rights."),
        click.option(
            "--runner", type=click.Choice(["auto", "native", "raster-function"]), default="auto", show_default=True,
            help="Who runs the model: its own raster function, or geodl-dask; auto is the former where there is one, "
            "except for change detectors of arcgis.learn.",
        ),
        click.option(
            "--processor-type", type=click.Choice(["auto", "cpu", "gpu"], case_sensitive=False), default="auto",
            show_default=True, help="Where the model runs; auto takes the GPUs where there are some.",
        ),
        click.option("--gpu-id", type=click.IntRange(min=0), metavar="N", help="The one GPU to use; without it, all."),
        cluster_options,
        click.option("--mask", metavar="FILE", help="Where the result is wanted: raster or polygons."),
        click.option("--like", metavar="RASTER", help="Take this raster's grid in the place of the first one's."),
        click.option("--output-crs", metavar="CRS", help="CRS of the result, such as EPSG:32633."),
        click.option("--cell-size", type=_CellSize(), help="Of the result, in units of its CRS."),
        click.option(
            "--extent", type=float, nargs=4, metavar="XMIN YMIN XMAX YMAX", help="Of the result, in its CRS."
        ),
        click.option("--snap-raster", metavar="RASTER", help="Let the result's pixel corners fall on this raster's."),
        click.option(
            "--align", type=click.Choice(["warp", "strict"]), default="warp", show_default=True,
            help="Warp a raster that lies on another grid, or refuse it.",
        ),
        click.option(
            "--resampling", metavar="NAME", default="bilinear", show_default=True, help="How to warp; GDAL's names."
        ),
        click.option(
            "--confidence", type=click.Choice(["uint8", "uint16", "float32"]),
            help="Keep the probability of each pixel's class too: a second band or variable of this type.",
        ),
        click.option(
            "--tile-size", type=_Pixels("auto", "model"), default="auto", show_default=True,
            help="How much a network is given at once: auto joins tiles where that changes nothing.",
        ),
        click.option(
            "--precision", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
            help="In which torch computes; how many pixels then get another class is said.",
        ),
        click.option("--compile", "compiled", is_flag=True, help="Let torch compile the network (torch.export files)."),
        click.option(
            "--chunks", type=_Pixels("auto"), default="auto", show_default=True, help="Side of a block, pixels."
        ),
        click.option(
            "--zarr-format", type=click.Choice([2, 3]), help="Version of a Zarr store: 3 unless said, 2 for older GIS."
        ),
        click.option("--pyramid", is_flag=True, help="Also coarser levels, in a Zarr store; other outputs have them."),
        click.option("--overwrite", is_flag=True, help="Replace OUT once the new result is whole."),
        click.option("--resume", is_flag=True, help="Go on with what an interrupted run has left, if one has."),
        click.option(
            "--same-pixels", is_flag=True,
            help="With --resume: rasters that were copied or mended have the same pixels."
        ),
        click.option("--keep-going", is_flag=True, help="Leave blocks that go on failing as nodata, and list them."),
        _verbosity,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@cli.command("detect-change")
@click.argument("from_raster", metavar="FROM")
@click.argument("to_raster", metavar="TO")
@click.argument("output", metavar="OUT")
@click.argument("model", metavar="MODEL")
@click.option("--from-bands", type=_Bands(), help="Bands of FROM by number from 1 or name, in the model's order.")
@click.option("--to-bands", type=_Bands(), help="The same of TO.")
@_run_options
def detect_change_command(from_raster: str, to_raster: str, output: str, model: str, **options: Any) -> None:
    """Classify what changed between the rasters FROM (earlier) and TO (later).

    MODEL is a model definition (.emd), a deep learning package (.dlpk), a classifier definition (.ecd) or JSON text.
    OUT ending in .tif becomes a Cloud-Optimized GeoTIFF, in .zarr a Zarr store; it may be s3://, gs:// or az://.
    """
    with manners(options["verbose"]):
        from .change import detect_change

        places = {"from_raster": from_raster, "to_raster": to_raster, "model": model}
        _run(partial(detect_change, from_raster, to_raster, model), output, places, **options)


@cli.command("classify")
@click.argument("raster", metavar="RASTER")
@click.argument("output", metavar="OUT")
@click.argument("model", metavar="MODEL")
@click.option("--bands", type=_Bands(), help="Bands by number from 1 or name, in the model's order.")
@_run_options
def classify_command(raster: str, output: str, model: str, **options: Any) -> None:
    """Classify each pixel of RASTER.

    MODEL is a classifier definition (.ecd), a model definition (.emd), a deep learning package (.dlpk) or JSON text.
    OUT ending in .tif becomes a Cloud-Optimized GeoTIFF, in .zarr a Zarr store; it may be s3://, gs:// or az://.
    """
    with manners(options["verbose"]):
        from .change import classify_raster

        _run(partial(classify_raster, raster, model), output, {"raster": raster, "model": model}, **options)


def _run(
    plan: Callable[..., xr.DataArray | xr.Dataset], output: str, places: dict[str, str], *, gpu_id: int | None,
    overwrite: bool, quiet: bool, verbose: int, processor_type: str, zarr_format: int | None,
    pyramid: bool, resume: bool, same_pixels: bool, keep_going: bool, **keywords: Any,
) -> None:  # fmt: skip
    """Plan, compute, write, sum up. ``plan`` takes the processor and ``keywords``."""
    from .cluster import check_cluster, local_gpus
    from .confidence import layers_of

    started = time.perf_counter()
    cluster = take_cluster_config(keywords)
    check_cluster(cluster)
    layout = {key: value for key, value in {"zarr_format": zarr_format, "pyramid": pyramid}.items() if value}
    writer = _writer_of(output, overwrite=overwrite, resume=resume, provenance={**places, **keywords}, layout=layout)
    write = partial(writer, resume=resume, same_pixels=same_pixels, keep_going=keep_going)
    with err.status("Opening the model and the rasters") if not quiet else nullcontext():
        gpus = local_gpus(cluster, processor_type, gpu_id)
        result = plan(processor=processor_type, **keywords)
    if not quiet:
        for account in layers_of(result)[0].attrs["rasters"]:
            err.print(account, soft_wrap=True)
        account = layers_of(result)[0].attrs["prediction"]
        err.print(account[:1].upper() + account[1:], soft_wrap=True)
    _log_plan(layers_of(result)[0])
    with _client(cluster, gpus, quiet=quiet):
        written = write_showing_progress(write, result, output, overwrite=overwrite, quiet=quiet)
    if not quiet:
        print_summary(result, written, time.perf_counter() - started)


@cli.command("model-info")
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


@cli.command("model-to-ecd")
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


@cli.command("demo")
@click.argument("folder", metavar="[DIR]", default="geodl-dask-demo", type=click.Path(file_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo left in DIR.")
@_verbosity
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
                written = write_showing_progress(write, change, str(output), overwrite=overwrite, quiet=quiet)
        save_demo_picture(demo)
        if quiet:
            return
        print_summary(change, written, time.perf_counter() - started)
        for name, score in compare_with_truth(demo).items():
            out.print(f"F1 against the truth, {name}: {score:.3f}")
        out.print("Files: " + ", ".join(str(path) for path in demo.files))


@cli.command("cluster-script")
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
def _client(cluster: ClusterConfig | None, gpus: tuple[str, ...], *, quiet: bool) -> Iterator[None]:
    from .cluster import connect, dashboard_of

    with connect(config=cluster, gpus=gpus) as client:
        dashboard = dashboard_of(client)
        if dashboard and not quiet:
            err.print(f"Dask dashboard: {dashboard}")
        if cluster and cluster.is_queue:
            _await_worker(client, cluster, quiet=quiet)
        yield


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
