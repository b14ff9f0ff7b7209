"""The command ``geodl-dask``: parse, call the verbs, print."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from .errors import GeodlError, OutputExistsError, RequestError

if TYPE_CHECKING:
    import xarray as xr

    from .outputs import Written

STATUS_FAILED, STATUS_ASKED_WRONGLY, STATUS_STOPPED = 1, 2, 130

log = logging.getLogger(__name__)
# Paths and class names are printed as they are, brackets and colons too.
err = Console(stderr=True, markup=False, emoji=False, highlight=False)
out = Console(soft_wrap=True, markup=False, emoji=False, highlight=False)


class _Chunks(click.ParamType[Any]):
    """Pixels, or ``auto``."""

    name = "PX|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto" or isinstance(value, int):
            return value
        if not value.isdecimal():
            self.fail(f"{value!r} is neither a number of pixels nor auto", param, ctx)
        return int(value)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="geodl-dask")
def cli() -> None:
    """Deep-learning change detection between two rasters of any size."""


def _verbosity(command: Any) -> Any:
    quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
    return click.option("-v", "--verbose", count=True, help="Log what happens; twice for every detail.")(quiet(command))


@cli.command("detect-change")
@click.argument("from_raster", metavar="FROM")
@click.argument("to_raster", metavar="TO")
@click.argument("output", metavar="OUT")
@click.argument("model", metavar="MODEL")
@click.option("--arguments", metavar="TEXT", help='Model arguments, such as "padding 64;batch_size 16".')
@click.option("--trust-code", is_flag=True, help="The Python code that the model brings may run, with your rights.")
@click.option(
    "--runner", type=click.Choice(["auto", "native", "raster-function"]), default="auto", show_default=True,
    help="Who runs the model: its own raster function, or geodl-dask.",
)  # fmt: skip
@click.option(
    "--processor-type", type=click.Choice(["auto", "cpu", "gpu"], case_sensitive=False), default="auto",
    show_default=True, help="Where the model runs; auto takes a GPU where there is one.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Worker processes; without it, threads of this one."
)
@click.option("--chunks", type=_Chunks(), default="auto", show_default=True, help="Side of a block, pixels.")
@click.option("--overwrite", is_flag=True, help="Replace OUT once the new result is whole.")
@_verbosity
def detect_change_command(
    from_raster: str, to_raster: str, output: str, model: str, workers: int | None, overwrite: bool, quiet: bool,
    verbose: int, arguments: str | None, trust_code: bool, runner: str, processor_type: str, chunks: Any,
) -> None:  # fmt: skip
    """Classify what changed between the rasters FROM (earlier) and TO (later).

    MODEL is a model definition (.emd), a deep learning package (.dlpk) or JSON text. OUT ending in .tif becomes a
    Cloud-Optimized GeoTIFF, in .zarr a Zarr store.
    """
    with _manners(verbose):
        from .change import detect_change

        started = time.perf_counter()
        write = _writer_of(output, overwrite=overwrite)
        _refuse_input_as_output(output, from_raster, to_raster, model)
        with err.status("Opening the model and the rasters") if not quiet else _nothing():
            change = detect_change(
                from_raster, to_raster, model, arguments=arguments, trust_code=trust_code, runner=runner,  # type: ignore[arg-type]
                processor=processor_type, chunks=chunks,  # type: ignore[arg-type]
            )  # fmt: skip
        _log_plan(change)
        with _client(workers, quiet=quiet):
            written = _write_showing_progress(write, change, output, overwrite=overwrite, quiet=quiet)
        if not quiet:
            _print_summary(change, written, time.perf_counter() - started)


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
        with err.status("Rendering two aerial images") if not quiet else _nothing():
            demo = prepare_demo(folder, overwrite=overwrite)
            change = demo.detect_change()
        _log_plan(change)
        with _client(None, quiet=quiet):
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
    """Logs as asked for; each error as one message and an exit status, without traceback."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err)], force=True)
    logging.getLogger("geodl_dask").setLevel(level)
    if not dask.config.get("logging", None):  # distributed reads it when it is imported, which is later
        # It shouts of each failed attempt and each cancelled task, of which our own message is the sum.
        spoken = ("critical", "warning", "info")[min(verbose, 2)]
        dask.config.set({"logging": {"distributed": spoken}})
        os.environ["DASK_LOGGING__DISTRIBUTED"] = spoken  # for worker processes
    try:
        yield
    except GeodlError as error:
        if verbose:
            err.print_exception()
        err.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(STATUS_ASKED_WRONGLY if isinstance(error, RequestError) else STATUS_FAILED)
    except KeyboardInterrupt:
        err.print("Stopped. Nothing stands under the output's name that is not whole.")
        sys.exit(STATUS_STOPPED)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _client(workers: int | None, *, quiet: bool) -> Iterator[None]:
    from .cluster import connect, dashboard_of

    with connect("local", workers=workers) as client:
        dashboard = dashboard_of(client)
        if dashboard and not quiet:
            err.print(f"Dask dashboard: {dashboard}")
        yield


def _writer_of(output: str, *, overwrite: bool) -> Any:
    """The writer that the output's ending asks for, once it is clear that the output may be written."""
    from .outputs import check_output

    path = check_output(output, (".tif", ".tiff", ".zarr"), overwrite=overwrite)
    if path.suffix.lower() == ".zarr":
        from .zarr_store import write_zarr

        return write_zarr
    from .cog import write_cog

    return write_cog


def _refuse_input_as_output(output: str, *inputs: str) -> None:
    if Path(output).resolve() in [Path(each).resolve() for each in inputs if Path(output).name == Path(each).name]:
        raise OutputExistsError(f"The output {output} is one of the inputs; choose another name.")


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
        written: Written = write(change, output, overwrite=overwrite, progress=_Advance(bar, task))
    return written


class _Advance:
    """Moves a progress bar: pixels done, and their rate."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task, self._started = bar, task, time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        rate = done / 1e6 / (time.perf_counter() - self._started)
        self._bar.update(self._task, completed=done, rate=f"{rate:.2f} Mpx/s")
        if done == total:
            self._bar.update(self._task, rate=f"{rate:.2f} Mpx/s, finishing the file")


def _print_summary(change: xr.DataArray, written: Written, seconds: float) -> None:
    from .report import class_areas

    table = Table("", "value", "class", "area", "share", box=None, pad_edge=False)
    for area in class_areas(change, written.pixels):
        color = "rgb({},{},{})".format(*area.model_class.color)
        size = f"{area.pixels:,} px" if area.hectares is None else f"{area.hectares:,.2f} ha"
        table.add_row(Text("██", color), str(area.model_class.value), area.model_class.name, size, f"{area.share:.2%}")
    out.print(table)
    height, width = change.shape
    out.print(f"{written.path}: {width:,} x {height:,} pixels in {seconds:.1f} s")
