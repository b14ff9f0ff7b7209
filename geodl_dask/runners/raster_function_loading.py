"""Load a model's own Python, and be the only door to it: nothing of it is left in place between calls.

Raster functions import what lies beside them by bare name (``prf_utils``, ``Templates``), change the
working directory and set environment variables. So that two of them can live in one process, and neither
disturbs the rest of it, a function's modules and search paths are put in place when it is called
and taken away when it returns.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any

from ..definition import ModelDefinition, normalise_definition
from ..errors import DeviceError, GeodlError, ModelDefinitionError, ModelFileError
from . import Device, arcgis_learn
from .arcpy_stand_in import arcpy_is_installed, make_arcpy
from .raster_function_causes import explain, function_traceback


class HostedFunction:
    """An initialized raster function. Its methods are called through `call`, and through nothing else."""

    def __init__(self, definition: ModelDefinition, device: Device) -> None:
        """Load and initialize. Raises ModelDefinitionError, ModelFileError, MissingDependencyError or DeviceError."""
        if device == "cuda":
            _claim_gpu()
        self._definition = definition
        private = Path(tempfile.mkdtemp(prefix="geodl_dask-"))
        weakref.finalize(self, shutil.rmtree, private, ignore_errors=True)
        self.file = _function_file(definition, private)
        self.device_number = 0 if device == "cuda" else -1
        self.definition_file = str(_private_definition(definition, private))
        self._package = _package_of(definition, self.file, device)
        needs_learn = str(definition.keys.get("Framework", "")).startswith("arcgis.learn")
        with self._errors(f"Loading {definition.source}", ModelDefinitionError), warnings.catch_warnings():
            warnings.simplefilter("once")
            with arcgis_learn.stand_ins() if needs_learn else nullcontext():
                self._object = self._package.make_object()
                self._initialize()

    def has(self, method: str) -> bool:
        """Whether the function defines ``method``."""
        return callable(getattr(self._object, method, None))

    def call(
        self,
        method: str,
        *args: Any,
        named: Mapping[str, Any] | None = None,
        doing: str,
        wrong: type[GeodlError] = ModelDefinitionError,
    ) -> Any:
        """What the function's ``method`` answers to ``args`` and the keyword arguments ``named``.

        What it raises becomes ``wrong``, or a closer error where the cause is known: one string that says
        what was being done (``doing``), the likely cause, and where in the function it was raised.
        """
        with self._errors(doing, wrong), self._package.in_place():
            return getattr(self._object, method)(*args, **(named or {}))

    def _initialize(self) -> None:
        for method in ("getParameterInfo", "updatePixels"):
            if not self.has(method):
                hint = " It looks like an object detector." if self.has("vectorize") else ""
                raise ModelDefinitionError(f"{self.file} has no {method}, so it cannot classify pixels.{hint}")
        if Path(self._definition.model_file or "").suffix.lower() in _TORCH_SUFFIXES:
            importlib.import_module("torch")  # here, so that `_restore_on_cpu` is known before weights are loaded
        if self.has("initialize"):
            offered = {"model": self.definition_file, "device": self.device_number}
            taken = {name: value for name, value in offered.items() if _accepts(self._object.initialize, name)}
            self.call("initialize", named=taken, doing=f"Loading {self._definition.source}", wrong=ModelFileError)

    @contextmanager
    def _errors(self, doing: str, wrong: type[GeodlError]) -> Iterator[None]:
        """Whatever is raised inside leaves as an error of ours. ``from None``: the message holds the traceback."""
        try:
            yield
        except GeodlError:
            raise
        except (Exception, SystemExit) as error:
            kind, cause = explain(error, wrong, self._definition)
            raised = "".join(traceback.format_exception_only(error)).strip()
            raise kind(f"{doing}, {self.file.name} raised {raised}\n{cause}\n{function_traceback(error)}") from None


class _Package:
    """The modules, search paths and device variables of one raster function, in place only while it runs."""

    def __init__(self, file: Path, folder: str | None, modules: dict[str, ModuleType]) -> None:
        self._file = file
        self._paths = list(dict.fromkeys([str(file.parent), folder or str(file.parent)]))
        self._modules = modules
        self._variables: dict[str, str | None] = {}
        self._files: dict[str, int] = {}
        self._siblings = {entry.stem for folder in self._paths for entry in Path(folder).iterdir()}

    def is_current(self) -> bool:
        """Whether the files of its modules are still those that were loaded."""
        return all(Path(file).is_file() and Path(file).stat().st_mtime_ns == age for file, age in self._files.items())

    def make_object(self) -> Any:
        """A new object of the function's class; its module runs once. Raises ModelDefinitionError."""
        with self.in_place():
            if self._file.stem not in self._modules:
                self._run_module()
            return _find_class(sys.modules[self._file.stem], self._file)()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Lend the process to this package. One package at a time: the others wait."""
        with _lane:
            path, folder, names = list(sys.path), Path.cwd(), set(sys.modules)
            shadowed = self._shadowed(names)
            variables = _device_variables()
            for name in shadowed:
                del sys.modules[name]
            sys.path[:0] = self._paths
            sys.modules.update(self._modules)
            _set_variables(self._variables)
            _show_warnings_once(self._modules)
            _bear_cuda_weights()
            _in_place.set()
            try:
                yield
            finally:
                _in_place.clear()
                self._variables = _device_variables()
                self._paths += [entry for entry in dict.fromkeys(sys.path) if entry not in (*path, *self._paths)]
                self._keep_modules(sys.modules.keys() - (names - shadowed.keys()), path)
                sys.modules.update(shadowed)
                sys.path[:] = path
                _set_variables(variables)
                os.chdir(folder)

    def _shadowed(self, names: set[str]) -> dict[str, ModuleType]:
        """Modules of the process that must step aside: the package brings its own ``utils``, and the user has one too.

        Libraries stay: a package that carries a copy of one gets what this process has loaded, as ever in Python.
        """
        shadowed = {name: sys.modules[name] for name in {self._file.stem, *self._modules} & names}
        for top in self._siblings & names - shadowed.keys():
            place = _place(sys.modules[top])
            if place and not place.startswith((*_LIBRARIES, *(entry + os.sep for entry in self._paths))):
                inside = [name for name in names if name == top or name.startswith(f"{top}.")]
                shadowed.update((name, sys.modules[name]) for name in inside)
        return shadowed

    def _run_module(self) -> None:
        name = self._file.stem
        spec = importlib.util.spec_from_file_location(name, self._file)
        if spec is None or spec.loader is None:
            raise ModelDefinitionError(f"{self._file} is not a Python file.")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        self._keep(name, str(self._file))

    def _keep_modules(self, new: Iterable[str], path: list[str]) -> None:
        """Take away the package's modules: those it had, and of the ``new`` ones those that came from its paths alone.

        A module belongs to the longest search path that it lies under, so that an environment below the
        model's folder keeps its libraries.
        """
        others = {os.path.abspath(entry) for entry in path}  # noqa: PTH100 (resolves "..", not links)
        own = {os.path.abspath(entry) for entry in self._paths} - others  # noqa: PTH100
        entries = sorted(own | others, key=len, reverse=True)
        for name in new:
            place = _place(sys.modules[name])
            if next((entry for entry in entries if place.startswith(entry + os.sep)), None) in own:
                self._keep(name, place)
        for name in self._modules:
            sys.modules.pop(name, None)

    def _keep(self, name: str, place: str) -> None:
        self._modules[name] = sys.modules[name]
        if Path(place).is_file():
            self._files.setdefault(place, Path(place).stat().st_mtime_ns)


def _place(module: ModuleType) -> str:
    """Where a module's file lies, or its folder; empty for built-in ones."""
    places = [getattr(module, "__file__", None), *(getattr(module, "__path__", None) or ())]
    return next((os.path.abspath(each) for each in places if each), "")  # noqa: PTH100


_LIBRARIES = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_lane = threading.RLock()
_in_place = threading.Event()
_packages: dict[tuple[object, ...], _Package] = {}


def _package_of(definition: ModelDefinition, file: Path, device: Device) -> _Package:
    """The package of ``file``: the same one while its files are, since some code trees bear only one import."""
    key = (file, definition.folder, device)
    with _lane:
        if key not in _packages or not _packages[key].is_current():
            modules = {} if arcpy_is_installed() else make_arcpy(device)
            _packages[key] = _Package(file, definition.folder, modules)
        return _packages[key]


def _function_file(definition: ModelDefinition, private: Path) -> Path:
    if definition.inference_function is not None:
        return Path(definition.inference_function)
    name = definition.inference_function_name or ""
    file = arcgis_learn.write_function(PureWindowsPath(name).stem, private)
    if file is None:
        raise ModelDefinitionError(
            f"{definition.source} names the InferenceFunction {name!r}, which is not there. It was looked for in the "
            "folder that the environment variable GEODL_DASK_FUNCTIONS names, beside the definition, and in an "
            "installed arcgis package. Set GEODL_DASK_FUNCTIONS to the folder that holds it (ArcGIS Pro: "
            "Resources/Raster/Functions), copy the file beside the definition, or, for a model of arcgis.learn: "
            "pip install arcgis"
        )
    return file


def _private_definition(definition: ModelDefinition, private: Path) -> Path:
    """The normalised definition in a folder of our own, with links to what lies beside the original.

    Functions look for their other files beside the definition that they are given.
    """
    file = normalise_definition(definition, private)
    for entry in Path(definition.folder).iterdir() if definition.folder else ():
        with suppress(OSError):  # the name is taken, or this system allows no links
            if entry.suffix.lower() != ".emd":
                (private / entry.name).symlink_to(entry)
    return file


def _find_class(module: ModuleType, file: Path) -> Callable[[], Any]:
    named = getattr(module, file.stem, None)
    if isinstance(named, type):
        return named
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    able = [each for each in own if hasattr(each, "getParameterInfo")]
    if len(able) == 1:
        return able[0]
    found = ", ".join(each.__name__ for each in (able or own)) or "no class"
    raise ModelDefinitionError(
        f"{file} defines {found}; a class named {file.stem}, or else just one with the method getParameterInfo, is "
        "needed."
    )


def _accepts(method: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(method).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _claim_gpu() -> None:
    """Start CUDA now: it reads CUDA_VISIBLE_DEVICES once, and functions set it to 0, which may be another GPU."""
    import torch

    if not torch.cuda.is_available():
        raise DeviceError("The raster function is to run on a GPU, and torch sees none in this process.")
    torch.cuda.init()


def _device_variables() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}


def _set_variables(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _show_warnings_once(modules: Iterable[str]) -> None:
    """Show each warning of these modules once, and never as an error: functions give hundreds, for every tile.

    A filter and not ``warnings.catch_warnings``, which would disturb the threads that read meanwhile.
    """
    pattern = rf"({'|'.join(re.escape(name) for name in sorted(modules))})\Z"
    if ("once", None, Warning, re.compile(pattern), 0) not in warnings.filters:
        warnings.filterwarnings("once", module=pattern)


_TORCH_SUFFIXES = (".pth", ".pt", ".pkl", ".bin", ".ckpt")


def _bear_cuda_weights() -> None:
    """Make torch ask `_restore_on_cpu` where weights go, before it would refuse those saved on a GPU (priority 20)."""
    if "torch" in sys.modules and not _cuda_weights_are_borne.is_set():
        sys.modules["torch"].serialization.register_package(19, lambda storage: None, _restore_on_cpu)
        _cuda_weights_are_borne.set()


_cuda_weights_are_borne = threading.Event()


def _restore_on_cpu(storage: Any, location: str) -> Any:
    """The storage where it is, on the CPU, if a raster function loads it, it was saved on a GPU and there is none."""
    if _in_place.is_set() and location.startswith("cuda") and not sys.modules["torch"].cuda.is_available():
        return storage
    return None
