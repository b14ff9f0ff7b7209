"""What a command says at the terminal, and how it ends."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.config
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .ecd import EcdError
from .errors import GeodlError, RequestError

if TYPE_CHECKING:
    import xarray as xr

    from .classes import ModelClass
    from .inspection import ModelFile, ModelInfo
    from .outputs import Written

NAMED = 3
"""Failed blocks that a summary names."""
STATUS_FAILED, STATUS_ASKED_WRONGLY, STATUS_SIGNALLED = 1, 2, 128

# Paths and class names are printed as they are, brackets and colons too.
err = Console(stderr=True, markup=False, emoji=False, highlight=False)
# A file, unlike a terminal, has room for every path.
out = Console(soft_wrap=True, markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 500)


@contextmanager
def manners(verbose: int) -> Iterator[None]:
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
            _print_error(error)
            sys.exit(STATUS_ASKED_WRONGLY if isinstance(error, RequestError | EcdError) else STATUS_FAILED)
        except OSError as error:  # a full disk, a folder that is gone
            _print_error(error)
            sys.exit(STATUS_FAILED)
        except KeyboardInterrupt as stop:
            number = stop.args[0] if stop.args else signal.SIGINT
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            err.print(" ".join([f"Stopped{by}.", *_notes(stop)]), soft_wrap=True)
            sys.exit(STATUS_SIGNALLED + number)


def _print_error(error: Exception) -> None:
    err.print(Text.assemble(("Error: ", "bold red"), " ".join([str(error), *_notes(error)])), soft_wrap=True)


def _notes(error: BaseException) -> list[str]:
    """What was added to an error on its way, such as what is kept."""
    return getattr(error, "__notes__", [])


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


def write_showing_progress(
    write: Any, change: xr.DataArray | xr.Dataset, output: str, *, overwrite: bool, quiet: bool
) -> Written:
    """Write a result by ``write``, with a progress bar: share, rate, time left."""
    pixels = change.sizes["y"] * change.sizes["x"]
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[rate]}", markup=False), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, disable=quiet) as bar:
        task = bar.add_task(Path(output).name, total=pixels, rate="")
        advance = _Advance(bar, task)
        written: Written = write(change, output, overwrite=overwrite, progress=advance)
        advance(pixels, pixels, "done")
    return written


class _Advance:
    """Moves a progress bar: pixels done, and their rate."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task, self._started = bar, task, time.perf_counter()

    def __call__(self, done: int, total: int, last: str = "finishing the file") -> None:
        rate = done / 1e6 / (time.perf_counter() - self._started)
        self._bar.update(self._task, completed=done, rate=f"{rate:.2f} Mpx/s" + (f", {last}" if done == total else ""))


def print_summary(change: xr.DataArray | xr.Dataset, written: Written, seconds: float) -> None:
    """Area per class, and where the result is."""
    from .report import class_areas

    table = Table("", "value", "class", "area", "share", box=None, pad_edge=False)
    for area in class_areas(change, written.pixels):
        size = f"{area.pixels:,} px" if area.hectares is None else f"{area.hectares:,.2f} ha"
        table.add_row(
            _swatch(area.model_class), str(area.model_class.value), area.model_class.name, size, f"{area.share:.2%}"
        )
    out.print(table)
    height, width = change.sizes["y"], change.sizes["x"]
    if written.empty_tiles:
        out.print(f"{written.empty_tiles:,} of {written.tiles:,} tiles were skipped: no valid pixel")
    for block in written.failed_blocks[:NAMED]:
        place = f"{block.height} x {block.width} pixels at row {block.row_off}, column {block.col_off}"
        out.print(f"Failed, and nodata: {place}: {block.cause}")
    if written.failed_blocks:
        out.print(f"{len(written.failed_blocks):,} blocks failed; {written.path}.manifest.json lists them.")
    if not written.computed_blocks:
        out.print("Nothing had to be computed.")
    out.print(f"{written.path}: {width:,} x {height:,} pixels in {seconds:.1f} s")


def print_model(info: ModelInfo) -> None:
    """Facts, classes and arguments of a model."""
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
