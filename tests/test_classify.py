"""One raster, by the same kernel; an .ecd wherever a model definition is."""

import json

import numpy as np
import onnxruntime
import pytest
import rasterio
import torch
from click.testing import CliRunner
from conftest import ToyNetwork, save_network, write_definition

import geodl_dask as gd
from geodl_dask.cli import cli
from geodl_dask.definition import load_definition
from geodl_dask.errors import BandCountError, ModelDefinitionError, ModelFileError, UntrustedCodeError
from geodl_dask.runners import Batch, RunnerSpec, load_runner

CLASS_INFO = {
    "ImportDeepLearningModelToEsriExtraInfo": 0,
    "Version": 1,
    "Classifier": "ONNX",
    "NumberRasterBands": 3,
    "MiniBatchSize": 5,
    "Classes": [
        {"Value": 100, "Name": "Impervious", "Color": [204, 204, 204]},
        {"Value": 200, "Name": " Other (Pervious)", "Color": [56, 168, 0]},
    ],
}


@pytest.fixture(scope="module")
def network() -> ToyNetwork:
    return ToyNetwork(bands=3).eval()


@pytest.fixture
def ecd(tmp_path, network):
    """An .ecd around the toy network as ONNX, under a name that says nothing."""
    save_network(network, tmp_path / "toy.onnx", bands=3)
    (tmp_path / "toy.onnx").rename(tmp_path / "cntk.model")
    (tmp_path / "info.json").write_text(json.dumps({**CLASS_INFO, "ImageHeight": 16, "ImageWidth": 16}))
    done = CliRunner().invoke(
        cli, ["model-to-ecd", *(str(tmp_path / name) for name in ("cntk.model", "info.json", "out.ecd"))]
    )
    assert done.exit_code == 0, done.output
    assert "out.ecd: ONNX model cntk.model, 2 classes" in done.stdout
    return tmp_path / "out.ecd"


def by_hand(session: onnxruntime.InferenceSession, image: np.ndarray, tile=16, padding=4) -> np.ndarray:
    """Class values (y, x): ONNX Runtime on one tile after another, each cut to its core."""
    stride, (height, width) = tile - 2 * padding, image.shape[1:]
    padded = np.pad(image.astype(np.float32), ((0, 0), (padding, tile), (padding, tile)))
    result = np.zeros((height + tile, width + tile), np.uint8)
    for row in range(0, height, stride):
        for col in range(0, width, stride):
            (scores,) = session.run(
                None, {session.get_inputs()[0].name: padded[None, :, row : row + tile, col : col + tile]}
            )
            core = scores[0].argmax(0)[padding:-padding, padding:-padding]
            result[row : row + stride, col : col + stride] = np.array([100, 200])[core]
    return result[:height, :width]


def test_an_onnx_model_in_an_ecd_gives_what_onnx_runtime_gives_by_hand(ecd, pair, pixels, tmp_path):
    session = onnxruntime.InferenceSession(str(tmp_path / "cntk.model"))
    done = CliRunner().invoke(cli, ["classify", str(pair[0]), str(tmp_path / "out.tif"), str(ecd)])
    assert done.exit_code == 0, done.output
    with rasterio.open(tmp_path / "out.tif") as result:
        values, colors, tags = result.read(1), result.colormap(1), result.tags()
    np.testing.assert_array_equal(values, by_hand(session, pixels[0]))
    assert set(np.unique(values)) == {100, 200}
    assert (colors[100], colors[200]) == ((204, 204, 204, 255), (56, 168, 0, 255))
    assert tags["class_names"] == '["Impervious", " Other (Pervious)"]'
    assert "Impervious" in done.stdout


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("suffix", ["pt", "pt2", "onnx"])
@pytest.mark.parametrize("name", ["net.pth", "cntk.model"])
def test_a_model_is_told_by_its_content_under_any_name(suffix, name, network, pair, tmp_path):
    save_network(network, tmp_path / f"toy.{suffix}", bands=3)
    (tmp_path / name).write_bytes((tmp_path / f"toy.{suffix}").read_bytes())
    (tmp_path / "info.json").write_text(json.dumps({**CLASS_INFO, "ImageHeight": 16, "ImageWidth": 16}))
    results = []
    for model in (name, f"toy.{suffix}"):
        gd.deep_learning_model_to_ecd(tmp_path / model, tmp_path / "info.json", tmp_path / f"{model}.ecd")
        results.append(gd.classify_raster(pair[0], tmp_path / f"{model}.ecd").compute())
    np.testing.assert_array_equal(*results)


def test_weights_alone_are_refused_with_what_to_do(network, pair, tmp_path):
    torch.save(network.state_dict(), tmp_path / "net.pth")
    (tmp_path / "info.json").write_text(json.dumps(CLASS_INFO))
    gd.deep_learning_model_to_ecd(tmp_path / "net.pth", tmp_path / "info.json", tmp_path / "net.ecd")
    with pytest.raises(ModelFileError, match=r"weights alone \(a state dict\) need their network"):
        gd.classify_raster(pair[0], tmp_path / "net.ecd")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("suffix", ["pt", "pt2", "onnx"])
@pytest.mark.parametrize("chunks", [8, 40])
def test_an_emd_classifier_equals_one_forward_pass(suffix, chunks, network, pair, pixels, tmp_path):
    save_network(network, tmp_path / f"toy.{suffix}", bands=3)
    model = write_definition(tmp_path / "model.emd", ModelFile=f"toy.{suffix}", ExtractBands=[0, 1, 2])
    result = gd.classify_raster(pair[0], model, chunks=chunks).compute()
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels[0].astype(np.float32))[None])[0].argmax(0).numpy()
    agree = (result.values == np.array([0, 7])[expected])[2:-2, 2:-2]
    assert agree.mean() > 0.9999
    assert (result.name, result.attrs["raster"]) == ("class", str(pair[0]))


@pytest.fixture
def keras_file(tmp_path, network, monkeypatch):
    """The toy network as a Keras model with any tile size."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    layers = [
        keras.layers.Input((None, None, 3)),
        keras.layers.Rescaling(1 / 255, -0.5),
        keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
        keras.layers.Conv2D(2, 3, padding="same"),
    ]
    model = keras.Sequential(layers)
    weights = [parameter.detach().numpy() for parameter in network.parameters()]
    model.set_weights([each.transpose(2, 3, 1, 0) if each.ndim == 4 else each for each in weights])
    model.save(tmp_path / "toy.keras")
    return tmp_path / "toy.keras"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras.*")  # Keras 3.15 on NumPy 2
def test_a_keras_classifier_equals_the_network_and_needs_trust(keras_file, network, pair, pixels, tmp_path):
    model = write_definition(tmp_path / "model.emd", ModelFile="toy.keras", ExtractBands=[0, 1, 2])
    with pytest.raises(UntrustedCodeError, match=r"toy\.keras"):
        gd.classify_raster(pair[0], model)
    assert gd.model_info(model).carries_code
    result = gd.classify_raster(pair[0], model, trust_code=True, chunks=40).compute()
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels[0].astype(np.float32))[None])[0].argmax(0).numpy()
    assert (result.values == np.array([0, 7])[expected])[2:-2, 2:-2].mean() > 0.9999


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras.*")  # Keras 3.15 on NumPy 2
def test_a_keras_answer_without_a_score_axis_lies_as_the_image_does(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    image = keras.layers.Input((16, 16, 3))
    first = keras.layers.Reshape((16, 16))(keras.layers.Conv2D(1, 1, use_bias=False)(image))
    model = keras.Model(image, keras.layers.Activation("sigmoid")(first))
    model.set_weights([np.array([0.01, 0, 0], np.float32).reshape(1, 1, 3, 1)])
    model.save(tmp_path / "plane.keras")
    definition = load_definition(
        write_definition(tmp_path / "m.emd", ModelFile="plane.keras", ExtractBands=[0, 1, 2], Padding=0)
    )
    runner = load_runner(RunnerSpec(definition, "native", 3, "uint8", raster_count=1))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16)).astype(np.uint8)
    scores = runner.predict(Batch((pixels,), np.ones((4, 16, 16), bool), np.zeros((4, 2), np.int64)))
    np.testing.assert_allclose(scores[:, 0], 1 / (1 + np.exp(pixels[:, 0] / -100)), rtol=1e-5)
    assert runner.output == "probabilities"


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built:UserWarning")
def test_a_keras_network_that_was_never_built_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    keras.Sequential([keras.layers.Conv2D(2, 3, padding="same")]).save(tmp_path / "unbuilt.keras")
    definition = load_definition(write_definition(tmp_path / "m.emd", ModelFile="unbuilt.keras"))
    with pytest.raises(ModelFileError, match=r"does not say what it takes.*give its first layer an input shape"):
        load_runner(RunnerSpec(definition, "native", 3, "uint8"))


def test_an_array_and_a_file_give_the_same_bits(network, pair, tmp_path):
    import rioxarray

    save_network(network, tmp_path / "toy.pt2", bands=3)
    model = write_definition(tmp_path / "model.emd", ModelFile="toy.pt2", ExtractBands=None)
    array = rioxarray.open_rasterio(pair[0], chunks={"x": 30, "y": 20})
    by_file = gd.classify_raster(pair[0], model, chunks=16)
    np.testing.assert_array_equal(gd.classify_raster(array, model, chunks=16), by_file)


def test_an_ecd_detects_change_where_its_model_takes_the_stacked_pair(models, pair, tmp_path):
    info = {**CLASS_INFO, "NumberRasterBands": 6, "ImageHeight": 16, "ImageWidth": 16}
    info["Classes"] = [
        {"Value": 0, "Name": "No change", "Color": [230, 230, 230]},
        {"Value": 7, "Name": "Change", "Color": [200, 30, 30]},
    ]
    (tmp_path / "info.json").write_text(json.dumps(info))
    gd.deep_learning_model_to_ecd(models["onnx"].with_name("toy.onnx"), tmp_path / "info.json", tmp_path / "out.ecd")
    by_ecd = gd.detect_change(*pair, tmp_path / "out.ecd").compute()
    np.testing.assert_array_equal(by_ecd, gd.detect_change(*pair, models["onnx"]).compute())


def test_zarr_holds_the_classes_under_their_name(ecd, pair, tmp_path):
    import xarray as xr

    gd.write_zarr(gd.classify_raster(pair[0], ecd), tmp_path / "out.zarr")
    opened = xr.open_zarr(tmp_path / "out.zarr", mask_and_scale=False)
    assert list(opened.data_vars) == ["class"]
    assert opened["class"].attrs["flag_values"] == [100, 200]


def test_a_damaged_ecd_and_wrong_bands_are_refused(ecd, pair, tmp_path):
    text = ecd.read_text()
    (tmp_path / "bad.ecd").write_text(text.replace('"SHA256": "', '"SHA256": "00'))
    with pytest.raises(ModelDefinitionError, match="SHA256"):
        gd.load_definition(tmp_path / "bad.ecd")
    one_band = rasterio.open(pair[0]).read(1)
    import xarray as xr
    from conftest import TRANSFORM

    array = xr.DataArray(one_band, dims=("y", "x")).rio.write_crs("EPSG:32633").rio.write_transform(TRANSFORM)
    with pytest.raises(BandCountError, match="takes 3"):
        gd.classify_raster(array, ecd)


def test_a_model_of_pairs_is_refused_for_one_raster(models, pair, tmp_path):
    with pytest.raises(BandCountError):
        gd.classify_raster(pair[0], models["pt2"])
    model = write_definition(tmp_path / "m.emd", ModelFile=str(models["pt2"].with_name("toy.pt2")), ExtractBands=None,
                             GeodlDask={"input": "pair"})  # fmt: skip
    with pytest.raises(ModelDefinitionError, match="takes a pair"):
        gd.classify_raster(pair[0], model)


def test_the_model_is_taken_out_of_the_ecd_once(ecd):
    first, second = gd.load_definition(ecd), gd.load_definition(ecd)
    assert first.model_file == second.model_file
    assert first.digest == second.digest
    assert first.source == str(ecd)


@pytest.mark.parametrize("word", ["no", 1, None, "True"])
def test_word_of_trust_is_true_or_false(pair, models, word):
    with pytest.raises(UntrustedCodeError, match=r"trust_code is .*; True or False is needed"):
        gd.classify_raster(pair[0], models["pt2"], trust_code=word)


def test_model_of_two_dates_is_refused_with_what_runs_it(pair, models):
    with pytest.raises(BandCountError, match=r"takes 6 bands .* has 3 band.*detect-change"):
        gd.classify_raster(pair[0], models["pt2"])
