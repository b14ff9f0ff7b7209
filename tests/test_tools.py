"""The reference's own code samples, with only their imports changed, and the environments."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch
from distributed import default_client
from raster_functions.hosting import write_model

from geodl_dask import cog, devices, tools
from geodl_dask.cog import write_cog
from geodl_dask.ecd import EcdError
from geodl_dask.errors import DeviceError, GeodlError, OutputExistsError, RequestError, UntrustedCodeError

# The samples' paths are Windows paths; in a folder that has a folder "c:" they are paths here too.
DETECT_IN_WINDOW = """
from geodl_dask import tools as arcpy
from geodl_dask.tools import *

arcpy.CheckOutExtension("ImageAnalyst")

DetectChangeUsingDeepLearning("c://detectchange//input_image1.tif",
     "c://detectchange//input_image2.tif", "c://detectchange//output_difference.tif",
     "c://detectchange/detectBuilding.emd", "padding 0;score_threshold 0.6;batch_size 4")
"""
DETECT_STAND_ALONE = """
from geodl_dask import tools as arcpy
from geodl_dask.tools import *

arcpy.CheckOutExtension("ImageAnalyst")

from_raster = r"c:/detectchange/input_image1.tif"
to_raster = r"c:/detectchange/input_image2.tif"
out_classified_raster = r"c:/detectchange/output_difference.tif"
in_model_definition = r"c:/ detectchange/detectbuilding.emd"
# arcpy.env.processorType = "GPU"
# arcpy.env.gpuId = 0

DetectChangeUsingDeepLearning(from_raster, to_raster, out_classified_raster,
                              in_model_definition, "padding 0;score_threshold 0.6;batch_size 4")
"""
ECD = """
from geodl_dask import tools as arcpy
arcpy.CheckOutExtension("Spatial")
from geodl_dask.tools import *

in_deep_learning_model = "c:/test/cntk.model"
in_classification_info_json = "c:/test/classInfo.json"
out_classifier_definition = "c:/test/deeplearningtoecd.ecd"

DeepLearningModelToEcd(in_deep_learning_model, in_classification_info_json,
                       out_classifier_definition)
"""
CLASS_INFO = """{
   "ImportDeepLearningModelToEsriExtraInfo":0, "Version":1, "Classifier":"CNTK", "NumberRasterBands":4,
   "MiniBatchSize":16,
   "Classes":[{"Value":100, "Name":"Impervious", "Color":[204, 204, 204]},
              {"Value":200, "Name":" Other (Pervious)", "Color":[56, 168, 0]}]
}"""


def expected_change(pixels, score: float) -> np.ndarray:
    return np.where(abs(pixels[1][0].astype(int) - pixels[0][0]) > score * 255, 7, 0)


def read(path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path, "ThresholdedPair")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(tools, "env", tools.Environment(trustCode=True))
    return tools.env


def run(script: str, folder, **variables) -> subprocess.CompletedProcess:
    environment = {**os.environ, "GEODL_DASK_CACHE": str(folder / "cache"), **variables}
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("script", [DETECT_IN_WINDOW, DETECT_STAND_ALONE], ids=["window", "stand-alone"])
def test_detect_change_sample_of_the_reference_runs(script, tmp_path, pair, pixels, model):
    folder = tmp_path / "c:" / "detectchange"
    folder.mkdir(parents=True)
    shutil.copy(pair[0], folder / "input_image1.tif")
    shutil.copy(pair[1], folder / "input_image2.tif")
    for parent, name in ((folder, "detectBuilding"), (tmp_path / "c:" / " detectchange", "detectbuilding")):
        shutil.copytree(model.parent, parent, dirs_exist_ok=True)
        (parent / model.name).rename(parent / f"{name}.emd")
    done = run(script, tmp_path, GEODL_DASK_TRUST_CODE="1")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read(folder / "output_difference.tif"), expected_change(pixels, 0.6))


def test_the_sample_does_not_run_foreign_code_without_a_word(tmp_path, pair, model):
    call = f"DetectChangeUsingDeepLearning({str(pair[0])!r}, {str(pair[1])!r}, 'out.tif', {str(model)!r})"
    done = run(f"from geodl_dask.tools import *\n{call}", tmp_path, GEODL_DASK_TRUST_CODE="")
    assert "UntrustedCodeError" in done.stderr
    assert not (tmp_path / "out.tif").exists()


def test_ecd_sample_of_the_reference_runs(tmp_path):
    folder = tmp_path / "c:" / "test"
    folder.mkdir(parents=True)
    (folder / "cntk.model").write_bytes(b"B\0C\0N\0" + bytes(100))
    (folder / "classInfo.json").write_text(CLASS_INFO)
    done = run(ECD, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / "deeplearningtoecd.ecd").stat().st_size > 500


def test_a_value_table_and_the_workspace_are_followed(tmp_path, pair, pixels, model, environment):
    for path, name in zip(pair, ("a.tif", "b.tif"), strict=True):
        shutil.copy(path, tmp_path / name)
    environment.workspace = tmp_path
    written = tools.DetectChangeUsingDeepLearning("a.tif", "b.tif", "o.tif", model, [["score_threshold", 0.2]])
    assert written == tmp_path / "o.tif"
    np.testing.assert_array_equal(read(written), expected_change(pixels, 0.2))


def test_processor_type_and_worker_processes_are_followed(tmp_path, pair, pixels, model, environment):
    environment.processorType, environment.parallelProcessingFactor = "CPU", "2"
    written = tools.DetectChangeUsingDeepLearning(*pair, tmp_path / "o.zarr", model)
    assert written.is_dir()
    environment.processorType, environment.gpuId = "GPU", 99
    with pytest.raises(GeodlError, match="GPU"):
        tools.DetectChangeUsingDeepLearning(*pair, tmp_path / "p.tif", model)


@pytest.mark.parametrize(("factor", "expected"), [(None, ["3", "GPU-a", "GPU-b"]), (2, ["3", "GPU-a"])])
def test_each_gpu_gets_a_worker_that_sees_no_other(tmp_path, pair, model, environment, monkeypatch, factor, expected):
    # No GPU here: how many there are is made up, and what each worker would let torch see is all that can be shown.
    monkeypatch.setattr(devices, "visible_gpus", lambda: ("3", "GPU-a", "GPU-b"))
    seen = []

    def write(change, *arguments, **options):
        seen.extend(default_client().run(os.getenv, "CUDA_VISIBLE_DEVICES").values())
        return write_cog(change, *arguments, **options)

    monkeypatch.setattr(cog, "write_cog", write)
    environment.parallelProcessingFactor = factor
    tools.DetectChangeUsingDeepLearning(*pair, tmp_path / "o.tif", model)
    assert sorted(seen) == expected


def test_one_gpu_is_used_once_and_again(tmp_path, pair, model, environment, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)  # no GPU here
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(devices, "_bound", None)
    environment.gpuId = 1
    for name in ("o.tif", "p.tif"):
        tools.DetectChangeUsingDeepLearning(*pair, tmp_path / name, model)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


@pytest.mark.parametrize(
    ("name", "value"), [("gpuId", "all"), ("gpuId", -1), ("gpuId", True), ("processorType", "TPU")]
)
def test_an_environment_that_names_no_device_is_refused_where_it_is_set(environment, name, value):
    with pytest.raises(DeviceError, match=rf"env\.{name} is"):
        setattr(environment, name, value)
    for good in ("CPU", "gpu", None) if name == "processorType" else (0, "1", None):
        setattr(environment, name, good)


def test_an_existing_ecd_is_replaced_only_with_overwrite_output(tmp_path, environment):
    (tmp_path / "cntk.model").write_bytes(b"B\0C\0N\0" + bytes(100))
    (tmp_path / "classInfo.json").write_text(CLASS_INFO)
    (tmp_path / "out.ecd").write_text("precious")
    environment.workspace = tmp_path
    with pytest.raises(EcdError, match="exists"):
        tools.DeepLearningModelToEcd("cntk.model", "classInfo.json", "out.ecd")
    assert (tmp_path / "out.ecd").read_text() == "precious"
    environment.overwriteOutput = True
    assert tools.DeepLearningModelToEcd("cntk.model", "classInfo.json", "out.ecd").stat().st_size > 500


def test_an_existing_output_is_replaced_only_with_overwrite_output(tmp_path, pair, model, environment):
    (tmp_path / "o.tif").write_text("precious")
    with pytest.raises(OutputExistsError):
        tools.DetectChangeUsingDeepLearning(*pair, tmp_path / "o.tif", model)
    assert (tmp_path / "o.tif").read_text() == "precious"
    environment.overwriteOutput = True
    tools.DetectChangeUsingDeepLearning(*pair, tmp_path / "o.tif", model)
    assert read(tmp_path / "o.tif").shape == (83, 109)


def test_code_is_not_run_without_trust(tmp_path, pair, model, environment):
    environment.trustCode = False
    with pytest.raises(UntrustedCodeError):
        tools.DetectChangeUsingDeepLearning(*pair, tmp_path / "o.tif", model)


def test_environments_of_the_grid_are_followed(tmp_path, pair, model, environment):
    with rasterio.open(pair[0]) as dataset:
        bounds, side = dataset.bounds, dataset.res[0]
        crs = dataset.crs
    environment.extent = f"{bounds.left + 3 * side} {bounds.bottom} {bounds.right} {bounds.top - 5 * side}"
    environment.cellSize = str(2 * side)
    environment.snapRaster = str(pair[0])
    environment.outputCoordinateSystem = crs.to_epsg()
    environment.mask = str(pair[0])
    out = tools.DetectChangeUsingDeepLearning(*pair, tmp_path / "o.tif", model)
    with rasterio.open(out) as dataset:
        assert (dataset.res, dataset.crs) == ((2 * side, 2 * side), crs)
        # The corner that the snap raster has at or before the one that was asked for.
        assert dataset.bounds.left == bounds.left + 2 * side
        assert dataset.bounds.top == bounds.top - 4 * side
        assert dataset.read(1).any()


@pytest.mark.parametrize(("name", "value"), [("extent", "MAXOF"), ("cellSize", "MINOF")])
def test_words_for_several_rasters_are_refused(name, value, tmp_path, pair, model, environment):
    setattr(environment, name, value)
    with pytest.raises(RequestError, match=f"env.{name} is {value}"):
        tools.DetectChangeUsingDeepLearning(*pair, tmp_path / "o.tif", model)


def test_an_unknown_environment_is_refused(environment):
    with pytest.raises(AttributeError, match="env has no procesorType"):
        environment.procesorType = "CPU"


@pytest.mark.parametrize(("factor", "workers"), [(None, None), ("0", None), (3, 3), ("400%", "cores"), ("1%", None)])
def test_parallel_processing_factor_is_a_number_or_a_share(factor, workers):
    from dask.system import CPU_COUNT

    assert tools._workers(factor) == (4 * CPU_COUNT if workers == "cores" else workers)


def test_a_factor_that_is_neither_is_refused():
    with pytest.raises(RequestError, match="parallelProcessingFactor"):
        tools._workers("half")
