"""Broken words of a request: argument strings, options of a cluster, definitions and packages of a real network."""

from __future__ import annotations

import json
import random
import zipfile
from functools import reduce
from pathlib import Path

import pytest

import geodl_dask as gd
from geodl_dask.arguments import parse_arguments
from geodl_dask.cluster_config import read_cluster_config

from .conftest import budget
from .fuzzing import fuzz
from .mutations import VALUES, mutate_bytes, mutate_json

ARGUMENTS = b"padding 4;batch_size 2; threshold 0.5 ;test_time_augmentation True;return_probability_raster False"
WORDS = [
    "padding", "batch_size", " ", ";", "=", "4", "-1", "1e9", "NaN", "\0", "\u0664", "True", "'", "\n", "\ud800",
    "x" * 999,
]  # fmt: skip
NUMBERS = ["0", "1", "2", "4", "7", "8", "9", "16", "-1", "0.5", "1e9", "999999999", "True", "nan"]
CLUSTER = b"""\
cluster: slurm
workers: 2:16
gpus_per_node: 2
walltime: "02:00:00"
queue: gpu
account: ann
memory: 32GB
cores: 8
directives: [--exclusive, "--gres=gpu:2"]
setup_lines:
  - module load cuda
"""
BOMB = reduce(lambda text, name: f"[&{name} {text}{f', *{name}' * 8}]", "abcdefghi", "[x, x, x, x, x, x, x, x, x]")
"""Some hundred bytes that are 9 ** 10 texts when they are written out."""


def any_arguments(rng: random.Random) -> str:
    kind = rng.randrange(3)
    if kind == 0:
        return mutate_bytes(rng, ARGUMENTS).decode("utf-8", "surrogateescape")
    if kind == 1:
        names = rng.sample(["padding", "batch_size", "threshold", "zoom"], rng.randrange(3))
        return ";".join(f"{name} {rng.choice(NUMBERS)}" for name in names)
    return "".join(rng.choice(WORDS) + rng.choice(["", " ", ";"]) for _ in range(rng.randrange(12)))


def test_damaged_arguments_are_read_or_refused(counted):
    def run(rng: random.Random) -> str:
        given = any_arguments(rng)
        parsed = parse_arguments(given if rng.random() < 0.8 else {given: rng.choice(VALUES)})
        assert all(isinstance(each, str) for pair in parsed.items() for each in pair)
        return "read"

    ends = fuzz("argument strings", budget(3000, 300_000), run, counted)
    assert min(ends["read"], ends["ModelArgumentError"]) > 100


def test_damaged_arguments_of_a_real_model_are_obeyed_or_refused(pair, models, counted):
    def run(rng: random.Random) -> str:
        gd.detect_change(*pair, models["pt"], arguments=any_arguments(rng))
        return "planned"

    ends = fuzz("arguments of a run", budget(200, 5000), run, counted)
    assert min(ends["planned"], ends["ModelArgumentError"]) > 10


def test_damaged_cluster_options_are_read_or_refused(tmp_path, counted):
    path = tmp_path / "cluster.yaml"

    def run(rng: random.Random) -> str:
        path.write_bytes(mutate_bytes(rng, CLUSTER))
        read_cluster_config(path)
        return "read"

    ends = fuzz("cluster options (YAML)", budget(1000, 100_000), run, counted)
    assert min(ends["read"], ends["RequestError"]) > 50


@pytest.mark.parametrize("name", ["workers", "queue", "directives", "unknown"])
def test_cluster_options_that_are_a_bomb_are_refused_in_few_words(tmp_path, counted, name):
    def run(rng: random.Random) -> str:
        path = tmp_path / "cluster.yaml"
        path.write_text(f"{name}: {BOMB}")
        read_cluster_config(path)
        return "read"

    assert fuzz(f"YAML that grows, as {name}", 1, run, counted)["RequestError"] == 1


def test_damaged_definition_of_a_real_network_is_run_or_refused(tmp_path, pair, models, counted):
    """Of a small raster; what can be planned is computed where a tile of it is small, too."""
    whole = models["pt"].read_bytes()
    path = models["pt"].with_name("damaged.emd")

    def run(rng: random.Random) -> str:
        path.write_bytes(mutate_json(rng, whole))
        change = gd.detect_change(*pair, path, chunks=48)
        return computed(change)

    try:
        ends = fuzz("definition of a real network", budget(400, 5000), run, counted)
    finally:
        path.unlink()
    assert ends["computed"] > 5
    assert ends["ModelDefinitionError"] > 20


def computed(change) -> str:
    if max(change.attrs["tile_size"]) > 256:
        return "planned"
    change.isel(y=slice(0, 20), x=slice(0, 20)).compute()
    return "computed"


def test_damaged_package_of_a_real_network_is_run_or_refused(tmp_path, pair, models, counted, monkeypatch):
    monkeypatch.setenv("GEODL_DASK_CACHE", str(tmp_path / "cache"))
    files = {"toy.emd": models["pt"].read_bytes(), "toy.pt": models["pt"].with_name("toy.pt").read_bytes()}
    path = tmp_path / "damaged.dlpk"

    def run(rng: random.Random) -> str:
        kind = rng.choice(["archive", "definition", "network"])
        changed = dict(files)
        if kind == "definition":
            changed["toy.emd"] = mutate_json(rng, files["toy.emd"])
        if kind == "network":
            changed["toy.pt"] = mutate_bytes(rng, files["toy.pt"])
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in changed.items():
                archive.writestr(name, content)
        if kind == "archive":
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))
        return computed(gd.detect_change(*pair, path, chunks=48))

    ends = fuzz("package of a real network", budget(400, 5000), run, counted)
    assert min(ends["ModelPackageError"], ends["ModelFileError"], ends["ModelDefinitionError"]) > 5


def test_the_whole_package_is_run(tmp_path, pair, models):
    """So that it is the damage that is refused above."""
    path = tmp_path / "whole.dlpk"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(models["pt"], "toy.emd")
        archive.write(Path(models["pt"]).with_name("toy.pt"), "toy.pt")
    assert computed(gd.detect_change(*pair, path, chunks=48)) == "computed"
    assert json.loads(models["pt"].read_text())["ModelFile"] == "toy.pt"
