"""Changed areas as polygons, whole across the borders of blocks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import xarray as xr

from .areas import SQUARE_METRES_PER_HECTARE, AreaOn, PixelAreas, choose_area
from .classes import ClassTable
from .errors import MissingDependencyError, OutputError, OutputExistsError, RasterInputError
from .outputs import publish_file
from .pieces import Connectivity, PieceRequest, Pieces, find_pieces
from .results import ResultLike, grid_of_result, opened
from .survey import ask_blocks

if TYPE_CHECKING:
    import geopandas

FORMATS = (".parquet", ".gpkg")
TOP, BOTTOM, LEFT, RIGHT = range(4)


def change_polygons(
    change: ResultLike,
    out: str | os.PathLike[str] | None = None,
    *,
    classes: Iterable[int | str] | None = None,
    min_hectares: float = 0.0,
    connectivity: Connectivity = 4,
    area: AreaOn = "auto",
    overwrite: bool = False,
) -> geopandas.GeoDataFrame:
    """The changed areas of a result, each a polygon along its pixels' edges, however many blocks it lies in.

    change : path of a result, or a DataArray or Dataset as of `detect_change` or `open_change`, also cut or masked.
    out : where they are also written: ``.parquet`` (GeoParquet) or ``.gpkg`` (GeoPackage); ``overwrite`` replaces it.
    classes : values or names of the classes that are meant; all but 0, which is no change, where it is None.
    min_hectares : smaller areas are left out, once they are joined.
    connectivity : whether pixels that touch at a corner alone are one area (8), a MultiPolygon then, or two (4).
    area : on what hectares are measured, as in `change_table`.

    Returns a GeoDataFrame in the result's CRS, from the upper left on: value, class, pixels, hectares, mean confidence
    (where the result has it), geometry. It is made block by block on the active Dask client, else in this process;
    what grows is the polygons. Of what is not computed yet, everything is.
    Raises RasterInputError, OutputError, OutputExistsError or MissingDependencyError.
    """
    geopandas = _load("geopandas")
    place = None if out is None else _check_output(Path(out), overwrite=overwrite)
    layer, confidence = opened(change)
    request = _request(layer, confidence, classes, connectivity, area, min_hectares)
    grid = request.areas.grid
    answers = ask_blocks(layer, confidence, partial(find_pieces, request, grid.shape.x))
    pieces = _joined(answers, request)
    columns = _columns(pieces, layer, has_confidence=confidence is not None)
    outlines = shapely.transform(_geometries(pieces), partial(_on_map, tuple(grid.transform)[:6]))
    polygons = geopandas.GeoDataFrame(columns, geometry=outlines, crs=grid.crs and grid.crs.to_wkt())
    if place is not None:
        _write(polygons, place, overwrite=overwrite)
    return polygons


def _load(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f'Polygons need {name}, which is not installed. Install it with: pip install "geodl_dask[vectors]"'
        ) from error


def _request(
    layer: xr.DataArray, confidence: xr.DataArray | None, classes: Iterable[int | str] | None,
    connectivity: Connectivity, area: AreaOn, min_hectares: float,
) -> PieceRequest:  # fmt: skip
    if connectivity not in (4, 8):
        raise RasterInputError(f"connectivity is {connectivity!r}; 4 or 8 is needed.")
    grid, nodata = grid_of_result(layer), layer.attrs.get("_FillValue")
    values = None if classes is None else _values(classes, layer)
    unwanted = ([] if nodata is None else [int(nodata)]) + ([0] if values is None else [])
    kept = {} if confidence is None else confidence.attrs
    return PieceRequest(
        values, tuple(unwanted), connectivity, PixelAreas(grid, choose_area(grid, area)), min_hectares,
        (kept.get("scale_factor", 1.0), kept.get("add_offset", 0.0)), kept.get("_FillValue"),
    )  # fmt: skip


def _values(classes: Iterable[int | str], layer: xr.DataArray) -> tuple[int, ...]:
    """Class values of values or names."""
    table = ClassTable.from_attrs(layer.attrs)
    by_name = {} if table is None else {name: value for value, name in _names(table).items()}
    asked = [classes] if isinstance(classes, str) else list(classes)
    unknown = [each for each in asked if isinstance(each, str) and each not in by_name]
    if unknown:
        raise RasterInputError(f"There is no class {unknown[0]!r}; there are: {', '.join(by_name) or 'no names'}.")
    return tuple(by_name[each] if isinstance(each, str) else int(each) for each in asked)


def _names(table: ClassTable) -> dict[int, str]:
    return dict(zip(table.values, table.names, strict=True))


def _joined(answers: np.ndarray, request: PieceRequest) -> Pieces:
    """Pieces of all blocks, (block row, block column), as one: those that meet at a border are one piece."""
    connected_components, coo_array = _graph()
    blocks: list[Pieces] = answers.ravel().tolist()
    counts = np.array([len(block.values) for block in blocks])
    before = (np.cumsum(counts) - counts).reshape(answers.shape)
    values = np.concatenate([block.values for block in blocks])
    meeting = np.concatenate([np.empty((2, 0), np.int64), *_meetings(answers, before, values, request)], axis=1)
    links = coo_array((np.ones(meeting.shape[1], bool), tuple(meeting)), shape=(len(values),) * 2)
    count, whole = connected_components(links, directed=False) if len(values) else (0, np.empty(0, int))

    def add(name: str) -> np.ndarray:
        return np.bincount(whole, np.concatenate([getattr(block, name) for block in blocks]), count)

    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, whole, np.concatenate([block.first for block in blocks]))
    pixels, each_metres = add("pixels").astype(np.int64), request.areas.each
    square_metres = add("square_metres") if each_metres is None else pixels * each_metres
    chosen = np.flatnonzero(square_metres >= request.min_hectares * SQUARE_METRES_PER_HECTARE)
    chosen = chosen[np.argsort(first[chosen])]
    outlines = [outline for block in blocks for outline in block.outlines]
    members = np.split(np.argsort(whole, kind="stable"), np.cumsum(np.bincount(whole, minlength=count))[:-1])
    return Pieces(
        np.array([values[members[each][0]] for each in chosen], values.dtype), pixels[chosen], square_metres[chosen],
        add("sureness")[chosen], add("sure_pixels")[chosen], first[chosen],
        [_united([outlines[piece] for piece in members[each]]) for each in chosen], (),
    )  # fmt: skip


def _graph() -> tuple[Any, Any]:
    from scipy.sparse import coo_array  # which `pieces` has asked for already
    from scipy.sparse.csgraph import connected_components

    return connected_components, coo_array


def _meetings(
    answers: np.ndarray, before: np.ndarray, values: np.ndarray, request: PieceRequest
) -> Iterator[np.ndarray]:
    """Numbers of pieces of one class that meet at a border: (2, pair), border by border."""
    height, width = request.areas.grid.shape.yx
    for row in range(len(answers) - 1):
        above = _line(answers[row], before[row], BOTTOM, width)
        below = _line(answers[row + 1], before[row + 1], TOP, width)
        yield from _pairs(above, below, values, request.connectivity)
    for col in range(answers.shape[1] - 1):
        left = _line(answers[:, col], before[:, col], RIGHT, height)
        right = _line(answers[:, col + 1], before[:, col + 1], LEFT, height)
        yield from _pairs(left, right, values, request.connectivity)


def _line(blocks: np.ndarray, before: np.ndarray, edge: int, length: int) -> np.ndarray:
    """The piece of each pixel along one side of a border through the whole raster; -1 where there is none."""
    line = np.full(length, -1, np.int64)
    for block, earlier in zip(blocks, before, strict=True):
        for start, stop, number in block.edges[edge]:
            line[start:stop] = earlier + number - 1
    return line


def _pairs(one: np.ndarray, other: np.ndarray, values: np.ndarray, connectivity: Connectivity) -> Iterator[np.ndarray]:
    for shift in (0,) if connectivity == 4 else (-1, 0, 1):
        here = one[max(0, shift) : len(one) + min(0, shift)]
        there = other[max(0, -shift) : len(other) + min(0, -shift)]
        is_piece = (here >= 0) & (there >= 0)
        here, there = here[is_piece], there[is_piece]
        is_one = values[here] == values[there]
        yield np.unique(np.stack([here[is_one], there[is_one]]), axis=1)


def _united(outlines: list[list[Any]]) -> list[Any]:
    """Polygons of pieces that meet, as one or more; coordinates are whole numbers, so that nothing is rounded."""
    if len(outlines) == 1:
        return outlines[0]
    union = shapely.union_all([polygon for outline in outlines for polygon in outline])
    return [
        shapely.Polygon(_corners(part.exterior), list(map(_corners, part.interiors)))
        for part in shapely.get_parts(union)
    ]


def _corners(ring: Any) -> np.ndarray:
    """A ring without the points at which it does not turn, where blocks met."""
    points = shapely.get_coordinates(ring)[:-1]
    ahead, behind = np.roll(points, -1, axis=0) - points, points - np.roll(points, 1, axis=0)
    return points[ahead[:, 0] * behind[:, 1] != ahead[:, 1] * behind[:, 0]]


def _columns(pieces: Pieces, layer: xr.DataArray, *, has_confidence: bool) -> dict[str, Any]:
    values, table = pieces.values.tolist(), ClassTable.from_attrs(layer.attrs)
    names = {} if table is None else _names(table.with_unlisted(values))
    columns: dict[str, Any] = {
        "value": pieces.values.astype(np.int64),
        "class": [names.get(value, "") for value in values],
        "pixels": pieces.pixels,
        "hectares": pieces.square_metres / SQUARE_METRES_PER_HECTARE,
    }
    if has_confidence:
        with np.errstate(invalid="ignore"):  # of areas in which no pixel has one
            columns["confidence"] = pieces.sureness / pieces.sure_pixels
    return columns


def _geometries(pieces: Pieces) -> np.ndarray:
    """One geometry for each piece: (piece,)."""
    geometries = np.empty(len(pieces.outlines), object)
    for number, outline in enumerate(pieces.outlines):
        geometries[number] = shapely.MultiPolygon(outline) if outline[1:] else outline[0]
    return geometries


def _on_map(transform: tuple[float, ...], places: np.ndarray) -> np.ndarray:
    a, b, c, d, e, f = transform
    col, row = places.T
    return np.column_stack([a * col + b * row + c, d * col + e * row + f])


def _check_output(out: Path, *, overwrite: bool) -> Path:
    if out.suffix.lower() not in FORMATS:
        raise OutputError(
            f"The output {str(out)!r} does not end in {' or '.join(FORMATS)}; the ending decides the format."
        )
    _load("pyarrow" if out.suffix.lower() == ".parquet" else "pyogrio")
    if not out.parent.is_dir():
        raise OutputError(f"The folder {out.parent.absolute()} of the output does not exist; make it first.")
    if os.path.lexists(out) and (not overwrite or out.is_dir()):
        kind = " and is a folder" if out.is_dir() else ""
        raise OutputExistsError(f"{out} exists{kind}. Choose another name, or say overwrite=True.")
    return out


def _write(polygons: geopandas.GeoDataFrame, out: Path, *, overwrite: bool) -> None:
    """Give it its name when it is whole."""
    unfinished = out.with_name(f"{out.stem}.{os.getpid()}.partial{out.suffix}")
    try:
        if out.suffix.lower() == ".gpkg":
            polygons.to_file(unfinished, driver="GPKG", engine="pyogrio", layer=out.stem)
        else:
            polygons.to_parquet(unfinished)
        publish_file(unfinished, out, overwrite=overwrite)
    finally:
        unfinished.unlink(missing_ok=True)
