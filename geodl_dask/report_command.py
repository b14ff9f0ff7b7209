"""The command ``geodl-dask report``."""

from __future__ import annotations

import time
from typing import Any

import click

from .run_options import Bands
from .terminal import err, manners, out


@click.command("report", short_help="Write a result as one HTML file to look at.")
@click.argument("result", metavar="RESULT")
@click.argument("output", metavar="[OUT.html]", required=False)
@click.option("--from-raster", metavar="RASTER", help="The earlier image, if it is not where the result's record says.")
@click.option("--to-raster", metavar="RASTER", help="The later image, likewise.")
@click.option("--raster", metavar="RASTER", help="The image of a result of classify, likewise.")
@click.option("--from-bands", type=Bands(), help="Its bands shown as red, green and blue, or one, by number or name.")
@click.option("--to-bands", type=Bands(), help="The same of the later image.")
@click.option("--bands", type=Bands(), help="The same of a result of classify.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.html.")
def report_command(result: str, output: str | None, **options: Any) -> None:
    """Write RESULT as one HTML file to look at: images to swipe, change, largest areas, table, how it was made.

    RESULT is a .tif or .zarr that detect-change or classify has written. The file, RESULT.html unless said, needs no
    network. Of the images that the result names only files on this disk are opened; name folders, virtual rasters and
    URLs yourself.
    """
    with manners(0):
        from .html_report import write_report

        started = time.perf_counter()
        with err.status("Reading the result and its images"):
            written = write_report(result, output, **options)
        size = written.stat().st_size / 1e6
        out.print(f"{written}: {size:,.1f} MB in {time.perf_counter() - started:.1f} s")
