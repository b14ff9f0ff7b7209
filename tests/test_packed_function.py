"""The raster function that comes along in packages: the same classes as the native runner's, by Esri's protocol."""

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, ToyNetwork, save_network, write_raster
from raster_functions.hosting import tiles_of

import geodl_dask as gd
from geodl_dask.decision import decide
from geodl_dask.definition import load_definition
from geodl_dask.errors import InferenceError
from geodl_dask.packing import raster_function
from geodl_dask.packing.raster_function import GeodlDaskFunction
from geodl_dask.runners import RunnerSpec, load_runner
from geodl_dask.tiling import crop_to_core

ROUNDING = 1e-4
"""Scores that are no further apart may be decided either way."""
THREE = [*CLASSES, {"Value": 300, "Name": "Else", "Color": [0, 0, 200]}]


class Answer(torch.nn.Module):
    """What a function says of the toy network's scores."""

    def __init__(self, answer, classes=2, scale=1, shift=0) -> None:
        super().__init__()
        self.toy, self.answer, self.scale, self.shift = ToyNetwork(6, classes), answer, scale, shift

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return self.answer(self.toy(stack * self.scale + self.shift))


class Pair(Answer):
    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cat([before, after], 1))


CASES = {
    "logits of two classes": (lambda s: s, {}),
    "logits of three": (lambda s: s, {"classes": THREE}),
    "probabilities": (lambda s: s.softmax(1), {}),
    "one logit": (lambda s: s[:, :1] - s[:, 1:], {"output": "logits", "threshold": 0.3}),
    "one probability": (lambda s: (s[:, 0] - s[:, 1]).sigmoid(), {"threshold": 0.7}),
    "a distance": (lambda s: (s[:, :1] - s[:, 1:]).abs(), {"output": "distance", "threshold": 0.4}),
    "a distance without threshold": (lambda s: (s[:, :1] - s[:, 1:]).abs(), {"output": "distance"}),
    "one class above": (lambda s: s[:, :1] - s[:, 1:], {"output": "logits", "classes": CLASSES[1:]}),
    "class indices": (lambda s: s.argmax(1), {}),
    "the centre": (lambda s: s[..., 3:-3, 3:-3], {"model_padding": 3, "padding": None}),
    "mean and std": (lambda s: s, {"mean": [120, 110, 100], "std": [30, 40, 50]}),
    "one mean": (lambda s: s, {"mean": 7.5}),
    "minimum and maximum": (lambda s: s, {"minimum": 0, "maximum": 255}),
    "a data range": (lambda s: s, {"definition": {"DataRange": [0, 1]}}),
    "bands in another order": (lambda s: s, {"bands": [2, 1, 0, 5, 4, 3]}),
    "tiles that are no squares": (lambda s: s, {"tile_size": (16, 24)}),
}
RANGES = {"mean and std": (40, 110), "minimum and maximum": (255, 0), "a data range": (255, 0)}
"""Scale and shift from what the network is given to the bytes that the toy network takes."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """packages(name): the package of a case."""
    folder, done = tmp_path_factory.mktemp("packages"), {}

    def pack(name):
        if name not in done:
            answer, said = CASES[name]
            said = {"classes": CLASSES, "bands": 3, "tile_size": 16, "padding": 4, **said}
            module = Answer(answer, max(2, len(said["classes"])), *RANGES.get(name, ()))
            path = folder / f"{len(done)}.dlpk"
            done[name] = gd.pack_model(module, path, exporter="torch.jit", **said).path
        return done[name]

    return pack


def run_both(package, images, valid):
    """Class values (tile, y, x) of the cores by the function and natively, where either may decide, and validity."""
    definition = load_definition(package)
    function, native = (
        load_runner(RunnerSpec(definition, kind, len(images[0]), images[0].dtype.name, given))
        for kind, given in (("raster-function", (("batch_size", "1"),)), ("native", ()))
    )
    assert function.tile == native.tile
    batch, _ = tiles_of(*images, function.tile, valid)
    answer = native.predict(batch)
    counts = np.ones((len(answer), *answer.shape[-2:]), bool)
    classes = crop_to_core(decide(answer, counts, native, definition.classes), native.tile)
    tied = (
        np.False_ if native.returns == "classes" else ties(crop_to_core(answer, native.tile).numpy(), native.threshold)
    )
    return function.predict(batch), classes, tied, crop_to_core(batch.valid, native.tile)


def ties(scores, threshold):
    """(tile, y, x) True where rounding may decide."""
    if scores.shape[1] == 1:
        return np.abs(scores[:, 0] - threshold) < ROUNDING
    best = np.sort(scores, axis=1)[:, -2:]
    return best[:, 1] - best[:, 0] < ROUNDING


@pytest.fixture
def valid(pixels):
    """Validity of the pair, with a hole and a corner missing."""
    valid = np.ones(pixels[0].shape[1:], bool)
    valid[20:31, 40:60] = valid[:7, :9] = False
    return valid


@pytest.mark.parametrize("name", CASES)
def test_function_and_native_runner_give_the_same_classes_but_at_ties(packages, pixels, valid, name):
    package = packages(name)
    by_function, natively, tied, seen = run_both(package, pixels, valid)
    table = load_definition(package).classes
    assert set(np.unique(natively[seen])) <= {0, *table.values}
    assert len(np.unique(natively[seen])) > 1, "a case in which one class wins everywhere shows nothing"
    np.testing.assert_array_equal(by_function[~seen], table.nodata)
    differ = (by_function != natively) & seen
    assert not (differ & ~tied).any()
    assert differ.sum() <= 0.001 * seen.sum()


@pytest.mark.parametrize("suffix", ["pt", "pt2", "onnx"])
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_whole_rasters_get_the_same_classes_from_every_kind_of_file(models, pair, tmp_path, suffix, batch_size):
    file = models[suffix].with_name(f"toy.{suffix}")
    package = gd.pack_model(file, tmp_path / "m.dlpk", classes=CLASSES, bands=3, tile_size=16, padding=4).path
    natively = np.asarray(gd.detect_change(*pair, package, processor="cpu", tile_size="model"))
    by_function = gd.detect_change(
        *pair, package, processor="cpu", trust_code=True, runner="raster-function",
        arguments={"batch_size": batch_size, "padding": 4},
    )  # fmt: skip
    assert by_function.attrs["runner"] == "raster-function"
    assert (np.asarray(by_function) != natively).sum() == 0


def test_pair_of_inputs_is_from_then_to_in_both(pair, tmp_path):
    module = Pair(lambda scores: scores)
    said = {"classes": CLASSES, "bands": 3, "tile_size": 16, "input": "pair", "mean": [1, 2, 3], "std": [4, 5, 6]}
    package = gd.pack_model(module, tmp_path / "m.dlpk", **said).path
    natively = np.asarray(gd.detect_change(*pair, package, processor="cpu", tile_size="model"))
    options = {"processor": "cpu", "trust_code": True, "runner": "raster-function"}
    np.testing.assert_array_equal(np.asarray(gd.detect_change(*pair, package, **options)), natively)
    swapped = np.asarray(gd.detect_change(*pair[::-1], package, **options))
    assert (swapped != natively).any()


def test_one_raster_of_16_bits_and_a_network_with_a_fixed_batch(tmp_path):
    program = torch.export.export(ToyNetwork(bands=4).eval(), (torch.zeros(6, 4, 16, 16),))
    torch.export.save(program, tmp_path / "fixed.pt2")
    pixels = np.random.default_rng(0).integers(1, 10_000, (4, 50, 70)).astype(np.uint16)
    raster = write_raster(tmp_path / "raster.tif", pixels, nodata=0)
    said = {"classes": CLASSES, "bands": 4, "tile_size": 16, "padding": 2, "minimum": 0, "maximum": 40.0}
    package = gd.pack_model(tmp_path / "fixed.pt2", tmp_path / "m.dlpk", rasters=1, pixel_type="uint16", **said).path
    natively = np.asarray(gd.classify_raster(raster, package, processor="cpu"))
    function = gd.classify_raster(raster, package, processor="cpu", trust_code=True, runner="raster-function")
    np.testing.assert_array_equal(np.asarray(function), natively)
    assert len(np.unique(natively)) == 2
    info = gd.model_info(package)
    assert info.runner == "native"


@pytest.fixture
def function(packages):
    """function(name): the function itself, initialised, outside the host."""

    def load(name="logits of two classes", **keys):
        definition = load_definition(packages(name))
        folder = Path(definition.folder)
        function = GeodlDaskFunction()
        text = json.dumps({**definition.keys, "ModelFile": str(folder / definition.keys["ModelFile"]), **keys})
        function.initialize(model=text, device=-1)
        return function

    return load


def block_of(function, seed=0):
    """Pixels of a whole block, its mask, and the shape and properties of what is asked."""
    configuration = function.getConfiguration(padding="4", batch_size="4")
    size = [configuration[side] + 2 * configuration["padding"] for side in ("ty", "tx")]
    pixels = np.random.default_rng(seed).integers(0, 256, (6, *size)).astype(np.uint8)
    shape = (1, configuration["ty"], configuration["tx"])
    return pixels, np.ones(pixels.shape, np.uint8), shape, {"pixelType": "u1"}


def test_function_says_what_it_takes_as_esri_words_it(function):
    parameters = {each["name"]: each for each in function().getParameterInfo()}
    assert list(parameters) == ["raster", "model", "device", "padding", "batch_size"]
    assert (parameters["padding"]["value"], parameters["batch_size"]["value"]) == (4, 4)
    assert [each["name"] for each in function("the centre").getParameterInfo()][3:] == ["batch_size"]
    configuration = function().getConfiguration(padding="2", batch_size="6")
    assert (configuration["tx"], configuration["ty"], configuration["padding"]) == (3 * 12, 2 * 12, 2)
    assert configuration["extractBands"] == (0, 1, 2, 3, 4, 5)
    assert configuration["inputMask"]


def test_raster_info_has_the_smallest_type_and_the_legend(function):
    info = function("logits of three").updateRasterInfo(raster_info={}, output_info={"pixelType": "f4"})["output_info"]
    assert (info["bandCount"], info["pixelType"]) == (1, "u2")
    table = json.loads(info["rasterAttributeTable"])
    assert [each["name"] for each in table["fields"]] == ["OID", "Value", "Class", "Red", "Green", "Blue"]
    assert table["features"][1]["attributes"] == {
        "OID": 2, "Value": 7, "Class": "Change", "Red": 200, "Green": 30, "Blue": 30,
    }  # fmt: skip


def test_masked_pixels_are_0_for_the_network_and_masked_in_the_answer(function):
    one = function()
    pixels, mask, shape, props = block_of(one)
    mask[3, 10:12, 10:12] = 0
    answer = one.updatePixels((0, 0), shape, props, raster_pixels=pixels, raster_mask=mask)
    zeroed = np.where(mask.min(axis=0), pixels, 0).astype(np.uint8)
    full = one.updatePixels((0, 0), shape, props, raster_pixels=zeroed, raster_mask=np.ones_like(mask))
    seen = answer["output_mask"] == 1
    assert (seen.shape, (~seen).sum()) == (shape, 4)
    assert answer["output_pixels"].dtype == np.uint8
    np.testing.assert_array_equal(answer["output_pixels"][seen], full["output_pixels"][seen])
    plane = one.updatePixels((0, 0), shape, props, raster_pixels=pixels, raster_mask=mask.min(axis=0))
    np.testing.assert_array_equal(plane["output_pixels"], answer["output_pixels"])


def test_block_that_is_cut_at_the_rasters_edge_is_answered_at_its_size(function):
    one = function()
    pixels, mask, shape, props = block_of(one)
    whole = one.updatePixels((0, 0), shape, props, raster_pixels=pixels, raster_mask=mask)["output_pixels"]
    cut, cut_shape = np.s_[:, :-5, :-3], (1, shape[1] - 5, shape[2] - 3)
    answer = one.updatePixels((0, 0), cut_shape, props, raster_pixels=pixels[cut], raster_mask=mask[cut])
    assert answer["output_pixels"].shape == cut_shape
    inside = np.s_[:, : cut_shape[1] - 4, : cut_shape[2] - 4]  # further out the network sees what is missing
    np.testing.assert_array_equal(answer["output_pixels"][inside], whole[inside])


@pytest.mark.parametrize(("scalars", "message"), [({"padding": "8"}, "nothing of a tile"), ({"batch_size": "0"}, "at")])
def test_impossible_scalars_are_refused(function, scalars, message):
    with pytest.raises(ValueError, match=message):
        function().getConfiguration(**scalars)


@pytest.mark.parametrize("answer", [lambda s: s / 0 * 0, lambda s: s.argmax(1) + 5], ids=["nan", "unknown class"])
def test_answer_that_is_none_is_an_error_in_the_host(packages, tmp_path, pixels, answer):
    good = load_definition(
        packages("class indices" if answer(torch.ones(1, 2, 1, 1)).ndim == 3 else "logits of two classes")
    )
    for name in ("GeodlDaskFunction.py", good.name + ".emd"):
        (tmp_path / name).write_bytes((Path(good.folder) / name).read_bytes())
    save_network(Answer(answer), tmp_path / good.keys["ModelFile"])
    definition = load_definition(tmp_path / (good.name + ".emd"))
    runner = load_runner(RunnerSpec(definition, "raster-function", 3, "uint8"))
    batch, _ = tiles_of(*pixels, runner.tile)
    with pytest.raises(InferenceError, match="NaN, or with a class index"):
        runner.predict(batch)


ALONE = """
import sys
for name in ("geodl_dask", "dask", "rasterio", "xarray"):
    sys.modules[name] = None
import importlib, json
import numpy as np
folder, emd = sys.argv[1:]
sys.path.insert(0, folder)
function = importlib.import_module("GeodlDaskFunction").GeodlDaskFunction()
function.initialize(model=emd, device=-1)
defaults = {each["name"]: str(each["value"]) for each in function.getParameterInfo() if "value" in each}
configuration = function.getConfiguration(model=emd, device=-1, **defaults)
info = function.updateRasterInfo(raster_info={}, output_info={})["output_info"]
size = [configuration[side] + 2 * configuration["padding"] for side in ("ty", "tx")]
pixels = np.zeros((6, *size), "u1")
shape = (1, configuration["ty"], configuration["tx"])
answer = function.updatePixels((0, 0), shape, info, raster_pixels=pixels, raster_mask=np.ones_like(pixels))
assert answer["output_pixels"].shape == shape, answer["output_pixels"].shape
print(answer["output_pixels"].dtype)
"""


def test_unpacked_package_runs_where_geodl_dask_is_not_installed(packages, tmp_path):
    with zipfile.ZipFile(packages("logits of two classes")) as archive:
        archive.extractall(tmp_path)
    (emd,) = tmp_path.glob("*.emd")
    words = [sys.executable, "-c", ALONE, str(tmp_path), str(emd)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "uint8"), done.stderr


def test_function_is_the_python_of_older_arcgis_pro_too():
    ast.parse(Path(raster_function.__file__).read_text(encoding="utf-8"), feature_version=(3, 9))
