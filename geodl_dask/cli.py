"""The command ``geodl-dask``: parse, call the verbs, print."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import dask.config
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from . import __version__
from .ecd import EcdError
from .errors import GeodlError, RequestError

if TYPE_CHECKING:
    import xarray as xr

    from .classes import ModelClass
    from .inspection import ModelFile, ModelInfo
    from .outputs import Written

STATUS_FAILED, STATUS_ASKED_WRONGLY, STATUS_SIGNALLED = 1, 2, 128

log = logging.getLogger(__name__)
# Paths and class names are printed as they are, brackets and colons too.
err = Console(stderr=True, markup=False, emoji=False, highlight=False)
# A file, unlike a terminal, has room for every path.
out = Console(soft_wrap=True, markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 500)


class _Chunks(click.ParamType[Any]):
    """Pixels, or ``auto``."""

    name = "PX|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto" or isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of pixels above 0 nor auto", param, ctx)
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
            help="Who runs the model: its own raster function, or geodl-dask.",
        ),
        click.option(
            "--processor-type", type=click.Choice(["auto", "cpu", "gpu"], case_sensitive=False), default="auto",
            show_default=True, help="Where the model runs; auto takes the GPUs where there are some.",
        ),
        click.option("--gpu-id", type=click.IntRange(min=0), metavar="N", help="The one GPU to use; without it, all."),
        click.option(
            "--workers", type=click.IntRange(min=1), metavar="N",
            help="Worker processes, at most one per GPU; without it, threads of this one, or one for each GPU.",
        ),
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
        click.option("--chunks", type=_Chunks(), default="auto", show_default=True, help="Side of a block, pixels."),
        click.option("--overwrite", is_flag=True, help="Replace OUT once the new result is whole."),
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
    OUT ending in .tif becomes a Cloud-Optimized GeoTIFF, in .zarr a Zarr store.
    """
    with _manners(options["verbose"]):
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
    OUT ending in .tif becomes a Cloud-Optimized GeoTIFF, in .zarr a Zarr store.
    """
    with _manners(options["verbose"]):
        from .change import classify_raster

        _run(partial(classify_raster, raster, model), output, {"raster": raster, "model": model}, **options)


def _run(
    plan: Callable[..., xr.DataArray], output: str, places: dict[str, str], *, workers: int | None, gpu_id: int | None,
    overwrite: bool, quiet: bool, verbose: int, processor_type: str, **keywords: Any,
) -> None:  # fmt: skip
    """Plan, compute, write, sum up. ``plan`` takes the processor and ``keywords``."""
    from .devices import worker_gpus

    started = time.perf_counter()
    write = _writer_of(output, overwrite=overwrite, provenance={**places, **keywords})
    with err.status("Opening the model and the rasters") if not quiet else nullcontext():
        gpus = worker_gpus(processor_type, gpu_id=gpu_id, workers=workers)
        result = plan(processor=processor_type, **keywords)
    if not quiet:
        for account in result.attrs["rasters"]:
            err.print(account, soft_wrap=True)
    _log_plan(result)
    with _client(workers, gpus, quiet=quiet):
        written = _write_showing_progress(write, result, output, overwrite=overwrite, quiet=quiet)
    if not quiet:
        _print_summary(result, written, time.perf_counter() - started)


@cli.command("model-info")
@click.argument("model", metavar="MODEL")
@click.option(
    "--trust-code", is_flag=True, help="The model's raster function may run, to say which arguments it takes."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def model_info_command(model: str, trust_code: bool, as_json: bool) -> None:
    """Say what MODEL is, and which arguments it takes. Runs none of its code unless told that it may."""
    with _manners(0):
        from .inspection import model_info

        with redirect_stdout(sys.stderr):  # what the model's function prints
            info = model_info(model, trust_code=trust_code)
        if as_json:
            click.echo(json.dumps(asdict(info), indent=2))
        else:
            _print_model(info)


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
    with _manners(0):
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
    with _manners(verbose):
        from .demo import compare_with_truth, prepare_demo, save_demo_picture

        started = time.perf_counter()
        with err.status("Rendering two aerial images") if not quiet else nullcontext():
            demo = prepare_demo(folder, overwrite=overwrite)
            change = demo.detect_change()
        _log_plan(change)
        with _client(None, (), quiet=quiet):
            for output in (demo.cog, demo.zarr):
                write = _writer_of(str(output), overwrite=overwrite)
                written = _write_showing_progress(write, change, str(output), overwrite=overwrite, quiet=quiet)
        save_demo_picture(demo)
        if quiet:
            return
        _print_summary(change, written, time.perf_counter() - started)
        for name, score in compare_with_truth(demo).items():
            out.print(f"F1 against the truth, {name}: {score:.3f}")
        out.print("Files: " + ", ".join(str(path) for path in demo.files))


def main() -> None:
    """Entry point."""
    cli()


@contextmanager
def _manners(verbose: int) -> Iterator[None]:
    """Logs as asked for; each error and each stop as one message and an exit status, without traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a swatch is no reason to fail where the encoding has none
            stream.reconfigure(errors="replace")
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err)], force=True)
    logging.getLogger("geodl_dask").setLevel(level)
    if not dask.config.get("logging", None):  # distributed reads it when it is imported, which is later
        # It shouts of each failed attempt and each cancelled task, of which our own message is the sum.
        spoken = ("critical", "warning", "info")[min(verbose, 2)]
        # Tornado would print the traceback of an interrupt.
        dask.config.set({"logging": {"distributed": spoken, "tornado": "critical", "tornado.application": "critical"}})
        os.environ["DASK_LOGGING__DISTRIBUTED"] = spoken  # for worker processes
    with _stoppable():
        try:
            yield
        except (GeodlError, EcdError) as error:
            if verbose:
                err.print_exception()
            err.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)
            sys.exit(STATUS_ASKED_WRONGLY if isinstance(error, RequestError | EcdError) else STATUS_FAILED)
        except OSError as error:  # a full disk, a folder that is gone
            err.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)
            sys.exit(STATUS_FAILED)
        except KeyboardInterrupt as stop:
            number = stop.args[0] if stop.args else signal.SIGINT
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            err.print(f"Stopped{by}. Nothing stands under the output's name that is not whole.")
            sys.exit(STATUS_SIGNALLED + number)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C, and what a batch system or a closed terminal sends, end the work with everything put away.

    A second Ctrl-C does not wait for that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, stop_now)
        raise KeyboardInterrupt(number)

    def stop_now(number: int, frame: Any) -> None:
        os.write(2, b"Stopped at once. What a run has begun may lie beside its output, under a name with .partial.\n")
        os._exit(STATUS_SIGNALLED + number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup's wish
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:  # once stopped, impatience stays in force until the process is gone
                signal.signal(number, handler)


@contextmanager
def _client(workers: int | None, gpus: tuple[str, ...], *, quiet: bool) -> Iterator[None]:
    from .cluster import connect, dashboard_of

    with connect("local", workers=workers, gpus=gpus) as client:
        dashboard = dashboard_of(client)
        if dashboard and not quiet:
            err.print(f"Dask dashboard: {dashboard}")
        yield


def _writer_of(output: str, *, overwrite: bool, provenance: dict[str, Any] | None = None) -> Any:
    """The writer that the output's ending asks for, once it is clear that the output may be written."""
    from .outputs import check_output

    path = check_output(output, (".tif", ".tiff", ".zarr"), overwrite=overwrite, provenance=provenance)
    if path.suffix.lower() == ".zarr":
        from .zarr_store import write_zarr

        return write_zarr
    from .cog import write_cog

    return write_cog


def _log_plan(change: xr.DataArray) -> None:
    (heights, widths), told = change.chunks or ((), ()), change.attrs
    tile = " x ".join(map(str, told["tile_size"]))
    log.info("%s (%s): tiles of %s pixels, padding %s", told["model"], told["runner"], tile, told["padding"])
    log.info("%s x %s blocks of up to %s x %s pixels", len(heights), len(widths), max(heights), max(widths))


def _write_showing_progress(write: Any, change: xr.DataArray, output: str, *, overwrite: bool, quiet: bool) -> Written:
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[rate]}", markup=False), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, disable=quiet) as bar:
        task = bar.add_task(Path(output).name, total=change.size, rate="")
        advance = _Advance(bar, task)
        written: Written = write(change, output, overwrite=overwrite, progress=advance)
        advance(change.size, change.size, "done")
    return written


class _Advance:
    """Moves a progress bar: pixels done, and their rate."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task, self._started = bar, task, time.perf_counter()

    def __call__(self, done: int, total: int, last: str = "finishing the file") -> None:
        rate = done / 1e6 / (time.perf_counter() - self._started)
        self._bar.update(self._task, completed=done, rate=f"{rate:.2f} Mpx/s" + (f", {last}" if done == total else ""))


def _print_summary(change: xr.DataArray, written: Written, seconds: float) -> None:
    from .report import class_areas

    table = Table("", "value", "class", "area", "share", box=None, pad_edge=False)
    for area in class_areas(change, written.pixels):
        size = f"{area.pixels:,} px" if area.hectares is None else f"{area.hectares:,.2f} ha"
        table.add_row(
            _swatch(area.model_class), str(area.model_class.value), area.model_class.name, size, f"{area.share:.2%}"
        )
    out.print(table)
    height, width = change.shape
    if written.empty_tiles:
        out.print(f"{written.empty_tiles:,} of {written.tiles:,} tiles were skipped: no valid pixel")
    out.print(f"{written.path}: {width:,} x {height:,} pixels in {seconds:.1f} s")


def _print_model(info: ModelInfo) -> None:
    tile = " x ".join(map(str, info.tile_yx)) + " pixels" if info.tile_yx else "not said"
    bands = ", ".join(map(str, info.extract_bands)) if info.extract_bands else "all"
    who = "geodl-dask" if info.runner == "native" else "its own raster function"
    needs = f"{who}, only with --trust-code: it brings code" if info.carries_code else who
    rows = {
        "Model": f"{info.name} ({info.source})",
        "Type": info.model_type or "not said",
        "Framework": info.framework or "not said",
        "Run by": f"nobody here: it {info.obstacle}" if info.obstacle else needs,
        "Tile": tile,
        "Bands": f"{bands} of the stack, from 0",
        **{file.key: _describe_file(file) for file in info.files},
        "Digest": info.digest,
    }
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, text in rows.items():
        facts.add_row(name, Text(text))
    classes = Table("", "value", "class", box=None, pad_edge=False)
    for each in info.classes:
        classes.add_row(_swatch(each), str(each.value), Text(each.name))
    arguments = Table("argument", "default", "allowed", "what it is", box=None, pad_edge=False)
    for parameter in info.arguments:
        allowed = " to ".join(parameter.domain) if parameter.is_number else ", ".join(parameter.domain)
        texts = parameter.name, parameter.default or "", allowed, parameter.description or parameter.display_name
        arguments.add_row(*map(Text, texts))
    out.print(facts, "", classes, "", *((arguments,) if info.arguments else ("It takes no arguments that are known.",)))
    if not info.arguments_are_all:
        out.print("Which arguments its raster function takes is seen with --trust-code, which runs it.")


def _describe_file(file: ModelFile) -> str:
    if file.path is None:
        return f"{file.written} (not found)"
    return file.path if file.size_bytes is None else f"{file.path} ({file.size_bytes:,} bytes)"


def _swatch(model_class: ModelClass) -> Text:
    return Text("██", "rgb({},{},{})".format(*model_class.color))
