"""What a run has left, broken: the next one goes on with it or refuses, and no finished block is ever lost.

Lost is a block that was kept and is computed again, or is gone though the run was refused.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import parts_in
from test_resume import OUTPUTS, by_files, computed, parts_of, place, read, stop_after, write  # noqa: F401

import geodl_dask as gd
from geodl_dask.errors import GeodlError
from geodl_dask.growth import partial_of
from geodl_dask.outputs import manifest_of

from .conftest import budget
from .fuzzing import fuzz
from .mutations import mutate_bytes, mutate_json


def break_manifest(rng: random.Random, partial: Path) -> None:
    manifest = partial / "manifest.json"
    manifest.write_bytes(mutate_json(rng, manifest.read_bytes()))


def break_owner(rng: random.Random, partial: Path) -> None:
    owner = partial / "owner"
    owner.write_bytes(rng.choice([b"", b"\xff\xfe", b"elsewhere", b"elsewhere x", b" ", b"a b c\n", rng.randbytes(40)]))
    old = time.time() - 3600  # nobody is waited for
    os.utime(owner, (old, old))


def put_in(rng: random.Random, partial: Path) -> None:
    """Files and folders that no run has made, among the parts and beside them."""
    (parts,) = partial.glob("parts-*")
    names = ["junk", "shard-x.lock", "shard-7x.lock", "shard-7.json", "shard-01.owner", "parts-zz", "9_9.tif", "lock2"]
    where = rng.choice([partial, parts]) / rng.choice(names)
    if rng.random() < 0.3:
        where.mkdir()
    else:
        where.write_bytes(rng.randbytes(30))


def leave_half_written(rng: random.Random, partial: Path) -> None:
    """What a killed process, ours or Zarr's, leaves beside the file that it was writing."""
    (parts,) = partial.glob("parts-*")
    file = rng.choice([partial / "manifest.json", *(each for each in parts.rglob("*") if each.is_file())])
    ending = rng.randbytes(4).hex() if file.parent == partial else f"{rng.randbytes(8).hex()}.partial"
    file.with_name(f"{file.name}.{ending}").write_bytes(mutate_bytes(rng, file.read_bytes()))


BREAKS = [break_manifest, break_manifest, break_manifest, break_owner, put_in, leave_half_written]


def blocks_in(out: Path) -> dict[tuple[int, int], bytes]:
    """The finished blocks, wherever in the folder of parts they are."""
    partial = partial_of(out)
    if out.suffix == ".zarr":
        found = {
            (int(path.parent.name), int(path.name)): path
            for path in partial.glob("*/*/*/c/*/*") if path.name.isdecimal()
        }  # fmt: skip
    else:
        found = {tuple(map(int, path.stem.split("_"))): path for path in partial.glob("*/[0-3]_[0-4].tif")}
    return {index: path.read_bytes() for index, path in found.items()}


@pytest.mark.parametrize("output", OUTPUTS)
def test_broken_folder_of_parts_is_gone_on_with_or_refused_and_keeps_its_blocks(
    output, place, models, tmp_path, computed, counted  # noqa: F811
):  # fmt: skip
    expected = read(write(by_files(place, models), tmp_path / f"undisturbed{output[6:]}").path)
    first = tmp_path / "first" / output
    first.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write(by_files(place, models), first, progress=stop_after(6))
    kept = blocks_in(first)
    assert len(kept) >= 6
    out = tmp_path / "case" / output

    def run(rng: random.Random) -> str:
        shutil.rmtree(out.parent, ignore_errors=True)
        shutil.copytree(first.parent, out.parent)
        broken = rng.choice(BREAKS)
        broken(rng, partial_of(out))
        computed.clear()
        ask = rng.choice(["resume", "resume", "resume", "begin", "shard", "finalize"])
        try:
            if ask == "finalize":
                gd.finalize(out)
            else:
                options = {"begin": {}, "resume": {"resume": True}, "shard": {"shard": (1, 2)}}[ask]
                write(by_files(place, models), out, **options)
        except GeodlError as error:
            assert not out.exists()
            assert blocks_in(out) == kept, f"{ask}, {broken.__name__}: blocks are gone: {error}"
            raise
        assert not set(kept) & set(computed), f"{ask}, {broken.__name__}: kept blocks were computed again"
        if ask != "shard":  # after which there is no result yet
            np.testing.assert_array_equal(read(out), expected)
        return ask

    ends = fuzz(f"folder of parts ({output[7:]})", budget(60, 5000), run, counted)
    assert ends["resume"] > 3
    assert ends["OutputExistsError"] > 5


def test_broken_manifest_of_a_result_is_none(place, models, tmp_path, computed, counted):  # noqa: F811
    """The result stays as it is, and nothing is computed."""
    out = tmp_path / "change.zarr"
    write(by_files(place, models), out)
    whole, expected = manifest_of(out).read_bytes(), read(out)
    change = by_files(place, models)

    def run(rng: random.Random) -> str:
        manifest_of(out).write_bytes(mutate_json(rng, whole))
        computed.clear()
        try:
            write(change, out, resume=rng.random() < 0.8)
            return "left as it was"
        finally:
            assert computed == {}
            np.testing.assert_array_equal(read(out), expected)

    ends = fuzz("manifest of a result", budget(80, 5000), run, counted)
    assert ends["OutputExistsError"] > 20


def test_what_is_broken_above_is_whole_before(place, models, tmp_path, computed):  # noqa: F811
    out = tmp_path / "change.tif"
    with pytest.raises(KeyboardInterrupt):
        write(by_files(place, models), out, progress=stop_after(6))
    assert set(blocks_in(out)) == set(parts_of(out))
    assert parts_in(out).is_dir()
    computed.clear()
    kept = set(blocks_in(out))
    write(by_files(place, models), out, resume=True)
    assert not kept & set(computed)
