"""A STAC Item beside a result: where it lies, what its values mean, what it was made of and how."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pystac
import xarray as xr
from odc.geo.geobox import GeoBox
from pystac.extensions.classification import Classification, ClassificationExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import (
    AssetGeneralMLMExtension,
    Hyperparameters,
    InputStructure,
    MLMExtension,
    ModelInput,
    ModelOutput,
    ResultStructure,
    TaskType,
)
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import DataType

from .classes import ClassTable, list_values
from .footprint import footprint_of
from .manifest import Manifest
from .outputs import manifest_of

log = logging.getLogger(__name__)

PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
"""The extension of which pystac has no class."""

MEDIA_TYPES = {
    ".tif": pystac.MediaType.GEOTIFF, ".tiff": pystac.MediaType.GEOTIFF, ".jp2": pystac.MediaType.JPEG2000,
    ".zarr": "application/vnd.zarr", ".nc": "application/netcdf",
}  # fmt: skip
"""Of inputs, by the ending of their names."""

ZARR_3 = "application/vnd.zarr; version=3"
"""What the STAC best practices for Zarr call a store of that format."""

REMOTE = ("http", "https", "ftp", "s3", "gs", "az", "oss")
"""Schemes of URLs to which a link may lead."""

ROLES = ("from_raster", "to_raster", "raster")
"""What the attributes of a result call the rasters that it was made of."""


def item_of(out: Path) -> Path:
    """The STAC Item beside a result."""
    return out.with_name(out.name + ".stac.json")


def write_item(
    change: xr.DataArray | xr.Dataset,
    out: Path | str,
    *,
    finished: Path,
    manifest: Manifest,
    references: Mapping[str, str] | None = None,
) -> Path | None:
    """Write the Item of a result beside it, at once or not at all.

    out, manifest, references : as in `describe_result`. finished : the result, before it has its name.
    Returns the Item's place; None, with a warning in the log, where it cannot be written: the result is whole without.
    """
    place = item_of(finished)
    unfinished = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        item = describe_result(
            change, out, manifest=manifest, size=finished.stat().st_size if finished.is_file() else 0,
            references=references,
        )  # fmt: skip
        said = item.to_dict(include_self_link=False, transform_hrefs=False)
        unfinished.write_text(json.dumps(said, indent=1, allow_nan=False), encoding="utf-8")
        unfinished.replace(place)
    except Exception as error:  # a run of hours must not fail for a description of it
        log.warning("%s is whole, but has no STAC Item: %s: %s", out, type(error).__name__, error)
        for left in (unfinished, place):
            with suppress(OSError):
                left.unlink(missing_ok=True)
        return None
    return place


def describe_result(
    change: xr.DataArray | xr.Dataset, out: Path | str, *, manifest: Manifest, size: int = 0,
    references: Mapping[str, str] | None = None,
) -> pystac.Item:  # fmt: skip
    """The STAC Item of a result, which is to stand beside it: local references are relative to its folder.

    change : as `detect_change` gives it, or a Dataset of that and other variables on its grid. out : where the result
    is to be: a path, or a URL as text, beside which nothing local is named. manifest : of the run, which has ended.
    size : of the file, bytes; 0 where it is none. references : as of `references_of`, from where rasters and model are
    seen.
    """
    path = Path(out)
    ended, versions = datetime.fromisoformat(manifest.ended), manifest.software
    variables = [change] if isinstance(change, xr.DataArray) else list(change.data_vars.values())
    classes = next((each for each in variables if "flag_values" in each.attrs), variables[0])
    attrs, grid = classes.attrs, cast("GeoBox", classes.odc.geobox)
    geometry, bounds = footprint_of(grid)
    item = pystac.Item(path.stem, geometry, bounds, ended.astimezone(UTC), properties={})
    item.common_metadata.created = ended.astimezone(UTC)
    item.common_metadata.description = _described(attrs)
    _place(item, grid)
    item.stac_extensions.append(PROCESSING)
    item.properties |= {
        "processing:level": "L4",  # what analysis made of measurements
        "processing:lineage": _lineage(attrs),
        "processing:datetime": item.properties["created"],
        "processing:software": dict(versions),
    }
    _add_data(item, path, variables, classes, manifest.pixels or {}, size)
    place = f"./{manifest_of(path).name}"
    item.add_asset("manifest", pystac.Asset(place, "Manifest of the run", None, pystac.MediaType.JSON, ["metadata"]))
    references = references_of(attrs, out) if references is None else references
    for role in ROLES:
        if role in references:
            _derive(item, references[role], role.replace("_", " "))
    if "model" in references:
        _add_model(item, references["model"], attrs, str(classes.dtype))
    return item


def references_of(attrs: Mapping[str, Any], out: Path | str) -> dict[str, str]:
    """References from a result to the rasters and the model that it is made of, by their role, as `reference` has them.

    No reference has a query, user or password, where keys are.
    """
    folder = out.absolute().parent if isinstance(out, Path) else None
    found = {role: reference(str(attrs.get(role, "")), folder) for role in (*ROLES, "model")}
    return {role: href for role, href in found.items() if href}


def reference(text: str, folder: Path | None) -> str | None:
    """A reference to what a user named by path or URL, with nothing in it that is secret.

    Of a URL it is scheme, host and path; of what lies on this machine its path from ``folder``, if there is one. None
    for anything else.
    """
    text = text.removeprefix("/vsicurl/")
    try:
        parts = urlsplit(text)
        if parts.scheme.lower() in REMOTE:
            host = parts.netloc.rpartition("@")[2]
            return urlunsplit((parts.scheme, host, parts.path, "", "")) if host else None
        for name in (
            (text, text.rpartition("#")[0]) if folder else ()
        ):  # after which a variable, layer or zoom was chosen
            if name and os.path.exists(name):  # noqa: PTH110  # pathlib's raises where a name is too long
                relative = Path(os.path.relpath(name, folder)).as_posix()
                relative.encode()
                return relative if relative.startswith("../") else f"./{relative}"
    except ValueError:  # no address, no UTF-8, or on another drive
        return None
    return None


def _described(attrs: Mapping[str, Any]) -> str:
    made_of = " and ".join(_named(str(attrs[role])) for role in ROLES if attrs.get(role))
    what = "Change between" if attrs.get("to_raster") else "Classes of"
    return (
        f"{what} {made_of or 'rasters'}, by a deep-learning model. The dates of the imagery are not known: datetime "
        "is when this was made."
    )


def _lineage(attrs: Mapping[str, Any]) -> str:
    how = {"native": "natively", "raster-function": "by its own raster function"}.get(str(attrs.get("runner")), "")
    words = [f"Made by the model {_named(str(attrs.get('model', '')))}"]
    words += [f"(digest {attrs['model_digest']})"] if attrs.get("model_digest") else []
    words += [f"which ran {how}"] if how else []
    if attrs.get("tile_size"):
        rows, cols = attrs["tile_size"]
        words.append(f"on tiles of {rows} x {cols} pixels with a padding of {attrs.get('padding', 0)}")
    words += [f"with the arguments {attrs['arguments']}"] if attrs.get("arguments") else []
    return " ".join(words) + ". All inputs, settings and times are in the manifest."


def _named(text: str) -> str:
    """A short name of a path or URL, without what may be secret in it, or of what is neither."""
    if text.lstrip().startswith(("<", "{")):
        return "given as text"
    path = text.rpartition("://")[2].partition("/")[2].partition("#")[0] if "://" in text else text
    short = path.partition("?")[0].replace("\\", "/").rstrip("/").rpartition("/")[2][:100]
    return short.encode(errors="replace").decode() or "without a name"


def _place(item: pystac.Item, grid: GeoBox) -> None:
    """The grid in its own CRS."""
    crs: Any = grid.crs
    authority = crs.proj.to_authority()
    box = grid.boundingbox
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=":".join(authority) if authority else None,
        wkt2=None if authority else crs.to_wkt(),
        shape=list(grid.shape.yx),
        transform=list(grid.transform)[:6],
        bbox=[box.left, box.bottom, box.right, box.top],
    )


def _add_data(
    item: pystac.Item, path: Path, variables: list[xr.DataArray], classes: xr.DataArray, pixels: Mapping[int, int],
    size: int,
) -> None:  # fmt: skip
    """The result itself as an asset, with its bands and what their values mean."""
    kind = ZARR_3 if path.suffix.lower() == ".zarr" else pystac.MediaType.COG
    asset = pystac.Asset(f"./{path.name}", str(classes.attrs.get("long_name", "")) or None, None, kind, ["data"])
    item.add_asset("data", asset)
    bands = [_band(each) for each in variables]
    asset.extra_fields["bands"] = bands
    band = bands[[each.name for each in variables].index(classes.name)]
    total, empty = sum(pixels.values()), pixels.get(_nodata(classes.attrs), 0)
    if total:
        band["statistics"] = {"valid_percent": 100 * (total - empty) / total}
    if meanings := _classes(classes.attrs, pixels):
        ClassificationExtension.add_to(item)
        if len(bands) == 1:
            ClassificationExtension.ext(asset).apply(meanings)
        else:
            band["classification:classes"] = [each.to_dict() for each in meanings]
    if size:
        FileExtension.ext(asset, add_if_missing=True).apply(size=size)


def _band(variable: xr.DataArray) -> dict[str, Any]:
    """STAC's common fields of a band."""
    nodata = _nodata(variable.attrs)
    if isinstance(nodata, float) and math.isnan(nodata):
        nodata = "nan"
    return {
        "name": str(variable.name),
        "data_type": str(variable.dtype),
        **({} if nodata is None else {"nodata": nodata}),
    }


def _nodata(attrs: Mapping[str, Any]) -> Any:
    """As a number of Python, also where it was read from a file; None where there is none."""
    nodata = attrs.get("_FillValue")
    return nodata.item() if isinstance(nodata, np.generic) else nodata


def _classes(attrs: Mapping[str, Any], pixels: Mapping[int, int]) -> list[Classification]:
    """What each value means and how many pixels have it; shares are of the pixels that are not nodata."""
    table = ClassTable.from_attrs(list_values(attrs, pixels))
    if table is None:
        return []
    nodata = _nodata(attrs)
    valid = sum(count for value, count in pixels.items() if value != nodata)
    found: list[Classification] = []
    for each in table.classes:
        count = pixels.get(each.value, 0)
        found.append(
            Classification.create(
                each.value, name=_machine_name(each.name, each.value, found), title=each.name,
                color_hint="{:02X}{:02X}{:02X}".format(*each.color), count=count,
                percentage=100 * count / valid if valid else None,
            )
        )  # fmt: skip
    if isinstance(nodata, int):
        name = _machine_name("nodata", nodata, found)
        found.append(Classification.create(nodata, name=name, nodata=True, count=pixels.get(nodata, 0)))
    return found


def _machine_name(name: str, value: int, taken: list[Classification]) -> str:
    """A name of ASCII letters, digits, - and _, which the extension asks for, that no other class has."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    short = re.sub(r"[^0-9A-Za-z-]+", "_", plain).strip("_") or f"class_{value}"
    return f"{short}_{value}" if short in {each.name for each in taken} else short


def _derive(item: pystac.Item, href: str, title: str, **more: Any) -> None:
    kind = MEDIA_TYPES.get(Path(href).suffix.lower())
    item.add_link(pystac.Link(pystac.RelType.DERIVED_FROM, href, kind, title, extra_fields=more))


def _add_model(item: pystac.Item, href: str, attrs: Mapping[str, Any], dtype: str) -> None:
    """The model as an asset and a link, and what is known of it in the MLM extension's words."""
    name = _model_name(href)
    asset = pystac.Asset(href, "Model definition", None, None, ["mlm:model"])
    item.add_asset("model", asset)
    AssetGeneralMLMExtension.ext(asset, add_if_missing=True).apply(Path(href).suffix.lstrip(".").lower() or "unknown")
    _derive(item, href, "model", **{"mlm:name": name, "processing:level": "L4"})
    rows, cols = (int(each) for each in attrs.get("tile_size") or (-1, -1))
    crop = 2 * int(attrs.get("padding", 0))
    core = [side - crop if side > 0 else -1 for side in (rows, cols)]
    inputs = [
        ModelInput.create(
            role, [], InputStructure.create([-1, count, rows, cols], ["batch", "bands", "height", "width"], kind)
        )
        for role, count, kind in _inputs(attrs)
    ]
    result = ResultStructure.create([-1, *core], ["batch", "height", "width"], _data_type(dtype))
    outputs = [ModelOutput.create("classes", [TaskType.SEMANTIC_SEGMENTATION], result)]
    said = dict(part.split(" ", 1) for part in str(attrs.get("arguments", "")).split(";") if " " in part)
    named = {key: value for key, value in said.items() if re.fullmatch(r"[0-9a-zA-Z_.-]+", key)}
    MLMExtension.ext(item).apply(
        name, "unknown", [TaskType.SEMANTIC_SEGMENTATION], inputs, outputs,
        hyperparameters=Hyperparameters(named) if named else None,
    )  # fmt: skip
    for unsaid in ("mlm:pretrained_source", "mlm:accelerator"):
        item.properties.pop(unsaid, None)  # pystac's null would say: trained from scratch


def _model_name(href: str) -> str:
    """A model's name as the extension spells names: it begins with a letter, and ends with one or a digit."""
    plain = re.sub(r"[^a-zA-Z0-9_.-]+", "-", Path(href).stem)
    short = plain.lstrip("0123456789_.-").rstrip("_.-")
    return short if len(short) > 2 else f"model-{short or 'unnamed'}"


def _inputs(attrs: Mapping[str, Any]) -> list[tuple[str, int, DataType]]:
    """Role, number of bands (-1: not known) and type of each raster, as the accounts of the run say them."""
    found = []
    for role, account in zip([role for role in ROLES if attrs.get(role)], attrs.get("rasters") or (), strict=False):
        said = re.findall(r", (\d+) band\(s\) of (\w+)", str(account)) or [("-1", "other")]
        count, kind = said[-1]
        found.append((role, int(count), _data_type(kind)))
    return found


def _data_type(name: str) -> DataType:
    return DataType(name) if name in {each.value for each in DataType} else DataType.OTHER
