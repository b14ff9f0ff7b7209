"""Mutated class information, ``.ecd`` and model bytes: only EcdError, no hang, no partial output, nothing astray.

Some seconds by default, ``GEODL_LONG=1`` for long. Case ``n`` of ``GEODL_FUZZ_SEED`` (default 0) is always the same, so
a failure is found again by its number.
"""

import collections
import copy
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_ecd import CNTK, EXPORT, GRAPH, SAMPLE, SAVED_MODEL, write_saved_model

from geodl_dask.ecd import EcdError, deep_learning_model_to_ecd, extract, main

from .conftest import SEED, budget

CASES = budget(1500, 100_000)
SLOWEST_S = 20.0
"""A case that takes longer hangs; generous, since the machine may be busy."""

VALUES = [
    None, True, 0, -1, 1, 3, 4.0, 256, 2**31, 2**64, 10**400, 1e308, float("nan"), float("inf"), "", " ", ".", "..",
    "a", "a/b", "../evil", "/evil", "a\\b", "c:x", "\0", "\n", "\ud800", "nul", "x" * 300, "a/" * 3000, "/dev/zero",
    "base64", "reference", "e.g. 8", "7", "AAAA", "0" * 64, [], [[]], [0], [1, 2, 3], [-1, -1, -1], [256, 0, 0], {},
    {"Value": 1}, [{}], [{"Value": 1, "Name": "a", "Color": [0, 0, 0]}] * 2, "model.pb", "classInfo.json",
]  # fmt: skip
KEYS = ["Value", "ClassValue", "Name", "Color", "Red", "Data", "Path", "Size", "Version", "Framework", "DataRange", "Z"]
TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u", b"\\ud800", b"null", b"NaN", b"-Infinity", b"1e999", b"\0",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"9" * 5000, b"[" * 3000, b'{"a":' * 500, b"PK\x03\x04", b"\xc3", b"=", b"-",
    b'"Data": "', b'"Size": 9999999999999999,"Encoding": "base64","Data": "', b'"Encoding": "reference",',
]  # fmt: skip


def mutate_values(rng: random.Random, record: Any) -> Any:
    """A copy with some values replaced, removed, doubled or added."""
    record = json.loads(json.dumps(record))
    for _ in range(rng.randrange(1, 4)):
        node = record
        while isinstance(node, dict | list) and node:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if isinstance(node[key], dict | list) and rng.random() < 0.75:
                node = node[key]
                continue
            if rng.random() < 0.2:
                del node[key]
            elif isinstance(node, dict) and rng.random() < 0.3:
                node[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
            elif isinstance(node, list) and rng.random() < 0.3:
                node.append(copy.deepcopy(rng.choice([*node, *VALUES])))
            else:
                node[key] = copy.deepcopy(rng.choice(VALUES))
            break
    return record


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Some bytes or tokens replaced, put in or taken out, or the end cut off."""
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(content) + 1)
        end = start + rng.choice([0, 0, 1, 1, 2, rng.randrange(200), len(content)])
        put = rng.choice([b"", rng.randbytes(1), rng.choice(TOKENS), content[start:end] * 2])
        content = content[:start] + put + content[end:]
    return content


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Bytes, or values, or both."""
    if rng.random() < 0.7:
        text = json.dumps(mutate_values(rng, json.loads(content)), indent=rng.choice([None, 1]))
        content = text.encode(rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"]))
        if rng.random() < 0.8:
            return content
    return mutate_bytes(rng, content)


def any_conversion(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Mutated class information or model."""
    name, content = rng.choice([("classInfo.json", SAMPLE), ("x.emd", json.dumps(EXPORT | {"DataRange": [0, 1]}))])
    model = rng.choice([CNTK, GRAPH, SAVED_MODEL, b"\x08\x07\x12\x02ab", b"PK\x03\x04" + bytes(26) + b"a/data.pkl"])
    (folder / name).write_bytes(mutate_json(rng, content.encode()))
    (folder / "model.pb").write_bytes(mutate_bytes(rng, model) if rng.random() < 0.3 else model)
    options = {key: rng.random() < 0.5 for key in ("reference", "emd", "overwrite")}
    return lambda: deep_learning_model_to_ecd(folder / "model.pb", folder / name, folder / "out.ecd", **options)


def any_extraction(rng: random.Random, folder: Path, originals: list[bytes]) -> Callable[[], object]:
    """A mutated ``.ecd``."""
    (folder / "out.ecd").write_bytes(mutate_json(rng, rng.choice(originals)))
    (folder / "model.pb").write_bytes(CNTK)
    return lambda: extract(folder / "out.ecd", folder / "back")


@pytest.fixture
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A file, a file by reference and a folder, as ``.ecd``."""
    folder = tmp_path_factory.mktemp("originals")
    (folder / "model.pb").write_bytes(CNTK)
    (folder / "classInfo.json").write_text(SAMPLE)
    write_saved_model(folder / "sm")
    for model, reference in (("model.pb", False), ("model.pb", True), ("sm", False)):
        out = folder / f"{model}{reference}.ecd"
        deep_learning_model_to_ecd(folder / model, folder / "classInfo.json", out, reference=reference)
    return [path.read_bytes() for path in sorted(folder.glob("*.ecd"))]


def test_mutations_raise_only_ecd_errors_and_leave_nothing(tmp_path, monkeypatch, originals, counted):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    outcomes: collections.Counter[str] = collections.Counter()
    for case in range(CASES):
        rng = random.Random(f"{SEED} {case}")
        folder = tmp_path / "around" / "inside"
        folder.mkdir(parents=True)
        is_conversion = rng.random() < 0.5
        run = any_conversion(rng, folder) if is_conversion else any_extraction(rng, folder, originals)
        before, start = {*folder.iterdir()}, time.monotonic()
        try:
            run()
            outcomes["converted" if is_conversion else "extracted"] += 1
            if is_conversion:  # what was written can be read: it comes back as it was
                model, info = extract(folder / "out.ecd", folder / "back")
                assert model.read_bytes() == (folder / "model.pb").read_bytes()
                assert info.read_bytes() == (folder / info.name).read_bytes()
            before |= {folder / "out.ecd", folder / "out.emd", folder / "back"}
        except EcdError as error:
            assert len(str(error)) < 12_000
            outcomes["refused"] += 1
        except BaseException as error:
            error.add_note(f"case {case} of seed {SEED}")
            raise
        assert time.monotonic() - start < SLOWEST_S, case
        assert {*folder.iterdir()} <= before, case
        assert {*tmp_path.iterdir(), *folder.parent.iterdir()} == {folder.parent, folder}, case
        shutil.rmtree(folder.parent)
    counted("fuzz: class information and .ecd", CASES, CASES, outcomes.total(), str(dict(outcomes)))
    assert min(outcomes[key] for key in ("converted", "extracted", "refused")) > CASES // 50


def test_the_command_line_says_any_refusal_in_one_line(tmp_path, monkeypatch, capsys, originals):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for case in range(CASES // 10):
        rng = random.Random(f"line {SEED} {case}")
        (tmp_path / "out.ecd").write_bytes(mutate_json(rng, rng.choice(originals)))
        status = main(["--extract", str(tmp_path / "out.ecd"), str(tmp_path / "back")])
        shown = capsys.readouterr()
        lines = len(shown.out.splitlines()), len(shown.err.splitlines())
        assert (status, *lines) in {(0, 1, 0), (2, 0, 1)}, case
        shutil.rmtree(tmp_path / "back", ignore_errors=True)
