"""The demo: the main job on an embedded default.

Two aerial images of one place are rendered (`scenes`), and the network that `train` trained on other places
detects what changed between them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np
import rasterio
import xarray as xr
from rasterio.transform import from_origin

from ..change import detect_change
from ..classes import ClassTable
from ..definition import load_definition
from ..errors import OutputError, OutputExistsError
from ..growth import partial_of
from ..outputs import manifest_of, side_file_of
from ..plot import save_change_picture
from ..stac_item import item_of
from .scenes import render_pair

MODEL_FOLDER = Path(__file__).with_name("model")
SEED = 7
"""Of the demo's scene; training and evaluation use others."""
SHAPE_YX = (1024, 1536)
CELL_SIZE_M = 0.5
CRS = "EPSG:32633"
ORIGIN_XY = (500_000.0, 5_400_000.0)


@dataclass(frozen=True)
class Demo:
    """Where everything of a demo stands."""

    folder: Path
    """The demo's folder."""

    @property
    def from_raster(self) -> Path:
        """The earlier image."""
        return self.folder / "from.tif"

    @property
    def to_raster(self) -> Path:
        """The later image."""
        return self.folder / "to.tif"

    @property
    def truth(self) -> Path:
        """What really changed, in class values."""
        return self.folder / "truth.tif"

    @property
    def model(self) -> Path:
        """The model definition; its weights lie beside it."""
        return self.folder / "model.emd"

    @property
    def cog(self) -> Path:
        """The result as GeoTIFF."""
        return self.folder / "change.tif"

    @property
    def zarr(self) -> Path:
        """The result as Zarr store."""
        return self.folder / "change.zarr"

    @property
    def picture(self) -> Path:
        """Before, after and change side by side."""
        return self.folder / "change.png"

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that the demo writes."""
        weights = tuple(self.folder / each.name for each in _model_files() if each.suffix != ".emd")
        made = (self.from_raster, self.to_raster, self.truth, self.model, *weights)
        about = (each(result) for result in (self.cog, self.zarr) for each in (manifest_of, item_of))
        return (*made, self.cog, side_file_of(self.cog), self.zarr, *about, self.picture)

    def detect_change(self) -> xr.DataArray:
        """The demo's lazy change raster."""
        return cast("xr.DataArray", detect_change(self.from_raster, self.to_raster, self.model))


def prepare_demo(folder: str | PathLike[str], *, overwrite: bool = False) -> Demo:
    """Render the images and put the model beside them.

    Raises OutputExistsError where something of a demo stands in ``folder`` and may not be replaced, OutputError where
    the folder cannot be made.
    """
    folder = Path(folder)
    demo = Demo(folder)
    standing = [path.name for path in (*demo.files, partial_of(demo.cog), partial_of(demo.zarr)) if path.exists()]
    if standing and not overwrite:
        raise OutputExistsError(
            f"{folder} holds {', '.join(standing)} already. Name another folder, or say --overwrite (overwrite=True)."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror}. Name another.") from error
    scene = render_pair(SEED, SHAPE_YX)
    for path, pixels in ((demo.from_raster, scene.from_pixels), (demo.to_raster, scene.to_pixels)):
        _write_geotiff(path, pixels)
    _write_geotiff(demo.truth, scene.truth[None])
    for path in _model_files():
        shutil.copyfile(path, folder / path.name)
    return demo


def compare_with_truth(demo: Demo) -> dict[str, float]:
    """F1 score of change as such, and of each class, against the truth; pixelwise, 0 to 1."""
    with rasterio.open(demo.cog) as result, rasterio.open(demo.truth) as truth:
        found, true = result.read(1), truth.read(1)
    scores = {"any change": _f1(found != 0, true != 0)}
    for each in load_definition(demo.model).classes.classes:
        if each.value:
            scores[each.name] = _f1(found == each.value, true == each.value)
    return scores


def save_demo_picture(demo: Demo) -> None:
    """Before, after and change side by side, as PNG."""
    with rasterio.open(demo.from_raster) as before, rasterio.open(demo.to_raster) as after:
        images = before.read(), after.read()
    with rasterio.open(demo.cog) as result:
        change = result.read(1)
    table: ClassTable = load_definition(demo.model).classes
    colors = tuple(each.color for each in table.classes)
    save_change_picture(
        demo.picture, *images, change, class_names=table.names, class_colors=colors, class_values=table.values
    )


def _model_files() -> list[Path]:
    return sorted(path for path in MODEL_FOLDER.iterdir() if path.is_file())


def _write_geotiff(path: Path, pixels: np.ndarray) -> None:
    """pixels : (band, y, x)."""
    profile = {
        "driver": "GTiff", "count": pixels.shape[0], "height": pixels.shape[1], "width": pixels.shape[2],
        "dtype": pixels.dtype, "crs": CRS, "transform": from_origin(*ORIGIN_XY, CELL_SIZE_M, CELL_SIZE_M),
        "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels)


def _f1(found: np.ndarray, true: np.ndarray) -> float:
    both = found.sum() + true.sum()
    return float(2 * (found & true).sum() / both) if both else 1.0
