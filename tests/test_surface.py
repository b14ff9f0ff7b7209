"""What a user imports: complete, and light until it is used."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import geodl_dask

HEAVY = ("torch", "rasterio", "rioxarray", "osgeo", "odc", "distributed", "onnxruntime", "matplotlib")
CONTRACT = {
    *("GeodlError", "__version__", "classify_raster", "connect", "deep_learning_model_to_ecd", "detect_change"),
    *("change_polygons", "change_table", "describe_change", "finalize", "load_definition", "model_info"),
    *("open_change", "pack_model", "plot_change", "write_cog", "write_report", "write_zarr"),
}


def heavy_modules_after(code: str) -> list[str]:
    """Which heavy modules a fresh Python has loaded after ``code``."""
    ask = f"import sys\n{code}\nprint(*sorted(set(sys.modules) & set({HEAVY})), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return done.stderr.split()


@pytest.mark.parametrize(
    "code",
    [
        "import geodl_dask; geodl_dask.__version__; dir(geodl_dask); geodl_dask.GeodlError",
        "from click.testing import CliRunner; from geodl_dask.cli import cli\n"
        "assert CliRunner().invoke(cli, ['detect-change', '--help']).exit_code == 0",
    ],
    ids=["import", "help"],
)
def test_torch_gdal_and_distributed_stay_unloaded(code):
    assert heavy_modules_after(code) == []


def test_loading_is_noticed():
    assert "rasterio" in heavy_modules_after("import geodl_dask; geodl_dask.detect_change")


def test_all_is_the_sorted_contract():
    assert geodl_dask.__all__ == sorted(CONTRACT)
    assert dir(geodl_dask) == geodl_dask.__all__


@pytest.mark.parametrize("name", geodl_dask.__all__)
def test_public_name_imports_and_is_documented(name):
    thing = getattr(geodl_dask, name)
    if name == "__version__":
        assert thing[0].isdigit()
        return
    assert thing.__name__ == name
    assert inspect.getdoc(thing)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'geodl_dask' has no attribute 'detect_chnage'"):
        _ = geodl_dask.detect_chnage
