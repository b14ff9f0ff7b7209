"""The published functions themselves, where they are at hand: run from folders outside the repository."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from raster_functions.hosting import FUNCTIONS, GENERIC, box_difference, load, predict_whole

from geodl_dask.tiling import TileSpec


@pytest.fixture
def published(tmp_path) -> Path:
    """A copy of Esri/raster-deep-learning's functions (Apache-2.0), with an own child beside them."""
    checkout = os.environ.get("GEODL_DASK_RASTER_DEEP_LEARNING")
    if not checkout:
        pytest.skip("GEODL_DASK_RASTER_DEEP_LEARNING names no checkout of Esri/raster-deep-learning")
    folder = tmp_path / "functions"
    shutil.copytree(Path(checkout) / "python_raster_functions", folder)
    (folder / "Networks").mkdir()
    child = (FUNCTIONS / "generic" / "Networks" / "BoxDifference.py").read_text()
    base = "from Templates.TemplateBaseClassifier import TemplateBaseClassifier as BaseClassifier"
    child = child.replace("from Networks.base import BaseClassifier", base)
    method = "class ChildImageClassifier(BaseClassifier):\n    def load_model(self, path):\n        pass\n"
    child = child.replace("class ChildImageClassifier(BaseClassifier):\n", method)
    (folder / "Networks" / "BoxDifference.py").write_text(child)
    return folder


@pytest.mark.parametrize(("batch_size", "block_yx"), [(1, (1, 1)), (4, (2, 2)), (6, (2, 3)), (5, (5, 1))], ids=str)
@pytest.mark.parametrize("padding", [1, 8])
def test_published_classifier_equals_whole_image_computation(published, pixels, batch_size, block_yx, padding):
    definition = {**GENERIC, "InferenceFunction": ".\\ImageClassifier.py", "ModelFile": ".\\none.pb"}
    (published / "model.emd").write_text(json.dumps(definition))
    runner = load(published / "model.emd", padding=padding, batch_size=batch_size)
    assert runner.tile.stride_yx == ((24 - 2 * padding) * block_yx[0], (40 - 2 * padding) * block_yx[1])
    np.testing.assert_array_equal(predict_whole(runner, *pixels), box_difference(*pixels))


def test_published_classifier_with_model_padding_and_batch_size_equals_whole_image_computation(
    published, pixels, tmp_path, monkeypatch
):
    monkeypatch.setenv("GEODL_DASK_FUNCTIONS", str(published))
    name = "[Functions]System\\DeepLearning\\ImageClassifier.py"
    more = {"ModelFile": ".\\none.pb", "ModelPadding": 4, "BatchSize": 6, "DataRange": [0, 255]}
    (tmp_path / "model.emd").write_text(json.dumps({**GENERIC, **more, "InferenceFunction": name}))
    runner = load(tmp_path / "model.emd")
    assert runner.tile == TileSpec((2 * 16 + 8, 3 * 32 + 8), 4)
    np.testing.assert_array_equal(predict_whole(runner, *pixels), box_difference(*pixels))


def test_package_written_by_arcgis_learn_runs_unmodified(pixels):
    """The network, which stands for one that was trained, is replaced by one whose answer is known."""
    package = os.environ.get("GEODL_DASK_ARCGIS_PACKAGE")
    if not package:
        pytest.skip("GEODL_DASK_ARCGIS_PACKAGE names no .dlpk of a three-band ChangeDetector written by arcgis.learn")
    runner = load(package, padding=8, batch_size=4)
    change = predict_whole(runner, *pixels)
    assert set(np.unique(change)) <= {0, 255}

    class Known(torch.nn.Module):
        def forward(self, before, after):
            return torch.where((before[:, :1] - after[:, :1]).abs() > 1e-6, 1.5, 0.5)

    runner._function._object.child_image_classifier.model = Known()
    valid = np.ones(pixels[0].shape[1:], bool)
    valid[:20] = False
    values = predict_whole(runner, *pixels, valid)
    np.testing.assert_array_equal(values, np.where(valid, np.where(pixels[0][0] != pixels[1][0], 255, 0), 254))
    assert {"arcpy", "spacy", "ArcGISImageClassifier"}.isdisjoint(sys.modules)
