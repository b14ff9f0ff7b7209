"""What is shipped, and what it brings along: wheel and sdist, pinned packages and their licences.

``.ci/run`` installs the wheel into an empty environment, and asks pip-audit where that reaches its service.
"""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parent.parent
LICENCES = runpy.run_path(str(REPOSITORY / ".ci" / "licences.py"))
PINS = {canonicalize_name(name): version for name, version in LICENCES["pins"]().items()}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
SYSTEMS = ("linux", "darwin", "win32")
OF_CI = {  # what .ci/run installs besides, too large for everybody: tensorflow-cpu, and what only that asks for
    "absl-py", "astunparse", "flatbuffers", "gast", "google-pasta", "grpcio", "libclang", "markdown", "opt-einsum",
    "tensorboard", "tensorboard-data-server", "tensorflow-cpu", "termcolor", "werkzeug", "wrapt", "dask-kubernetes",
}  # fmt: skip
FREE = re.compile(
    r"\b(MIT|Apache|BSD|0BSD|PSF|Python Software Foundation|ISC|Zlib|Public Domain|MPL|Mozilla Public License|"
    r"LGPL|Lesser General Public License)"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path, Path]:
    """The wheel of this folder, its sdist, and the wheel that the sdist makes."""
    if not find_spec("hatchling"):
        pytest.skip("hatchling, which builds them, is not installed")
    places = [tmp_path_factory.mktemp(name) for name in ("wheel", "sdist", "unpacked", "again")]
    build(REPOSITORY, "wheel", places[0])
    build(REPOSITORY, "sdist", places[1])
    (sdist,) = places[1].glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(places[2], filter="data")
    build(next(places[2].iterdir()), "wheel", places[3])
    return next(places[0].glob("*.whl")), sdist, next(places[3].glob("*.whl"))


def build(folder: Path, target: str, into: Path) -> None:
    words = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)]
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=120)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_the_package_and_says_that_it_is_typed(built):
    found = contents(built[0])
    package = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "geodl_dask").rglob("*.py")}
    assert package <= found.keys()
    assert "geodl_dask/py.typed" in found
    assert {name.partition("/")[0].partition("-")[0] for name in found} == {"geodl_dask"}
    (about,) = [name for name in found if name.endswith("/METADATA")]
    assert f"Version: {PROJECT['project']['version']}".encode() in found[about]
    (commands,) = [name for name in found if name.endswith("/entry_points.txt")]
    assert b"geodl-dask = geodl_dask.cli:main" in found[commands]


def test_sdist_makes_the_same_wheel(built):
    assert contents(built[2]) == contents(built[0])


def needed() -> set[str]:
    """All that this project and its extras ask for, on any system, as far as it is installed here."""
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for each in PROJECT["project"]["optional-dependencies"].values():
        asked += each
    todo, seen = [(Requirement(each), "") for each in asked], set()
    while todo:
        requirement, extra = todo.pop()
        name, marker = canonicalize_name(requirement.name), requirement.marker
        if marker and not any(marker.evaluate({"extra": extra, "sys_platform": each}) for each in SYSTEMS):
            continue
        for wanted in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, wanted))
            try:
                todo += [(Requirement(each), wanted) for each in importlib.metadata.requires(name) or ()]
            except importlib.metadata.PackageNotFoundError:
                continue
    return {name for name, _ in seen}


def test_every_pinned_package_is_needed():
    if not (find_spec("sphinx") and find_spec("mypy")):
        pytest.skip("what sphinx, mypy and the like ask for is known where they are installed; .ci/run does that")
    assert PINS.keys() - needed() - OF_CI == set()


def test_every_dependency_is_pinned():
    named = [Requirement(each) for each in PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        named += map(Requirement, extra)
    untested = {"dask-cuda", "geodl-dask", "tensorflow"}  # tensorflow is tested as tensorflow-cpu
    assert {canonicalize_name(each.name) for each in named} - untested <= PINS.keys()
    for each in named:
        assert each.specifier.contains(PINS.get(canonicalize_name(each.name), "")) or each.name not in PINS, each


def test_licence_of_every_pinned_package_is_known_and_lets_us_use_it():
    for name in LICENCES["pins"]():
        said = LICENCES["licence_of"](name)
        assert said is None or FREE.search(said), f"{name} says {said!r}: read its licence, and put it where it belongs"


def test_list_of_licences_is_that_of_the_pins():
    listed = (REPOSITORY / ".github" / "LICENCES.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in LICENCES["rows"]() if row not in listed] == []
    of_list = {canonicalize_name(row.split("|")[1].strip()) for row in listed if re.match(r"\| (?!Package)\w", row)}
    assert of_list <= PINS.keys()
