"""The ``Runner`` contract, and ``load_runner``, which finds the runner of a model.

A runner is a loaded model on a device. It knows nothing of Dask, files or grids: it gets a batch of
tiles and answers with scores or class values. Each runner lives in one module that owns one foreign
library and is imported only when a model needs it.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from ..definition import ModelDefinition
from ..digest import is_file
from ..ecd import sniff_model
from ..errors import ModelArgumentError, ModelDefinitionError, ModelFileError, UntrustedCodeError
from ..model_files import require_unchanged
from ..tiling import TileSpec

OWN_FUNCTION = "GeodlDaskFunction.py"
"""The raster function that `geodl_dask.packing` puts into packages."""

Device = Literal["cpu", "cuda"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class RunnerSpec:
    """Everything a worker needs to load a runner; small, hashable and picklable. Weights stay on disk."""

    definition: ModelDefinition
    """The model."""
    kind: Literal["native", "raster-function"]
    """Who runs it: we, or the Python that the model brings."""
    band_count: int
    """Bands of each raster."""
    pixel_type: str
    """numpy name of the type that pixels are delivered in, e.g. ``"uint8"``."""
    arguments: tuple[tuple[str, str], ...] = ()
    """Model arguments as text, names as the model has them."""
    output: str | None = field(default=None, compare=False)
    """Meaning of a native model's output; None: read off the first prediction. Says nothing of which model it is."""
    device: Device = "cpu"
    """Where it runs; ``"cuda"`` is the one GPU that this process sees as 0."""
    raster_count: Literal[1, 2] = 2
    """2 for a from and a to raster, whose bands are stacked; 1 for one raster."""
    precision: Precision = "float32"
    """In which torch computes convolutions and matrix products."""
    compiled: bool = False
    """Whether torch compiles the network first."""


@dataclass(frozen=True)
class Batch:
    """Tiles for one call of a runner. The arrays are read-only views or shared: never write into them."""

    images: tuple[np.ndarray, ...]
    """For each raster, from before to: (tile, band, y, x) pixels as stored; 0 where not valid."""
    valid: np.ndarray
    """(tile, y, x) bool, True where every raster has an observation; False outside the rasters."""
    origins: np.ndarray
    """(tile, 2) int64: row and column, in the grid, of each tile's upper-left pixel."""


@dataclass(frozen=True)
class Parameter:
    """An argument that a model takes."""

    name: str
    """Name under which its value reaches the model."""
    data_type: str
    """Esri's word for it: raster, rasters, numeric, string, boolean, GPLong, GPDouble, GPString."""
    default: str | None
    """Default as text; None where it has none."""
    display_name: str
    """Name for people."""
    description: str
    """What it is for."""
    domain: tuple[str, ...]
    """Allowed values; lowest and highest for GPDouble and GPLong; empty where any value will do."""

    @property
    def is_number(self) -> bool:
        """Whether values are numbers."""
        return self.data_type.lower() in ("numeric", "gplong", "gpdouble")


@dataclass(frozen=True)
class Locality:
    """Whether several of a model's tiles may be predicted as one."""

    obstacle: str | None
    """Why tiles must be predicted one by one, as the rest of a sentence about the model; None: they need not."""
    bytes_per_px: float = 0.0
    """Memory that a prediction takes for each pixel of its input; 0: not known."""


@runtime_checkable
class Runner(Protocol):
    """A loaded model. Everything here is fixed once it is loaded."""

    tile: TileSpec
    """The window that it wants, and the margin of it that is cut from the prediction."""
    batch_size: int
    """Tiles per call of ``predict``: exactly that many, or less where memory is short."""
    returns: Literal["scores", "classes"]
    """Whether ``predict`` gives scores, which the kernel decides, or class values."""
    output: str
    """What the scores are: logits, probabilities, distance; or classes."""
    threshold: float | None
    """One-channel scores: the class is the first non-zero value above this score, in the score's own unit."""

    def lane(self) -> AbstractContextManager[object]:
        """What a thread holds while it predicts and decides, for as many as may do that at once."""
        ...

    def predict(self, batch: Batch) -> Any:
        """Answer for a batch. Runs on workers.

        Returns float32 scores (tile, class, y, x), as an array or as a torch tensor on any device, or integer class
        values (tile, y, x) as an array, where y, x is the whole tile or its core.
        Raises InferenceError, MemoryShortageError where a smaller batch might go through.
        """
        ...


def choose_kind(definition: ModelDefinition, runner: str = "auto") -> Literal["native", "raster-function"]:
    """Who runs this model: ``runner`` if it can, by default the model's own function where it names one.

    By default we run what arcgis.learn trained for change detection, whose function is always the same, and what
    `geodl_dask.packing` wrote, whose function is ours. Neither weakens trust: run natively, none of the model's Python
    is, whatever stands in the file that the definition names.

    Raises ModelDefinitionError where the definition has not what that runner needs.
    """
    from .change_detector import is_at_home

    has_function = definition.inference_function_name is not None
    is_ours = _is_packed(definition) or is_at_home(definition)
    if runner == "raster-function" or (runner == "auto" and has_function and not is_ours):
        if not has_function:
            raise ModelDefinitionError(
                f"{definition.source} names no InferenceFunction, so there is no raster function to run. Use "
                "--runner auto."
            )
        return "raster-function"
    if runner not in ("auto", "native"):
        raise ModelDefinitionError(f"runner is {runner!r}; auto, native or raster-function is needed.")
    return "native"


def _is_packed(definition: ModelDefinition) -> bool:
    """Whether the definition says in our terms all that the function which it names would do, for a file we can run."""
    is_described = definition.inference_function_name == OWN_FUNCTION and "GeodlDask" in definition.keys
    return is_described and _file_format(definition) in ("torch", "onnx")


def carries_code(definition: ModelDefinition, kind: str) -> bool:
    """Whether running the model runs code that it brings: a raster function, or what a Keras file may hold."""
    return kind == "raster-function" or _file_format(definition) == "keras"


def _file_format(definition: ModelDefinition) -> Literal["torch", "onnx", "keras", "change-detector"] | None:
    """What can run the model's file natively."""
    from .change_detector import is_change_detector

    if is_change_detector(definition):
        return "change-detector"
    path = Path(definition.model_file or "")
    by_suffix: dict[str, Literal["torch", "onnx", "keras"]] = {
        ".pt": "torch", ".pt2": "torch", ".onnx": "onnx", ".keras": "keras", ".h5": "keras",
    }  # fmt: skip
    if path.suffix.lower() in by_suffix or not is_file(str(path)):
        return by_suffix.get(path.suffix.lower())
    # An .ecd may carry a model under any name.
    by_content: dict[str, Literal["torch", "onnx", "keras"]] = {"PyTorch": "torch", "ONNX": "onnx", "Keras": "keras"}
    return by_content.get(sniff_model(path))


def require_trust(definition: ModelDefinition, kind: str, *, trust_code: bool) -> None:
    """Refuse to go on where the model's own Python would run and nobody has said that it may.

    Raises UntrustedCodeError, also for a word that is neither True nor False.
    """
    if not isinstance(trust_code, bool):
        raise UntrustedCodeError(f"trust_code is {trust_code!r}; True or False is needed, for text may mean either.")
    if carries_code(definition, kind) and not trust_code:
        code = definition.inference_function_name if kind == "raster-function" else definition.model_file
        raise UntrustedCodeError(
            f"{definition.source} brings its own code ({code}), which would run with your rights. If you trust where "
            "it comes from, say --trust-code (Python: trust_code=True)."
        )


def require_torch_options(spec: RunnerSpec) -> None:
    """Refuse a precision, or to be compiled, for a model that torch does not run natively.

    Raises ModelArgumentError.
    """
    if spec.precision not in get_args(Precision):
        raise ModelArgumentError(f"precision is {spec.precision!r}; {', '.join(get_args(Precision))} are possible.")
    is_plain = spec.precision == "float32" and not spec.compiled
    if not is_plain and (spec.kind != "native" or _file_format(spec.definition) not in ("torch", "change-detector")):
        raise ModelArgumentError(
            f"precision and compiled are for networks that torch runs natively, and {spec.definition.source} is none. "
            "Leave them out."
        )


def obstacle(definition: ModelDefinition, kind: str) -> str | None:
    """Why nobody here can run the model, as the rest of a sentence about it; None where somebody can."""
    file_format = _file_format(definition)
    if kind == "native" and file_format == "change-detector":
        from .change_detector import obstacle as obstacle_of_detector

        return obstacle_of_detector(definition) or _missing_file(definition)
    if kind == "raster-function":
        return None
    if file_format is not None:
        return _missing_file(definition)
    return (
        f"names no InferenceFunction, and its ModelFile is {definition.keys.get('ModelFile')!r}; a TorchScript (.pt), "
        "torch.export (.pt2), ONNX (.onnx) or Keras (.keras) file is needed to run it without one."
    )


def _missing_file(definition: ModelDefinition) -> str | None:
    """That the model's file is not there, as the rest of a sentence about it; None where it is."""
    if not definition.model_file or os.path.exists(definition.model_file):  # noqa: PTH110 - a name too long is none
        return None
    return (
        f"names the ModelFile {definition.keys.get('ModelFile')!r}, and {definition.model_file} is not there. Put it "
        "there, or give the whole package (.dlpk)."
    )


def describe_parameters(
    definition: ModelDefinition, kind: Literal["native", "raster-function"], device: Device = "cpu"
) -> tuple[Parameter, ...]:
    """The arguments that a model takes. Runs the code of a model with a raster function; no rasters are needed.

    Raises ModelDefinitionError, ModelFileError, DeviceError or MissingDependencyError.
    """
    if kind == "raster-function":
        from . import raster_function

        return raster_function.describe_parameters(definition, device)
    if _file_format(definition) == "change-detector":
        from . import change_detector

        return change_detector.describe_parameters(definition)
    from . import native

    return native.describe_parameters(definition)


def load_runner(spec: RunnerSpec) -> Runner:
    """Load the model of ``spec``. Runs on the client once, and once per worker process.

    Raises ModelFileError (also where the files changed since the definition was read), ModelDefinitionError,
    ModelArgumentError, BandCountError, DeviceError or MissingDependencyError.
    """
    require_unchanged(spec.definition)
    if spec.kind == "raster-function":
        from .raster_function import RasterFunctionRunner

        return RasterFunctionRunner(spec)
    if missing := _missing_file(spec.definition):
        raise ModelFileError(f"{spec.definition.source} {missing}")
    file_format = _file_format(spec.definition)
    if file_format == "change-detector":
        from .change_detector import load_change_detector

        return load_change_detector(spec)
    from .native import NativeRunner

    if file_format == "onnx":
        from .onnx import OnnxNetwork

        return NativeRunner(spec, OnnxNetwork(spec))
    if file_format == "torch":
        from .pytorch import TorchNetwork

        return NativeRunner(spec, TorchNetwork(spec))
    if file_format == "keras":
        from .keras import KerasNetwork

        return NativeRunner(spec, KerasNetwork(spec))
    raise ModelDefinitionError(f"{spec.definition.source} {obstacle(spec.definition, spec.kind)}")
