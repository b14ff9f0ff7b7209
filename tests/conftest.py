"""Small real rasters and real networks, made once a session."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import settings
from rasterio.transform import from_origin
from summary_tables import pytest_terminal_summary  # noqa: F401  # a hook

pytest_plugins = ("attacks",)

# Times are for benchmarks: a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TRANSFORM = from_origin(500_000, 5_400_000, 0.5, 0.5)
CLASSES = [
    {"Value": 0, "Name": "No change", "Color": [230, 230, 230]},
    {"Value": 7, "Name": "Change", "Color": [200, 30, 30]},
]


def write_raster(path: Path, pixels: np.ndarray, *, crs="EPSG:32633", transform=TRANSFORM, **profile) -> Path:
    """pixels : (band, y, x)."""
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 64, "blockysize": 64, **profile}
    with rasterio.open(
        path, "w", count=pixels.shape[0], height=pixels.shape[1], width=pixels.shape[2], dtype=pixels.dtype, crs=crs,
        transform=transform, **profile,
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    return path


def write_definition(path: Path, **keys) -> Path:
    """A native definition for 16 pixel tiles of three-band pairs, with any key replaced (None removes it)."""
    definition = {
        "Framework": "PyTorch",
        "ModelType": "ImageClassification",
        "ImageHeight": 16,
        "ImageWidth": 16,
        "ExtractBands": [0, 1, 2, 3, 4, 5],
        "Classes": CLASSES,
        "Padding": 4,
        **keys,
    }
    path.write_text(json.dumps({key: value for key, value in definition.items() if value is not None}))
    return path


class ToyNetwork(torch.nn.Module):
    """Two convolutions on the stacked pair: receptive field 5 x 5, two scores per pixel."""

    def __init__(self, bands: int = 6, classes: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = torch.nn.Conv2d(bands, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, classes, 3, padding=1)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        """stack : (tile, band, y, x) float32. Returns (tile, class, y, x) logits."""
        return self.second(torch.relu(self.first(stack / 255 - 0.5)))


def save_network(network: torch.nn.Module, path: Path, bands: int = 6, size: int = 16) -> Path:
    """Save as the suffix says: TorchScript, torch.export or ONNX, with a batch axis of any length."""
    example = torch.zeros(2, bands, size, size)
    network.eval()
    with warnings.catch_warnings():  # exporters warn of their own deprecations
        warnings.simplefilter("ignore")
        if path.suffix == ".pt":
            torch.jit.trace(network, example).save(path)
        elif path.suffix == ".pt2":
            program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("tile", min=1)},))
            torch.export.save(program, path)
        else:
            torch.onnx.export(
                network, (example,), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim("tile", min=1)},),
                external_data=False, verbose=False,
            )  # fmt: skip
    return path


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Nothing of the tests stays in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEODL_DASK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """The command line sets up logging for its own process; here that is everybody's."""
    root, ours, tornado = (logging.getLogger(name) for name in (None, "geodl_dask", "tornado"))
    handlers, levels = list(root.handlers), [each.level for each in (root, ours, tornado)]
    yield
    root.handlers[:] = handlers
    for each, level in zip((root, ours, tornado), levels, strict=True):
        each.setLevel(level)


@pytest.fixture(scope="session")
def toy_network() -> ToyNetwork:
    return ToyNetwork().eval()


@pytest.fixture(scope="session")
def models(tmp_path_factory, toy_network) -> dict[str, Path]:
    """The toy network as .emd with each kind of native file: TorchScript, torch.export, ONNX."""
    folder = tmp_path_factory.mktemp("models")
    definitions = {}
    for suffix in ("pt", "pt2", "onnx"):
        save_network(toy_network, folder / f"toy.{suffix}")
        definitions[suffix] = write_definition(folder / f"toy_{suffix}.emd", ModelFile=f"toy.{suffix}")
    return definitions


@pytest.fixture(scope="session")
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """A pair of three-band images of 83 x 109 pixels, which no tile or block divides."""
    rng = np.random.default_rng(42)
    coarse = rng.integers(0, 256, (2, 3, 12, 15))
    image = coarse.repeat(7, axis=2).repeat(8, axis=3)[:, :, :83, :109] + rng.integers(-20, 20, (2, 3, 83, 109))
    image = image.clip(0, 255).astype(np.uint8)
    return image[0], image[1]


@pytest.fixture(scope="session")
def pair(tmp_path_factory, pixels) -> tuple[Path, Path]:
    """The same pair as GeoTIFFs."""
    folder = tmp_path_factory.mktemp("pair")
    return write_raster(folder / "from.tif", pixels[0]), write_raster(folder / "to.tif", pixels[1])


def parts_in(out: Path) -> Path:
    """The folder in which a run has kept its parts."""
    (parts,) = out.with_name(f"{out.name}.partial").glob("parts-*")
    return parts
