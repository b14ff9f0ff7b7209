"""Mutated ``.emd`` and ``.dlpk`` bytes: only GeodlErrors, no hang, nothing outside the cache, no code run.

Some seconds by default, ``GEODL_LONG=1`` for long. Case ``n`` of ``GEODL_FUZZ_SEED`` (default 0) is always the same, so
a failure is found again by its number.
"""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import random
import shutil
import stat
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from geodl_dask.definition import ModelDefinition, load_definition
from geodl_dask.errors import GeodlError

from .conftest import SEED, budget

CASES = budget(1500, 100_000)
SLOWEST_S = 20.0
"""A case that takes longer hangs; generous, since the machine may be busy."""

DEFINITION: dict[str, Any] = {
    "Framework": "arcgis.learn.models._inferencing",
    "ModelConfiguration": {"Name": "change_detection", "Config": ".\\a\\b"},
    "InferenceFunction": "[Functions]System\\DeepLearning\\ArcGISLearn\\Fn.py",
    "ModelFile": ".\\w.pth",
    "ModelFiles": {"a": "w.pth", "b": ["Fn.py"]},
    "ExtractBands": [0, 1, 2, 3, 4, 5],
    "Classes": [
        {"Value": 0, "Name": "NoChange", "Color": [0, 0, 0]},
        {"ClassValue": 255, "ClassName": 1, "Color": "#ffffff"},
    ],
    "ImageHeight": 64,
    "ImageWidth": 64,
    "BatchSize": 4,
    "Padding": 8,
    "ModelPadding": None,
    "DataRange": [0.0, 1.0],
    "GeodlDask": {"input": "pair", "output": "distance", "threshold": 1.0, "mean": [1, 2, 3], "std": [1, 2, 3]},
    "f1": 0.5,
}
VALUES = [
    None, True, 0, -1, 3, 64.0, 0.5, 10**30, -(10**400), 1e308, float("nan"), float("inf"), "", " ", ".", "..", "~",
    "a", "64", "w.pth", "Fn.py", "..\\..\\evil", "/etc/passwd", "/dev/zero", "/proc/self/mem", "C:\\x", "\\\\s\\x",
    "\0", "\n", "\ud800", "http://x/y", "/vsicurl/x", "[Functions]..\\x", "[functions]Fn.py", "x" * 5000, "a/" * 3000,
    "x" * 3000,
    "#12", [], [[]], [0], [1, 2, 3], ["Red"], [None], [10**400], {}, {"a": {}}, {"Value": 1}, [{"Value": 1}] * 2, [{}],
]  # fmt: skip
TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u", b"\\ud800", b"null", b"NaN", b"-Infinity", b"1e999", b"\0",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"9" * 5000, b"[" * 3000, b'{"a":' * 500, b"PK\x03\x04", b"\xc3", b"<",
]  # fmt: skip
NAMES = [
    "m.emd", "M.EMD", "b.emd", "sub/m.emd", "sub\\m.emd", "w.pth", "Fn.py", "../evil", "..\\evil", "/evil", "C:evil",
    "a/../../evil", "a/./b", "a//b", "a", "a/", "A/b", "esriinfo/x.emd", "__MACOSX/._m.emd", "nul", "x.", "x ", "", "/",
    ".", "..", "x" * 300, "a/" * 40 + "b", "caf\u00e9", "cafe\u0301", "\u202e.emd", "e\nvil", "m.emd:x", "~/evil",
]  # fmt: skip
MODES = [0, stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK]


def any_definition(rng: random.Random) -> bytes:
    """The definition with some values replaced, removed or nested, as JSON text in some encoding."""
    definition = json.loads(json.dumps(DEFINITION))
    for _ in range(rng.randrange(4)):
        node: Any = definition
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(node[key], (dict, list)) and rng.random() < 0.5:
                node = node[key]
                continue
            if rng.random() < 0.2:
                del node[key]
            else:
                node[key] = copy.deepcopy(rng.choice(VALUES))
            break
    if rng.random() < 0.1:
        definition[rng.choice(["MetaDataMode", "AllTilesStats", "EsriClassifierDefinitionFile", "Z"])] = rng.choice(
            VALUES
        )
    text = json.dumps(definition, indent=rng.choice([None, 4]))
    encoding = rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
    return text.encode(encoding)


def any_package(rng: random.Random) -> bytes:
    """A zip archive with members that may be harmless or not."""
    evil = "import pathlib; pathlib.Path('was_here').touch()"
    contents = [
        any_definition(rng),
        json.dumps(DEFINITION).encode(),
        evil.encode(),
        b"",
        bytes(3000),
        rng.randbytes(200),
    ]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        names = {"m.emd", "w.pth", "Fn.py"} if rng.random() < 0.8 else set()
        names |= set(rng.sample(NAMES, rng.choice([0, 0, 0, 1, 2])))
        for name in sorted(names):
            info = zipfile.ZipInfo(name)
            info.compress_type = archive.compression
            info.external_attr = (rng.choice(MODES) if rng.random() < 0.05 else 0) << 16
            archive.writestr(
                info, contents[0] if name == "m.emd" else evil if name == "Fn.py" else rng.choice(contents)
            )
    return out.getvalue()


def damage(rng: random.Random, data: bytes) -> bytes:
    """Some bytes flipped, cut, doubled or put in; numbers of zip headers changed."""
    changed = bytearray(data)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 5])):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(7)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at:at] = rng.choice(TOKENS)
        elif kind == 2:
            del changed[at : at + rng.choice([1, 2, 20, 2000])]
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.choice([1, 10, 200])]
        elif kind == 4:
            del changed[at:]
        elif kind == 5:
            changed[at : at + 4] = struct.pack("<L", rng.choice([0, 1, 0xFFFF, 2**31 - 1, 2**32 - 1]))
        else:
            headers = [place for place in range(len(changed)) if changed[place : place + 2] == b"PK"]
            if headers:
                at = rng.choice(headers) + rng.randrange(4, 46)
                changed[at : at + 1] = bytes([rng.choice([0, 1, 8, 12, 14, 63, 255])])
    return bytes(changed)


class Watch:
    """What the interpreter does while a case runs: paths written to, code executed, programs started."""

    WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.utime")
    NEVER = (
        "os.symlink", "os.link", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect",
        "pickle.find_class", "ctypes.dlopen",
    )  # fmt: skip

    def __init__(self) -> None:
        self.allowed: str | None = None
        self.broken: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        path = str(args[0]) if args else ""
        is_writing = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if is_writing or event in self.WRITES:
            # rmtree works relative to folders that it holds open; it says where it begins.
            is_below = Path(path).is_absolute() and os.path.normpath(path).startswith(self.allowed)
            is_fine = is_below or (event in ("os.remove", "os.rmdir") and "/" not in path)
        elif event == "shutil.rmtree":
            is_fine = path.startswith(self.allowed)
        elif event == "exec":
            is_fine = self.allowed not in str(getattr(args[0], "co_filename", ""))
        else:
            is_fine = event not in self.NEVER
        if not is_fine:
            self.broken.append(f"{event} {args!r}")

    @contextmanager
    def over(self, cache: Path) -> Iterator[None]:
        self.allowed, self.broken = str(cache), []
        try:
            yield
        finally:
            self.allowed = None
        assert not self.broken


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GEODL_DASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GEODL_DASK_FUNCTIONS", str(tmp_path / "functions"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/w.pth").write_bytes(b"weights")
    return tmp_path / "cache"


def run(cases: int, make: Callable[[random.Random], bytes], name: str, cache: Path, watch: Watch) -> dict[str, int]:
    """Load each case; returns how many were read, and refused by which error."""
    counts: dict[str, int] = {}
    model = cache.parent / "models" / name
    standing = sorted(cache.parent.rglob("*"))
    gc.collect()  # what earlier tests have left removes its folders now, and not while the watch listens
    for case in range(cases):
        model.write_bytes(make(random.Random(f"{SEED}:{name}:{case}")))
        begun = time.perf_counter()
        with watch.over(cache):
            outcome = load(model, case)
        assert time.perf_counter() - begun < SLOWEST_S, f"case {case} of seed {SEED} hangs"
        counts[outcome] = counts.get(outcome, 0) + 1
        assert not list(cache.glob("packages/*.partial-*")), f"case {case} of seed {SEED} leaves a part"
        if case % 200 == 199:
            shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)
    model.unlink()
    assert sorted(cache.parent.rglob("*")) == standing
    return counts


def count(what: str, counts: dict[str, int], counted: Callable[..., None]) -> None:
    cases, read = sum(counts.values()), counts.get("read", 0)
    counted(what, cases, cases, cases, f"{read} read, {cases - read} refused")


def load(model: Path, case: int) -> str:
    try:
        definition = load_definition(model)
    except GeodlError as error:
        assert len(error.args) == 1 and isinstance(error.args[0], str) and len(error.args[0]) < 20_000
        return type(error).__name__
    except BaseException as error:
        raise AssertionError(f"case {case} of seed {SEED}: {error!r}") from error
    assert isinstance(definition, ModelDefinition)
    assert definition.name
    assert definition.classes.dtype
    return "read"


def test_damaged_definitions_are_read_or_refused(cache, watch, counted):
    counts = run(CASES // 2, lambda rng: damage(rng, any_definition(rng)), "m.emd", cache, watch)
    count("fuzz: definitions (.emd)", counts, counted)
    assert counts["read"] > CASES // 100
    assert counts["ModelDefinitionError"] > CASES // 100


def test_damaged_packages_are_unpacked_or_refused(cache, watch, counted):
    counts = run(CASES - CASES // 2, lambda rng: damage(rng, any_package(rng)), "m.dlpk", cache, watch)
    count("fuzz: packages (.dlpk)", counts, counted)
    assert counts["read"] > CASES // 100
    assert counts["ModelPackageError"] > CASES // 100


def test_damaged_7_zip_packages_are_unpacked_or_refused(cache, watch, counted):
    py7zr = pytest.importorskip("py7zr")
    whole = io.BytesIO()
    with py7zr.SevenZipFile(whole, "w") as archive:
        for name, content in {"m.emd": json.dumps(DEFINITION).encode(), "w.pth": b"weights", "sub/Fn.py": b"1"}.items():
            archive.writestr(content, name)

    def make(rng: random.Random) -> bytes:
        data = damage(rng, whole.getvalue())
        if rng.random() < 0.7 and len(data) > 32:  # repair the header's checksum, else most cases end there
            data = repaired(data)
        return data

    counts = run(CASES // 10, make, "m.7z", cache, watch)
    count("fuzz: packages (7-Zip)", counts, counted)
    assert counts["ModelPackageError"] > CASES // 100


def repaired(data: bytes) -> bytes:
    """A 7-Zip archive whose checksums of the headers are right, whatever they say."""
    offset, size = struct.unpack("<QQ", data[12:28])
    begin = min(32 + offset, len(data))
    header = data[begin : begin + min(size, len(data))]
    start = data[12:20] + struct.pack("<QL", len(header), crc(header))
    return data[:8] + struct.pack("<L", crc(start)) + start + data[32:]


def crc(data: bytes) -> int:
    return zipfile.crc32(data)


def test_the_watch_notices_what_it_is_there_for(cache, watch, tmp_path):
    (tmp_path / "cache").mkdir()
    with pytest.raises(AssertionError), watch.over(cache):
        (tmp_path / "evil").touch()
    with pytest.raises(AssertionError), watch.over(cache):
        (cache / "evil").symlink_to("/etc/passwd")
    with pytest.raises(AssertionError), watch.over(cache):
        exec(compile("1", str(cache / "Fn.py"), "exec"))
    with watch.over(cache):
        (cache / "fine").touch()
