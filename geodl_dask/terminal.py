"""What a command says at the terminal, and how it ends."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
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
from .run_log import Rate, RunLog
from .shards import Shard

if TYPE_CHECKING:
    import xarray as xr

    from .classes import ModelClass
    from .forecast import Forecast, Room
    from .inspection import ModelFile, ModelInfo
    from .outputs import Written

NAMED = 3
"""Failed blocks that a summary names."""
STATUS_FAILED, STATUS_ASKED_WRONGLY, STATUS_SIGNALLED = 1, 2, 128
LINE_EVERY_S = 60.0
"""Seconds between two lines of progress where there is no terminal, at the least."""

Say = Callable[..., None]
"""Takes an event and its facts for the log of a run (see `run_log`)."""

# Paths and class names are printed as they are, brackets and colons too.
# FORCE_COLOR, which notebooks and CI set, makes no terminal of a pipe, in which bars would be rubbish.
err = Console(
    stderr=True, markup=False, emoji=False, highlight=False, force_terminal=None if sys.stderr.isatty() else False
)  # fmt: skip
# A file, unlike a terminal, has room for every path.
out = Console(soft_wrap=True, markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 500)


@contextmanager
def manners(verbose: int, log_json: Path | None = None) -> Iterator[Say]:
    """Logs as asked for; each error and each stop as one message and an exit status, without traceback.

    log_json : where what happens is appended too.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a swatch is no reason to fail where the encoding has none
            stream.reconfigure(errors="replace")
    _set_up_logging(verbose)
    with _stoppable(), ExitStack() as opened:
        say: Say = lambda event, **facts: None  # noqa: E731
        try:
            if log_json is not None:
                say = opened.enter_context(_recorded(log_json))
            yield say
        except (GeodlError, EcdError, OSError) as error:  # OSError: a full disk, a folder that is gone
            if verbose and not isinstance(error, OSError):
                err.print_exception()
            _print_error(error)
            status = STATUS_ASKED_WRONGLY if isinstance(error, RequestError | EcdError) else STATUS_FAILED
            say("failed", message=_message(error), kind=type(error).__name__, status=status)
            sys.exit(status)
        except KeyboardInterrupt as stop:
            number = stop.args[0] if stop.args else signal.SIGINT
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            message, status = " ".join([f"Stopped{by}.", *_notes(stop)]), STATUS_SIGNALLED + number
            err.print(message, soft_wrap=True)
            say("stopped", message=message, signal=signal.Signals(number).name, status=status)
            sys.exit(status)
        except Exception as error:  # a mistake of ours, which Python shows
            say("failed", message=_message(error), kind=type(error).__name__, status=STATUS_FAILED)
            raise


def _set_up_logging(verbose: int) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = RichHandler(level, console=err)
    handler.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], CancelledError)))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("geodl_dask").setLevel(level)
    if not dask.config.get("logging", None):  # distributed reads it when it is imported, which is later
        # It shouts of each failed attempt, of which our own message is the sum.
        spoken = ("critical", "warning", "info")[min(verbose, 2)]
        # Tornado would print the traceback of an interrupt, and asyncio that of a connection which was cut by one.
        silent = dict.fromkeys(("tornado", "tornado.application", "asyncio"), "critical")
        # The client has a level of its own, which is warning unless it is said.
        dask.config.set({"logging": {"distributed": spoken, "distributed.client": spoken, **silent}})
        os.environ["DASK_LOGGING__DISTRIBUTED"] = spoken  # for worker processes


@contextmanager
def _recorded(path: Path) -> Iterator[Say]:
    """Our log records go to a file of JSON lines too, and what is said."""
    ours = logging.getLogger("geodl_dask")
    with closing(RunLog(path)) as log:
        ours.addHandler(log)
        ours.setLevel(logging.DEBUG)  # the events among them; what the terminal shows is its handler's business
        try:
            yield log.say
        finally:
            ours.removeHandler(log)


def _print_error(error: Exception) -> None:
    err.print(Text.assemble(("Error: ", "bold red"), _message(error)), soft_wrap=True)


def _message(error: BaseException) -> str:
    return " ".join([str(error), *_notes(error)])


def _notes(error: BaseException) -> list[str]:
    """What was added to an error on its way, such as what is kept."""
    return getattr(error, "__notes__", [])


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C, and what a batch system or a closed terminal sends, end the work with everything put away.

    A second Ctrl-C does not wait for that. What a batch system sends again, as some do, changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        for each in heeded:
            signal.signal(each, stop_now if each == signal.SIGINT else signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    def stop_once_more(unheard: Any) -> None:
        """Raise what Python has just dropped, as it does in callbacks of weak references, and in destructors."""
        stopped = unheard.exc_value
        if not (isinstance(stopped, KeyboardInterrupt) and stopped.args and hasattr(signal, "setitimer")):
            tell(unheard)
            return
        signal.signal(signal.SIGALRM, lambda *_: stop(stopped.args[0], None))
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # by when the callback has returned

    def stop_now(number: int, frame: Any) -> None:
        os.write(2, b"Stopped at once. What a run has begun may lie beside its output, under a name with .partial.\n")
        os._exit(STATUS_SIGNALLED + number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup's wish
    before = {number: signal.signal(number, stop) for number in heeded}
    tell, sys.unraisablehook = sys.unraisablehook, stop_once_more
    try:
        yield
    finally:
        sys.unraisablehook = tell
        for number, handler in before.items():
            if signal.getsignal(number) is stop:  # once stopped, impatience stays in force until the process is gone
                signal.signal(number, handler)


def showing_progress(work: Callable[..., Written], output: str, *, quiet: bool) -> Written:
    """Do what takes a ``progress``, with a bar of share, rate and time left; where there is no terminal, by lines."""
    name = Path(output).name
    if quiet:
        return work(progress=None)
    if not err.is_terminal:
        lines = _Lines(name)
        written = work(progress=lines)
        lines.end()
        return written
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[rate]}", markup=False), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err) as bar:
        advance = _Advance(bar, bar.add_task(name, total=None, rate=""))
        written = work(progress=advance)
        advance.end()
    return written


class _Advance:
    """Moves a progress bar: pixels done, and their rate."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task, self._started, self._total = bar, task, time.perf_counter(), 1

    def __call__(self, done: int, total: int, last: str = "finishing the file") -> None:
        rate, self._total = done / 1e6 / (time.perf_counter() - self._started), total
        shown = f"{rate:.2f} Mpx/s" + (f", {last}" if done == total else "")
        self._bar.update(self._task, completed=done, total=total, rate=shown)

    def end(self) -> None:
        """Say that all is done."""
        self(self._total, self._total, "done")


class _Lines:
    """Prints now and then how far a run is, for a file."""

    def __init__(self, name: str) -> None:
        self._name, self._rate, self._said = name, Rate(), time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        rate, now = self._rate.note(done), time.monotonic()
        if now - self._said < LINE_EVERY_S:
            return
        self._said = now
        left = f", {_duration((total - done) / rate)} left" if rate and done < total else ""
        self._print(f"{done / total:.0%}, {rate / 1e6:.2f} Mpx/s{left}")

    def end(self) -> None:
        """Say that all is done."""
        self._print("done")

    def _print(self, text: str) -> None:
        err.print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self._name}: {text}", soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def print_forecast(told: Forecast, room: Room, *, free_bytes: int) -> None:
    """What a run would do."""
    (rows, cols), (height, width) = told.blocks_yx, told.block_yx
    of_shard = f" of shard {told.shard}" if told.shard != "1/1" else ""
    limit = f" and {_size(room.memory_bytes)}" if room.memory_bytes else ""
    took = told.prediction_bytes
    predicting = f"a prediction takes {_size(took)} by the probe" if took else "what a prediction takes was not probed"
    lines = {
        "Grid": told.grid,
        "Blocks": f"{rows} x {cols} of up to {height} x {width} pixels: {told.block_why}",
        "To compute": f"{told.shard_blocks - told.kept_blocks:,} of {told.shard_blocks:,} blocks{of_shard}; "
        f"{told.kept_blocks:,} are kept already",
        "Tasks": f"{told.tasks:,} of up to {told.blocks_per_task:,} block(s)",
        "Tiles": f"{told.tiles:,} in all; {told.prediction}",
        "To read": f"up to {_size(told.read_bytes)} of pixels on this grid, halos too; of compressed files less",
        "To write": f"up to {_size(told.result_bytes)} of pixels, before they are compressed; {_size(free_bytes)} of "
        "the disk are free",
        "Workers": f"{room.workers} with {room.threads} thread(s){limit} each",
        "Memory": f"{room.threads} block(s) at once in a worker, of {_size(told.block_bytes)} as pixels; {predicting}",
        "Time": "a run tells it once its first blocks are done",
    }
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, text in lines.items():
        facts.add_row(name, Text(text))
    out.print(facts)
    for warning in told.warnings(room):
        out.print(f"Warning: {warning}")
    out.print("Nothing was computed or written.")


def _size(count: int | None) -> str:
    from dask.utils import format_bytes

    return "an unknown amount" if count is None else format_bytes(count)


def print_shard(change: xr.DataArray | xr.Dataset, written: Written, shard: Shard) -> None:
    """What a shard has done, what is missing in all, and how it goes on."""
    rows, cols = (len(lengths) for lengths in change.chunksizes.values())
    count, left = shard.block_count((rows, cols)), written.shards_left or ()
    missing = sum(Shard(number, shard.count).block_count((rows, cols)) for number in left)
    named = ", ".join(map(str, left[:NAMED])) + (", ..." if len(left) > NAMED else "")
    are = f"up to {missing:,} of {rows * cols:,} blocks are missing, of the shards {named}; then" if left else "now"
    failed = f", {len(written.failed_blocks):,} failed" if written.failed_blocks else ""
    out.print(
        f"Shard {shard} is done: {count:,} blocks, {written.computed_blocks:,} of them computed now{failed}; {are} "
        f"geodl-dask finalize {written.path}"
    )


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
