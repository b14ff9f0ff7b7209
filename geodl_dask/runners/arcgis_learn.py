"""What functions written by arcgis.learn need where there is no ArcGIS: a text, and three stand-ins.

arcgis.learn is the user's own installation; nothing of it is shipped. Its inference code runs outside
ArcGIS (seen with arcgis 2.4.4) except for three things that pip does not deliver or that need the
network. Each has the smallest remedy here, applied only to models whose ``Framework`` starts with
``arcgis.learn``:

``arcgis.learn._utils.nearest_neighbors``   compiled, and in no distribution; without it nothing imports
``spacy``                                   imported by fastai's text package, used by no image model
backbone weights                            downloaded at construction, then overwritten by the model file
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

TEMPLATES = {
    "ArcGISImageClassifier": "image_classifier_prf",
    "ArcGISImageCaptioner": "image_captioning_prf",
    "ArcGISImageTranslation": "image_translation_prf",
    "ArcGISImageTsClassifier": "imagets_classifier_prf",
    "ArcGISInstanceDetector": "instance_detector_prf",
    "ArcGISObjectClassifier": "feature_classifier_prf",
    "ArcGISObjectDetector": "code",
    "ArcGISPanopticSegmenter": "panoptic_segmenter_prf",
    "ArcGISSuperResolution": "super_resolution",
}
"""Function file's stem to the name of its text in ``arcgis/learn/models/_codetemplate.py`` (arcgis 2.4.4)."""


def installed_folder() -> Path | None:
    """Folder of the installed ``arcgis`` package, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec("arcgis")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def write_function(stem: str, folder: Path) -> Path | None:
    """Write arcgis.learn's function ``stem`` into ``folder``, from the user's own installation.

    Returns None where arcgis is not installed or has no such function. Runs none of its code.
    """
    installed = installed_folder()
    template = installed / "learn" / "models" / "_codetemplate.py" if installed else None
    if stem not in TEMPLATES or template is None or not template.is_file():
        return None
    for statement in ast.parse(template.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            if TEMPLATES[stem] in names and isinstance(statement.value.value, str):
                file = folder / f"{stem}.py"
                file.write_text(statement.value.value, encoding="utf-8")
                return file
    return None


@contextmanager
def stand_ins() -> Iterator[None]:
    """Import arcgis.learn and bear what is missing of it while a function is loaded; afterwards nothing is left.

    arcgis.learn takes tens of seconds to import the first time in a process. It must be imported before
    the stand-in for arcpy is in place: it looks for arcpy and would use it. Raises ImportError.
    """
    installed = installed_folder()
    missing = [] if importlib.util.find_spec("spacy") else ["spacy"]
    if installed and not list((installed / "learn" / "_utils").glob("nearest_neighbors*")):
        missing.append("arcgis.learn._utils.nearest_neighbors")
    finder = _StandIns(missing)
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("arcgis.learn")
        with _no_downloads():
            yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if finder.stands_in_for(name)]:
            del sys.modules[name]


@contextmanager
def _no_downloads() -> Iterator[None]:
    """While a model is built, backbone weights are not fetched from the network: the model file has them all."""
    model_zoo: Any = importlib.import_module("torch.utils.model_zoo")
    fetch = model_zoo.load_url
    model_zoo.load_url = lambda url, *args, **kwargs: {}
    try:
        yield
    finally:
        model_zoo.load_url = fetch


class _StandIns(MetaPathFinder, Loader):
    """Finds empty modules under the given names; what is taken from them fails when it is called."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def stands_in_for(self, name: str) -> bool:
        return any(name == each or name.startswith(f"{each}.") for each in self._names)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if self.stands_in_for(name) else None

    def exec_module(self, module: ModuleType) -> None:
        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)

            def fail(*args: object, **kwargs: object) -> NoReturn:
                raise RuntimeError(f"{module.__name__}.{name} was called, and {module.__name__} is not installed.")

            return fail

        module.__getattr__ = attribute  # type: ignore[method-assign]
