"""Options of the command line that runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cluster_options import cluster_options


class _Pixels(click.ParamType[Any]):
    """A number of pixels, or a word."""

    name = "pixels"

    def __init__(self, *words: str) -> None:
        self._words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The words as they are to be written; click shows a type's name in capitals."""
        return "|".join(["PX", *self._words])

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


class Bands(click.ParamType[Any]):
    """Numbers or names, with commas."""

    name = "BAND,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Numbers and names, as they were written."""
        bands = [each.strip() for each in value.split(",")] if isinstance(value, str) else value
        if "" in bands:
            self.fail(f"{value!r} has a band without number or name", param, ctx)
        return bands


class _Shard(click.ParamType[Any]):
    """Two numbers with a slash between them."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number, slash, count = value.partition("/") if isinstance(value, str) else (*value, "")
        if not slash or not number.isdecimal() or not count.isdecimal() or not 1 <= int(number) <= int(count):
            self.fail(f"{value!r} is no shard; I/N with I from 1 to N is needed, such as 3/8", param, ctx)
        return int(number), int(count)


_FILE = click.Path(dir_okay=False, path_type=Path)
log_json = click.option("--log-json", type=_FILE, metavar="FILE", help="Append what happens to FILE, as JSON lines.")


def verbosity(command: Any) -> Any:
    """How much is said."""
    quiet = click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")
    return click.option("-v", "--verbose", count=True, help="Log what happens; twice for every detail.")(quiet(command))


def run_options(command: Any) -> Any:
    """The options of every command that runs a model over rasters."""
    options = (
        click.option("--arguments", metavar="TEXT", help='Model arguments, such as "padding 64;batch_size 16".'),
        click.option("--trust-code", is_flag=True, help="The Python that the model brings may run, with your rights."),
        click.option(
            "--runner", type=click.Choice(["auto", "native", "raster-function"]), default="auto", show_default=True,
            help="Who runs the model: its own raster function, or geodl-dask; auto is the former where there is one, "
            "except for change detectors of arcgis.learn and packages of pack-model.",
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
        *_watching(),
        verbosity,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _watching() -> tuple[Any, ...]:
    """How a run is cut, tried out and watched."""
    return (
        click.option(
            "--shard", type=_Shard(),
            help="Compute the Ith of N shares of the blocks, beside N - 1 other runs; geodl-dask finalize joins them.",
        ),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing of it."),
        log_json,
        click.option(
            "--performance-report", type=_FILE, metavar="FILE.html", help="Write Dask's report of tasks and workers."
        ),
    )  # fmt: skip
