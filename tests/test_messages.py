"""Every error, provoked through the command line: its message has what was given, what was needed, and what to do."""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dask
import distributed.config  # noqa: F401  # the defaults of which one is changed below
import numpy as np
import pytest
import torch
from affine import Affine
from click.testing import CliRunner
from conftest import TRANSFORM, save_network, write_definition, write_raster
from dask_processes import dask_processes

from geodl_dask import errors
from geodl_dask.cli import cli
from geodl_dask.ecd import EcdError

BASES = {errors.GeodlError}
ERRORS = {each for _, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__}


@dataclass
class Place:
    """Where a case is tried: a whole run that would succeed, of which it spoils something."""

    folder: Path
    network: torch.nn.Module
    patch: pytest.MonkeyPatch
    words: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)

    def path(self, name: str) -> Path:
        return self.folder / name

    def model(self, network: torch.nn.Module | None = None, suffix: str = ".pt", **keys) -> None:
        save_network(network or self.network, self.path(f"toy{suffix}"))
        self.words["model"] = str(write_definition(self.path("m.emd"), **{"ModelFile": f"toy{suffix}", **keys}))


CASES: dict[type[Exception], tuple[Callable[[Place], object], str, str, str]] = {}
"""Of each error: what provokes it, and of its message what was given, what was needed, what to do."""


def case(error: type[Exception], *, given: str, needed: str, do: str):
    def add(spoil):
        CASES[error] = (spoil, given, needed, do)
        return spoil

    return add


@case(errors.RequestError, given="'slrum'", needed="local, cuda, slurm", do="the path of a scheduler file is needed")
def _(place):
    place.options += ["--cluster", "slrum"]


@case(
    errors.ModelDefinitionError,
    given="m.emd",
    needed="not JSON",
    do="property name enclosed in double quotes at line 1, column 2",
)
def _(place):
    Path(place.words["model"]).write_text("{ImageHeight: 16}")


@case(errors.ModelPackageError, given="m.dlpk", needed="no model definition (.emd)", do="give the .emd that names it")
def _(place):
    place.words["model"] = str(place.path("m.dlpk"))
    with zipfile.ZipFile(place.words["model"], "w") as archive:
        archive.writestr("model/data.pkl", "")


@case(
    errors.ModelFileError,
    given="toy.pt",
    needed="weights alone (a state dict) need their network",
    do="Save the network again",
)
def _(place):
    torch.save(place.network.state_dict(), place.path("toy.pt"))


@case(errors.ModelArgumentError, given="paddign", needed="takes batch_size, padding", do="Did you mean padding?")
def _(place):
    place.options += ["--arguments", "paddign 4"]


@case(errors.UntrustedCodeError, given="evil.py", needed="brings its own code", do="say --trust-code")
def _(place):
    place.path("evil.py").touch()
    write_definition(place.path("m.emd"), InferenceFunction="evil.py")


@case(errors.RasterNotFoundError, given="nowhere.tif", needed="does not exist", do="Give its path from there")
def _(place):
    place.words["from"] = "nowhere.tif"


@case(errors.RasterInputError, given="from.tif", needed="has no CRS", do="rio edit-info --crs")
def _(place):
    write_raster(place.path("from.tif"), np.zeros((3, 32, 32), np.uint8), crs=None)


@case(
    errors.BandCountError,
    given="5 band(s)",
    needed="takes 3 of each date",
    do="Choose them: --from-bands and --to-bands",
)
def _(place):
    for name in ("from", "to"):
        write_raster(place.path(f"{name}.tif"), np.zeros((5, 32, 32), np.uint8))


@case(errors.GridMismatchError, given="bounds (900000", needed="does not overlap from_raster", do="Are both CRS right?")
def _(place):
    away = Affine.translation(400_000, 0) @ TRANSFORM
    write_raster(place.path("to.tif"), np.zeros((3, 32, 32), np.uint8), transform=away)


@case(errors.TileGeometryError, given="padding 8", needed="leaves nothing of a tile of 16 x 16", do="must be at most 7")
def _(place):
    place.options += ["--arguments", "padding 8"]


@case(errors.OutputError, given="out.png", needed=".tif or .tiff or .zarr", do="the ending decides the format")
def _(place):
    place.words["out"] = str(place.path("out.png"))


@case(errors.OutputExistsError, given="out.tif", needed="exists", do="Choose another name, or say --overwrite")
def _(place):
    place.path("out.tif").touch()


@case(errors.DeviceError, given="GPU 99", needed="was asked for", do="see nvidia-smi")
def _(place):
    place.options += ["--gpu-id", "99"]


@case(
    errors.MissingDependencyError,
    given="ONNX",
    needed="ONNX Runtime is not installed",
    do='pip install "geodl_dask[onnx]"',
)
def _(place):
    place.model(suffix=".onnx")
    place.patch.setitem(sys.modules, "onnxruntime", None)


class Answers(torch.nn.Module):
    """A network that answers with what is given, for each pixel."""

    def __init__(self, value: float, repeats: int = 1) -> None:
        super().__init__()
        self.value, self.repeats = value, repeats

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return (stack[:, :2] * self.value).repeat(1, 1, 1, self.repeats)[..., :16]


@case(errors.InferenceError, given="NaN", needed="finite", do="Are its weights whole")
def _(place):
    place.model(Answers(float("nan")))


@case(errors.MemoryShortageError, given="m.emd", needed="memory enough for", do="Smaller tiles take less")
def _(place):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Answers(1.0, 10**12)).save(place.path("toy.pt"))


def half(place: Place) -> None:
    rng = np.random.default_rng(1)
    whole = write_raster(place.path("from.tif"), rng.integers(0, 9, (3, 640, 640), np.uint8), compress="deflate")
    write_raster(place.path("to.tif"), np.zeros((3, 640, 640), np.uint8))
    with whole.open("r+b") as file:
        file.truncate(whole.stat().st_size * 9 // 10)
    place.options += ["--chunks", "128", "--tile-size", "model"]


@case(errors.BlockFailedError, given="blocks failed", needed="all others are done", do="--resume")
def _(place):
    half(place)


@case(
    errors.RasterReadError,
    given="from.tif cannot be read at row",
    needed="Is the file whole and reachable",
    do="--resume",
)
def _(place):
    half(place)


@case(errors.RunError, given="2 of shard 2/2", needed="blocks are missing", do="Let those shards run again")
def _(place):
    place.options += ["--shard", "1/2", "--chunks", "16"]
    done = CliRunner().invoke(cli, ["detect-change", *place.words.values(), *place.options])
    assert done.exit_code == 0, done.output
    place.words, place.options = {"finalize": place.words["out"]}, []


@case(
    errors.WorkerSetupError,
    given="Worker ",
    needed="cannot begin: OSError: libcuda.so.1",
    do="Mend that on its machine",
)
def _(place):
    place.model(suffix=".onnx")
    place.path("broken").mkdir()
    place.path("broken/onnxruntime.py").write_text("raise OSError('libcuda.so.1: cannot open shared object file')")
    place.patch.setenv("PYTHONPATH", os.pathsep.join([str(place.path("broken")), os.environ.get("PYTHONPATH", "")]))
    running = dask_processes()
    place.options += ["--cluster", running.__enter__()[0]]
    return running


@case(errors.SchedulerLostError, given="scheduler at tcp://", needed="was lost", do="Start it again")
def _(place):
    for name in ("from", "to"):
        write_raster(place.path(f"{name}.tif"), np.zeros((3, 2048, 2048), np.uint8))
    running = dask_processes()
    address, scheduler = running.__enter__()

    def kill_after_a_block() -> None:
        until = time.monotonic() + 120
        while not any(place.folder.glob("out.tif.partial/parts-*/*_*.tif")) and time.monotonic() < until:
            time.sleep(0.01)
        scheduler.kill()

    threading.Thread(target=kill_after_a_block, daemon=True).start()
    place.options += ["--cluster", address, "--chunks", "64", "--tile-size", "model"]
    place.patch.setitem(dask.config.get("distributed.comm.timeouts"), "connect", "5s")
    return running


@case(EcdError, given="nowhere.onnx", needed="is no file", do="give a model file")
def _(place):
    place.words = {name: str(place.path(name)) for name in ("nowhere.onnx", "classes.json", "out.ecd")}


def test_every_error_has_a_case():
    assert CASES.keys() - {EcdError} == ERRORS - BASES


@pytest.mark.parametrize("error", CASES, ids=lambda each: each.__name__)
def test_message_says_what_was_given_what_was_needed_and_what_to_do(error, tmp_path, toy_network, monkeypatch, caplog):
    place = Place(tmp_path, toy_network, monkeypatch)
    place.words = {name: str(tmp_path / f"{name}.tif") for name in ("from", "to", "out")}
    for name in ("from", "to"):
        write_raster(tmp_path / f"{name}.tif", np.zeros((3, 32, 32), np.uint8))
    place.model()
    for name in ("distributed", "distributed.client"):  # as the command asks, which distributed heeds when imported
        caplog.set_level(logging.CRITICAL, name)
    spoil, *parts = CASES[error]
    running = spoil(place)
    try:
        command = {EcdError: "model-to-ecd"}.get(error, "finalize" if "finalize" in place.words else "detect-change")
        log = [] if error is EcdError else ["--log-json", str(tmp_path / "log.json")]
        done = CliRunner().invoke(cli, [command, *place.words.values(), *place.options, *log])
    finally:
        if running is not None:
            running.__exit__(None, None, None)
    assert done.exit_code == (2 if issubclass(error, errors.RequestError | EcdError) else 1), done.output
    said = [" ".join(line.split()) for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, done.stderr
    assert [part for part in parts if part not in said[0]] == [], said
    if log:
        told = json.loads((tmp_path / "log.json").read_text().splitlines()[-1])
        assert error.__name__ in (told["kind"], *told["message"].replace(":", " ").split())
        assert told["kind"] in (error.__name__, "BlockFailedError")
        assert said == [f"Error: {' '.join(told['message'].split())}"]
    assert "Traceback" not in done.stderr
