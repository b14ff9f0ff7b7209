"""What is likely wrong when a raster function raises: the question behind most threads about such models."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from ..definition import ModelDefinition
from ..errors import GeodlError, InferenceError, MissingDependencyError, ModelDefinitionError


def explain(error: BaseException, wrong: type[GeodlError], definition: ModelDefinition) -> tuple[type[GeodlError], str]:
    """(class of our error, likely cause in a sentence) of what a function raised; ``wrong`` if nothing closer fits."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    absent = next((each for each in chain if isinstance(each, ImportError)), None)
    if absent is not None:
        kind, cause = _explain_import(absent, definition)
        return (wrong if wrong is InferenceError else kind), cause
    text = "\n".join("".join(traceback.format_exception_only(each)) for each in chain)
    for pattern, cause in _CAUSES:
        if found := re.search(pattern, text):
            return wrong, cause.format(*found.groups())
    return wrong, "The cause is in the function, or in what the definition tells it."


def _explain_import(error: ImportError, definition: ModelDefinition) -> tuple[type[GeodlError], str]:
    name = error.name or ""
    top = name.partition(".")[0]
    if top == "arcpy":
        return MissingDependencyError, f"It needs {name or 'arcpy'}, which only ArcGIS has; it cannot run without it."
    if not isinstance(error, ModuleNotFoundError):
        return MissingDependencyError, f"{top or 'A library'} is installed in a version that does not fit, or in part."
    if top == str(definition.keys.get("Framework", "")).partition(".")[0] and top != "arcgis":
        return ModelDefinitionError, (
            f"The definition's Framework is {top!r}, and there is no folder of that name beside the function."
        )
    if top in _PIP_NAMES:
        return MissingDependencyError, f"It needs {top}: pip install {_PIP_NAMES[top] or top}"
    return MissingDependencyError, (
        f"It needs {top}, which is neither beside the function nor installed. If it is a library: pip install {top}"
    )


_PIP_NAMES = {
    **dict.fromkeys(
        ("arcgis", "einops", "fastai", "keras", "onnx", "onnxruntime", "scipy", "segmentation_models_pytorch")
    ),
    **dict.fromkeys(("tensorflow", "timm", "torch", "torchvision", "transformers")),
    "cv2": "opencv-python-headless",
    "GPUtil": "gputil",
    "osgeo": "gdal",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Import name to the name that pip knows it by, where that differs."""

_CAUSES = (
    (
        r"deserialize object on (?:a )?CUDA|compiled with CUDA|No CUDA GPUs|no NVIDIA driver|from the 'CUDA' backend",
        "The function or its weights insist on a GPU: run it with the processor type gpu where there is one.",
    ),
    (r"[Oo]ut of memory", "Memory ran out: a smaller batch_size or tile_size needs less."),
    (
        r"(?:destination|array) is read-only",
        "It wrote into an array that may not be written. Those handed to it may be, so it is one that it made itself.",
    ),
    (r"ZeroDivisionError", "It divided by 0: an argument, such as batch_size, is 0 where at least 1 is needed."),
    (
        r"invalid literal for int\(\) with base 10: (.+)",
        "It reads an argument, or a key of the definition, as a whole number and got {0}: write it without a point.",
    ),
    (
        r"could not convert string to float: (.+)",
        "It reads an argument, or a key of the definition, as a number and got {0}.",
    ),
    (
        r"module 'arcpy[\w.]*' has no attribute '(\w+)'",
        "It needs arcpy's {0}, which only ArcGIS has; it cannot run without it.",
    ),
    (
        r"module 'numpy' has no attribute '(\w+)'",
        "It was written for an older numpy: numpy.{0} is gone, and its author must update it.",
    ),
    (
        r"Weights only load failed",
        "The model file holds more than weights; torch 2.6 and later load that only with weights_only=False.",
    ),
    (r"state_dict|size mismatch", "The weights do not belong to the network that the function builds."),
    (r"JSONDecodeError", "A JSON file that it reads is broken; a single backslash in a path is the usual reason."),
    (r"No such file or directory: (.*\\.*)", "The path {0} has Windows separators, which are no separators here."),
    (r"FileNotFoundError: .*?: (.+)", "The file {0} belongs to the model and is not there."),
    (
        r"KeyError: '(\w+)'",
        "It looks for {0!r}: a key that the definition lacks, or an argument that has no default and was not given.",
    ),
)
"""(what stands in the text of the exception, its likely cause)."""

_OWN_FRAMES = (str(Path(__file__).parents[1]), "<frozen importlib")


def function_traceback(error: BaseException) -> str:
    """The traceback without our own frames, so that it begins where the function's code does."""
    report = traceback.TracebackException.from_exception(error)
    link: traceback.TracebackException | None = report
    while link is not None:
        frames = [frame for frame in link.stack if not frame.filename.startswith(_OWN_FRAMES)]
        link.stack = traceback.StackSummary.from_list(frames)
        link = link.__cause__ or link.__context__
    return "".join(report.format()).rstrip()
