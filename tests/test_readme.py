"""What the README promises."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from geodl_dask.demo import prepare_demo

README = Path(__file__).parent.parent / "README.md"
RESULTS = README.parent / ".docs/results.md"


def block(language: str, containing: str, page: Path = README) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (only,) = [each for each in blocks if containing in each]
    return only


def numbers_and_words(text: str) -> tuple[list[float], str]:
    numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]
    return numbers, re.sub(r"[\d,\s]+", " ", text)


def test_python_example_prints_what_the_readme_says(tmp_path):
    prepare_demo(tmp_path / "geodl-dask-demo")
    example = subprocess.run(
        [sys.executable, "-c", block("python", "new_roads")],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert example.returncode == 0, example.stderr
    numbers, words = numbers_and_words(example.stdout)
    promised_numbers, promised_words = numbers_and_words(block("text", "pixels of new road"))
    assert words == promised_words
    assert numbers == pytest.approx(promised_numbers, rel=0.01)  # processors differ in the last bit of a score
    assert (tmp_path / "geodl-dask-demo/again.tif").exists()


def test_results_are_looked_at_and_counted_as_the_front_page_and_the_guide_say(tmp_path):
    prepare_demo(tmp_path / "geodl-dask-demo")
    for date, name in ((2019, "from"), (2021, "to"), (2024, "from")):
        shutil.copy(tmp_path / f"geodl-dask-demo/{name}.tif", tmp_path / f"{date}.tif")
    code = [block("python", part) for part in ("new_roads", "plot_change")]
    code += [block("python", part, RESULTS) for part in ("plot_change", "times_changed")]
    shown = "print(sorted(south['class']), len(largest), areas.loc[2021, 'pixels'].sum(), int(times_changed.max()))"
    example = subprocess.run(
        [sys.executable, "-c", "\n".join([*code, shown])], env={**os.environ, "MPLBACKEND": "agg"},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert example.returncode == 0, example.stderr
    classes = ["Building removed", "New building", "New road", "No change", "Woods cleared"]
    assert example.stdout.splitlines()[-1] == f"{classes} 5 {1024 * 1536} 2"
    assert (tmp_path / "areas.gpkg").exists()
    assert (tmp_path / "geodl-dask-demo/again.tif.html").exists()


def test_files_that_the_readme_names_are_there():
    text = README.read_text(encoding="utf-8")
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", text) + ["constraints.txt", ".ci/run"]:
        assert (README.parent / name).exists(), name
