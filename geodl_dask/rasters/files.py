"""A raster that GDAL opens, read in windows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rasterio.errors
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window as RasterioWindow

from ..errors import RasterInputError, RasterReadError
from ..tiling import Window
from .arrays import scaled
from .bands import Bands, choose_bands, require_real
from .gdal import DRIVERS, opened
from .sources import Source
from .validity import validity

NO_SCALING = (1.0, 0.0)

LONGEST_SIDE_PX = 2**28
"""The Earth's girth in pixels of 15 cm. A header may say more in a few bytes, and coordinates are held in memory."""


@dataclass(frozen=True)
class RasterFile:
    """One raster that GDAL opens, described; a window is read when somebody asks for it.

    Each read opens the file anew, so any thread of any process may read.
    """

    name: str
    """For messages: what the user wrote."""
    dataset: str
    """What GDAL opens."""
    kind: str
    """What it is, for people."""
    grid: GeoBox
    """CRS, affine transform and shape."""
    bands: tuple[int, ...]
    """GDAL's numbers of the bands that are read, from 1."""
    band_names: tuple[str, ...]
    """One for each band of what is read."""
    dtype: str
    """NumPy name of the type that holds every band as it is handed out."""
    all_valid: bool
    """True where the file has neither nodata nor a mask, so that every finite pixel is valid."""
    scaling: tuple[tuple[float, float], ...] = ()
    """Scale and offset of each band; empty where pixels are used as stored."""
    palette: tuple[tuple[int, int, int, int], ...] = ()
    """Red, green, blue, alpha by pixel value, for a raster of colour indices that is expanded."""
    alpha: int | None = None
    """GDAL's number of the alpha band, where it says more than the mask, which GDAL makes of nodata alone."""
    overview: int | None = None
    """The overview that is read in the place of the full resolution, from 0."""

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and validity of a window inside the grid. Runs on workers.

        Returns pixels (band, y, x) in ``dtype`` and validity (y, x) bool, True where every
        band has an observation (by nodata, mask band or alpha, and finite). Raises RasterReadError.
        """
        where = RasterioWindow(window.col_off, window.row_off, window.width, window.height)
        level = {} if self.overview is None else {"overview_level": self.overview}
        try:
            with opened(self.dataset, **level) as dataset:
                if len({dataset.dtypes[band - 1] for band in self.bands}) == 1:
                    stored = dataset.read(list(self.bands), window=where)
                else:  # rasterio reads bands of several types only one by one
                    stored = np.stack([dataset.read(band, window=where) for band in self.bands])
                masks = None if self.all_valid else self._masks(dataset, where)
        except rasterio.errors.RasterioError as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise RasterReadError(
                f"{self.name} cannot be read at row {window.row_off}, column {window.col_off}, "
                f"{window.height} x {window.width} pixels: {error}{cause}. Is the file whole and reachable?"
            ) from error
        valid = validity(stored, masks)
        if self.palette:
            return self._expanded(stored[0], valid)
        return scaled(stored, self.dtype, self.scaling), valid

    def _masks(self, dataset: Any, where: RasterioWindow) -> np.ndarray:
        if not self.alpha:
            return dataset.read_masks(list(self.bands), window=where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NodataShadowWarning)  # it does not, as alpha is read too
            masks = dataset.read_masks(list(self.bands), window=where)
        return np.concatenate([masks, dataset.read([self.alpha], window=where) != 0])

    def _expanded(self, index: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = np.array(self.palette, np.uint8)
        colors = np.moveaxis(table[np.minimum(index, len(table) - 1)], -1, 0)
        return np.ascontiguousarray(colors[:3]), valid & (colors[3] != 0)


def open_file(source: Source, text: str, role: str, bands: Bands) -> RasterFile:
    """The raster that ``source`` leads to, described; no pixel is read.

    text : what the user wrote. role : names it in messages. Raises RasterInputError or BandCountError.
    """
    try:
        with opened(source.dataset) as dataset:
            return _describe(dataset, source, text, role, bands)
    except rasterio.errors.RasterioIOError as error:
        raise RasterInputError(
            f"{role} {text} cannot be opened as a raster: {str(error).rstrip('.')}. (Polygons can be a mask.)"
        ) from error


def at_overview(raster: RasterFile, shrink: float) -> RasterFile:
    """The coarsest overview that still has a pixel for each of a grid whose pixels are ``shrink`` times as long."""
    if raster.overview is not None or shrink < 2:
        return raster
    with opened(raster.dataset) as dataset:
        factors = [dataset.overviews(band) for band in raster.bands]
    usable = [level for level, factor in enumerate(factors[0]) if factor <= shrink * 1.01]
    if not usable or any(each != factors[0] for each in factors):
        return raster
    with opened(raster.dataset, overview_level=usable[-1]) as dataset:
        grid = GeoBox(dataset.shape, dataset.transform, raster.grid.crs)
    return replace(raster, overview=usable[-1], grid=grid)


def _describe(dataset: Any, source: Source, text: str, role: str, wanted: Bands) -> RasterFile:
    name = f"{role} {text}"
    grid = _grid_of(dataset, name, text)
    numbers = tuple(
        band for band, meaning in zip(dataset.indexes, dataset.colorinterp, strict=True) if meaning != ColorInterp.alpha
    )
    if not numbers:
        raise RasterInputError(f"{name} has no bands with pixels; integers or real numbers are needed.")
    alpha = next(iter(set(dataset.indexes) - set(numbers)), None)
    palette = _palette(dataset, numbers, wanted)
    names = ("red", "green", "blue") if palette else tuple(_band_name(dataset, band) for band in numbers)
    chosen = numbers if palette else tuple(numbers[each] for each in choose_bands(wanted, names, name, alpha=alpha))
    stored = require_real(np.result_type(*(dataset.dtypes[band - 1] for band in chosen)), name)
    scaling = tuple((dataset.scales[band - 1], dataset.offsets[band - 1]) for band in chosen)
    has_nodata = any(MaskFlags.nodata in dataset.mask_flag_enums[band - 1] for band in chosen)
    is_scaled = any(each != NO_SCALING for each in scaling)
    return RasterFile(
        name=text,
        dataset=source.dataset,
        kind=source.kind or _kind_of_file(dataset, alpha),
        grid=grid,
        bands=chosen,
        band_names=names if palette else tuple(names[numbers.index(band)] for band in chosen),
        dtype="uint8" if palette else str(np.result_type(stored, np.float32) if is_scaled else stored),
        all_valid=all(MaskFlags.all_valid in dataset.mask_flag_enums[band - 1] for band in chosen),
        scaling=scaling if is_scaled else (),
        palette=palette,
        alpha=alpha if has_nodata else None,
    )


def _kind_of_file(dataset: Any, alpha: int | None) -> str:
    """Its format, and the band that is no pixels: near infrared is often marked as alpha, as GDAL marks a fourth."""
    kind = DRIVERS.get(dataset.driver, dataset.driver)
    return f"{kind} with alpha in band {alpha}" if alpha else kind


def _grid_of(dataset: Any, name: str, text: str) -> GeoBox:
    if dataset.crs is None:
        if dataset.gcps[0]:
            raise RasterInputError(
                f"{name} has ground control points instead of a grid. Warp it first, for instance with: "
                f"rio warp {text} warped.tif --dst-crs EPSG:xxxx"
            )
        raise RasterInputError(
            f"{name} has no CRS, so where it lies is not known. Assign the right one first, for instance "
            f"with: rio edit-info --crs EPSG:xxxx {text}"
        )
    if max(dataset.shape) > LONGEST_SIDE_PX:
        raise RasterInputError(
            f"{name} says that it is {dataset.height:,} x {dataset.width:,} pixels; at most {LONGEST_SIDE_PX:,} a side "
            "are taken. Is the file damaged? If not, cut it: gdal_translate -srcwin"
        )
    return GeoBox(dataset.shape, dataset.transform, str(dataset.crs.to_wkt()))


def _band_name(dataset: Any, band: int) -> str:
    meaning = dataset.colorinterp[band - 1]
    said = meaning.name if meaning not in (ColorInterp.undefined, ColorInterp.gray, ColorInterp.palette) else ""
    return str(dataset.descriptions[band - 1] or said or band)


def _palette(dataset: Any, numbers: tuple[int, ...], wanted: Bands) -> tuple[tuple[int, int, int, int], ...]:
    """The colours of a raster of colour indices; none if bands were chosen: band 1 is the indices."""
    if wanted is not None or len(numbers) > 1 or dataset.colorinterp[numbers[0] - 1] != ColorInterp.palette:
        return ()
    colors = dataset.colormap(numbers[0])
    return tuple(tuple(colors.get(value, (0, 0, 0, 0))) for value in range(max(colors) + 1))
