"""Results in object storage: whole or not there, whatever happens on the way; nothing is computed twice."""

from __future__ import annotations

import builtins
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import boto3
import numpy as np
import obstore
import pytest
import rasterio
import xarray as xr
from click.testing import CliRunner
from moto.server import ThreadedMotoServer
from obstore.exceptions import PermissionDeniedError
from obstore.store import LocalStore, S3Store
from servers import serving, serving_s3
from test_cli import heeding_interrupts, settings_of_the_command_end_with_it  # noqa: F401
from zarr.storage import ObjectStore

from geodl_dask import change as change_module
from geodl_dask import tools, uploads
from geodl_dask.change import detect_change
from geodl_dask.cli import cli
from geodl_dask.cog import write_cog
from geodl_dask.errors import MissingDependencyError, OutputError, OutputExistsError, RequestError, RunError
from geodl_dask.finishing import finalize
from geodl_dask.manifest import Manifest
from geodl_dask.outputs import SIDES, check_output, manifest_of
from geodl_dask.uploads import RemoteOutput, local_place, overlaps, url_of
from geodl_dask.zarr_store import write_zarr

OUTPUTS = ("change.tif", "change.zarr")
ANY = (".tif", ".tiff", ".zarr")
RECORDS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")


def write(change: xr.DataArray, out: str | Path, **options):
    return (write_zarr if str(out).endswith(".zarr") else write_cog)(change, out, **options)


class Bucket:
    """What lies in a bucket of its own, asked by another library than ours."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint, self.name, self.url = endpoint, name, f"s3://{name}/results"
        self.client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
        self.client.create_bucket(Bucket=name)

    @property
    def keys(self) -> set[str]:
        """Of all objects, below ``results/``."""
        listed = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {each["Key"].removeprefix("results/") for each in listed}

    def __getitem__(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=f"results/{key}")["Body"].read()

    def __setitem__(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"results/{key}", Body=content)

    def __delitem__(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"results/{key}")

    @property
    def content(self) -> dict[str, bytes]:
        return {key: self[key] for key in self.keys}


def environment_of(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_S3_ENDPOINT": endpoint, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE",
    }  # fmt: skip


@pytest.fixture(scope="module")
def endpoint():
    """Of an S3 server in a process of its own."""
    with serving_s3() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch, request) -> Bucket:
    """A new one; the current folder is one of this test alone."""
    for name, value in environment_of(endpoint).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Bucket(endpoint, f"bucket-{abs(hash(request.node.nodeid))}")


class Mortal:
    """An S3 server of this process, which ends and comes back with what it had."""

    def __init__(self) -> None:
        self.port = 0

    def start(self) -> str:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture
def mortal(monkeypatch, tmp_path):
    """A server that a test may stop, and a bucket of it. GDAL must not read there: it would wait for itself."""
    monkeypatch.setattr(uploads, "_PATIENCE_S", 1)
    monkeypatch.chdir(tmp_path)
    server = Mortal()
    for name, value in environment_of(server.start()).items():
        monkeypatch.setenv(name, value)
    yield server, Bucket(f"127.0.0.1:{server.port}", f"bucket-{server.port}")
    server.stop()


@pytest.fixture(scope="module")
def change(pair, models) -> xr.DataArray:
    return detect_change(*pair, models["pt"], chunks=24)


@pytest.fixture(scope="module")
def other(pair, models) -> xr.DataArray:
    """Of other words and another size, in two blocks."""
    left, top = 500_000, 5_400_000
    return detect_change(*pair, models["pt"], chunks=48, extent=(left, top - 30 * 0.5, left + 60 * 0.5, top))


@pytest.fixture(scope="module")
def values(change) -> np.ndarray:
    return change.values


@pytest.fixture(scope="module")
def local(change, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """Of each output, all files that stand there when it is written to a path."""
    folders = {output: tmp_path_factory.mktemp("local") for output in OUTPUTS}
    for output, folder in folders.items():
        write(change, folder / output)
    return {output: files_below(folder) for output, folder in folders.items()}


@pytest.fixture
def computed(monkeypatch) -> Counter:
    """How often the model has run on each block, in this process."""
    calls: Counter = Counter()
    run = change_module.infer_windowed_block

    def count(inference, rasters, mask, block_id):
        calls[tuple(block_id)] += 1
        return run(inference, rasters, mask, block_id)

    monkeypatch.setattr(change_module, "infer_windowed_block", count)
    return calls


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def here() -> list[str]:
    return sorted(path.name for path in Path.cwd().iterdir())


def read(url: str) -> np.ndarray:
    """By libraries that know nothing of us."""
    if url.endswith(".zarr"):
        name, _, prefix = url.removeprefix("s3://").partition("/")
        endpoint = f"http://{os.environ['AWS_S3_ENDPOINT']}"
        store = ObjectStore(
            S3Store(name, prefix=prefix, endpoint=endpoint, client_options={"allow_http": True}), read_only=True
        )
        with xr.open_zarr(store, mask_and_scale=False) as dataset:
            return dataset["change"].values
    with rasterio.Env(CPL_VSIL_CURL_NON_CACHED="/vsis3/"), rasterio.open(url) as dataset:
        return dataset.read(1)


def opens(bucket: Bucket, output: str) -> bool:
    """Whether a reader would take what is there for a result."""
    if output.endswith(".tif"):
        return output in bucket.keys
    return any(f"{output}/{group}{record}" in bucket.keys for group in ("", "change/") for record in RECORDS)


def says_it_is_whole(bucket: Bucket, output: str) -> bool:
    manifest = f"{output}.manifest.json"
    return manifest in bucket.keys and Manifest.parse(bucket[manifest]).is_complete


def fail_at(monkeypatch, number: int, fail) -> list[str]:
    """Let ``fail`` run in the place of the n-th upload of a file. Returns the keys asked for so far."""
    asked, put, one_by_one = [], uploads._put, threading.Lock()

    def count(store, key, file, stopped):
        with one_by_one:
            asked.append(key)
            is_its_turn = len(asked) == number
        if is_its_turn:
            fail()
        put(store, key, file, stopped)

    monkeypatch.setattr(uploads, "_put", count)
    return asked


# There and back


@pytest.mark.parametrize("output", OUTPUTS)
def test_result_in_a_bucket_is_the_local_one_with_all_that_stands_beside_it(output, change, values, local, bucket):
    written = write(change, f"{bucket.url}/{output}")
    assert written.path == f"{bucket.url}/{output}"
    expected, found = dict(local[output]), bucket.content
    manifest = f"{output}.manifest.json"
    of_local, of_bucket = Manifest.parse(expected.pop(manifest)), Manifest.parse(found.pop(manifest))
    assert (of_bucket.asked, of_bucket.pixels) == (of_local.asked, written.pixels)
    item = f"{output}.stac.json"  # which names what is reached from there
    assert {json.loads(each.pop(item))["type"] for each in (found, expected)} == {"Feature"}
    assert found == expected
    assert says_it_is_whole(bucket, output)
    assert np.array_equal(read(f"{bucket.url}/{output}"), values)
    assert here() == []


def test_command_writes_to_a_bucket_and_says_where(pair, models, bucket):
    command = ["detect-change", *map(str, pair), f"{bucket.url}/change.tif", str(models["pt"])]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert f"{bucket.url}/change.tif: 109 x 83 pixels" in result.stdout
    assert read(f"{bucket.url}/change.tif").shape == (83, 109)
    again = CliRunner().invoke(cli, command)
    assert (again.exit_code, "exists. Choose another name" in again.stderr) == (2, True)


def test_tool_writes_to_a_bucket_whatever_the_workspace(pair, models, bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(tools.env, "workspace", tmp_path)
    monkeypatch.setattr(tools.env, "processorType", "CPU")
    url = f"{bucket.url}/change.zarr"
    assert tools.DetectChangeUsingDeepLearning(*pair, f"{url}/", models["pt"]) == url
    assert opens(bucket, "change.zarr")


@pytest.mark.parametrize("output", OUTPUTS)
def test_bucket_of_another_cloud_is_written_too(output, change, values, tmp_path, monkeypatch):
    """A folder stands for it, which, like theirs and unlike Amazon's, cannot remove what is not there."""
    (tmp_path / "cloud").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    store = LocalStore(tmp_path / "cloud")
    monkeypatch.setattr(uploads, "open_store", lambda url, **_: (store, url.removeprefix("gs://container/")))
    for options in ({}, {"overwrite": True}):
        written = write(change, f"GS://container/a/{output}", **options)
        assert written.path == f"gs://container/a/{output}"
        local = tmp_path / "cloud" / "a" / output
        if output.endswith(".zarr"):
            with xr.open_zarr(local, mask_and_scale=False) as dataset:
                assert np.array_equal(dataset["change"].values, values)
        else:
            with rasterio.open(local) as dataset:
                assert np.array_equal(dataset.read(1), values)
        assert here() == []


# What stands there


@pytest.mark.parametrize("output", OUTPUTS)
def test_standing_result_is_replaced_only_if_it_was_said(output, change, values, other, bucket, computed):
    url = f"{bucket.url}/{output}"
    write(other, url)
    before = bucket.content
    computed.clear()
    with pytest.raises(OutputExistsError, match=rf"{output} exists\. .*--overwrite"):
        write(change, url)
    with pytest.raises(OutputExistsError, match="is from another run"):
        write(change, url, resume=True)
    assert (bucket.content, computed) == (before, {})
    bucket[f"{output}.ovr"] = b"of the old one"
    write(change, url, overwrite=True)
    assert f"{output}.ovr" not in bucket.keys
    assert np.array_equal(read(url), values)
    write(other, url, overwrite=True)
    assert bucket.keys == set(before)
    assert np.array_equal(read(url), other.values)
    assert here() == []


@pytest.mark.parametrize("output", OUTPUTS)
def test_whole_result_is_left_as_it_is_when_resuming(output, change, bucket, computed, monkeypatch):
    url = f"{bucket.url}/{output}"
    first = write(change, url)
    computed.clear()
    asked = fail_at(monkeypatch, 0, None)
    again = write(change, url, resume=True)
    assert (again.path, again.pixels, again.tiles) == (url, first.pixels, first.tiles)
    assert (asked, computed, here()) == ([], {}, [])


def test_objects_that_are_no_store_are_never_replaced(change, bucket):
    bucket["change.zarr/precious.txt"] = b"precious"
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputExistsError, match="holds objects, and is not a Zarr store"):
            write(change, f"{bucket.url}/change.zarr", **options)
    assert bucket.content == {"change.zarr/precious.txt": b"precious"}
    assert here() == []


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_what_comes_there_meanwhile_stays(output, options, change, values, bucket, monkeypatch):
    """Unless it is a result, and overwriting was asked for."""
    theirs = output if output.endswith(".tif") else f"{output}/precious.txt"

    def come(done_px, all_px):
        bucket[theirs] = b"theirs"

    url = f"{bucket.url}/{output}"
    if options and output.endswith(".tif"):
        write(change, url, progress=come, **options)
        assert np.array_equal(read(url), values)
        return
    with pytest.raises(RunError, match="has come there since the run began, and stays as it is") as raised:
        write(change, url, progress=come, **options)
    assert bucket.content == {theirs: b"theirs"}
    assert Path(str(raised.value).rsplit("The result is ", 1)[1].rstrip(".")).exists()


@pytest.mark.parametrize("output", OUTPUTS)
def test_of_two_runs_at_once_the_one_that_was_overtaken_gives_up(output, change, bucket, monkeypatch):
    manifest = f"{output}.manifest.json"

    def overtake():
        theirs = Manifest({"padding": 4}, "toy.emd", seconds=1.0)
        bucket[manifest] = theirs.to_json()

    url = f"{bucket.url}/{output}"
    with monkeypatch.context() as patch, pytest.raises(RunError, match="Another run has begun to write"):
        fail_at(patch, 1, overtake)
        write(change, url)
    assert not says_it_is_whole(bucket, output)
    assert output.endswith(".tif") or not opens(bucket, output)


@pytest.mark.parametrize("output", OUTPUTS)
def test_name_at_which_another_run_is_uploading_is_taken(output, change, bucket):
    bucket[f"{output}.manifest.json"] = Manifest({"padding": 4}, "toy.emd").to_json()
    url = f"{bucket.url}/{output}"
    with pytest.raises(OutputExistsError, match=r"is being uploaded by a run, .* --overwrite"):
        write(change, url)
    with pytest.raises(RunError, match="has come there since the run began"):
        write(change, url, resume=True)
    assert bucket.keys == {f"{output}.manifest.json"}
    write(change, url, overwrite=True)
    assert says_it_is_whole(bucket, output)


@pytest.mark.parametrize("output", OUTPUTS)
def test_manifest_without_its_result_is_in_nobodys_way(output, change, bucket):
    url = f"{bucket.url}/{output}"
    bucket[f"{output}.manifest.json"] = Manifest({"padding": 4}, "toy.emd", is_complete=True).to_json()
    assert write(change, url).path == url


@pytest.mark.parametrize(
    "given", ["s3://bucket/a/change.tif", "S3://bucket/a/change.tif/", "/vsis3/bucket/a/change.tif"]
)
@pytest.mark.parametrize("key", ["from_raster", "to_raster", "mask", "like", "snap_raster"])
def test_input_is_never_the_output(given, key, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("asked the server")

    monkeypatch.setattr(uploads, "open_store", refuse)
    with pytest.raises(OutputExistsError, match="is one of the inputs"):
        check_output("s3://bucket/a/change.tif", ANY, overwrite=True, provenance={key: given})


@pytest.mark.parametrize(
    ("given", "does"),
    [
        ("s3://b/a/x.zarr", True), ("s3://b/a/x.zarr#red", True), ("s3://b/a/x.zarr/red", True), ("s3://b/a", True),
        ("s3://b/a/x.zarr2", False), ("s3://b/x.zarr", False), ("gs://b/a/x.zarr", False), ("a/x.zarr", False),
        ("/vsigs/b/a/x.zarr", False), ("", False), ('{"ModelFile": "x"}', False),
    ],
)  # fmt: skip
def test_overlap_is_of_whole_names(given, does):
    assert overlaps("s3://b/a/x.zarr", given) is does


# On the way


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("replaces", [False, True])
def test_store_opens_only_when_all_its_chunks_are_there(zarr_format, replaces, change, other, bucket, monkeypatch):
    url, put, seen = f"{bucket.url}/change.zarr", uploads._put, []
    if replaces:
        write(other, url)

    def look(store, key, file, stopped):
        seen.append((Path(key), opens(bucket, "change.zarr"), says_it_is_whole(bucket, "change.zarr")))
        put(store, key, file, stopped)

    monkeypatch.setattr(uploads, "_put", look)
    write(change, url, overwrite=replaces, zarr_format=zarr_format)
    chunks = [key for key, is_open, _ in seen if not is_open and re.search(r"change\.zarr/change/(c/)?\d", str(key))]
    assert len(chunks) == 20
    records = [key for key, *_ in seen if key.name in RECORDS]
    beside = [key for key, *_ in seen if key.parent.name == "results"]
    assert [key for key, *_ in seen][-len(records + beside) :] == records + beside
    depths = [len(key.parts) for key in records]
    assert (depths, depths[-1]) == (sorted(depths, reverse=True), len(("results", "change.zarr", "record")))
    assert beside[-1].name == "change.zarr.manifest.json"
    assert not any(is_whole for *_, is_whole in seen)


def test_old_store_is_none_any_more_when_the_first_of_its_chunks_goes(change, other, bucket, monkeypatch):
    url, delete, listed, chunks = f"{bucket.url}/change.zarr", obstore.delete, obstore.list, []
    write(other, url)

    def look(store, keys):
        delete(store, keys)
        if "change.zarr/zarr.json" in bucket.keys:
            chunks.extend(key for key in keys if "/c/" in key)

    monkeypatch.setattr("obstore.delete", look)
    monkeypatch.setattr("obstore.list", lambda store, prefix, **_: listed(store, prefix, chunk_size=1))  # not of 1000
    write(change, url, overwrite=True)
    assert chunks == []


def test_old_file_stands_until_the_new_one_is_whole(change, values, other, bucket, monkeypatch):
    url = f"{bucket.url}/change.tif"
    write(other, url)
    old = bucket["change.tif"]
    with monkeypatch.context() as patch, pytest.raises(RunError, match="broke"):
        fail_at(patch, 1, lambda: (_ for _ in ()).throw(OSError("broke")))
        write(change, url, overwrite=True)
    assert bucket["change.tif"] == old
    assert not says_it_is_whole(bucket, "change.tif")  # it is, but of which run is not known
    written = write(change, url, resume=True)
    assert np.array_equal(read(url), values)
    assert says_it_is_whole(bucket, "change.tif")
    assert written.path == url


# How an upload can end


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize(
    ("output", "at"),
    [
        ("change.tif", 1),
        ("change.tif", "manifest"),
        ("change.zarr", 1),
        ("change.zarr", 9),
        ("change.zarr", "manifest"),
    ],
)
def test_server_that_dies_leaves_no_half_result_and_resuming_only_uploads(
    output, replaces, at, change, other, local, mortal, monkeypatch, computed
):
    server, bucket = mortal
    url, is_store = f"{bucket.url}/{output}", output.endswith(".zarr")
    if replaces:
        write(other, url)
    number = len(local[output]) if at == "manifest" else at
    with monkeypatch.context() as patch, pytest.raises(RunError, match=f"The upload .*{url}") as raised:
        fail_at(patch, number, server.stop)
        write(change, url, overwrite=replaces)
    kept = local_place(url).with_name(f"{local_place(url).name}.partial")
    assert raised.value.__notes__ == [f"What is finished is kept in {kept}; --resume (resume=True) goes on with it."]
    server.start()
    assert not says_it_is_whole(bucket, output)
    assert at == "manifest" or (replaces and not is_store) or not opens(bucket, output)
    with pytest.raises(OutputExistsError):
        write(change, url)
    computed.clear()
    written = write(change, url, resume=True)
    assert computed == {}
    assert (written.path, sum(written.pixels.values())) == (url, 83 * 109)
    assert bucket.keys == set(local[output])
    assert says_it_is_whole(bucket, output)
    assert here() == []


KILLED = """
import itertools, os, signal, sys
from geodl_dask import uploads
from geodl_dask.change import detect_change
from geodl_dask.cog import write_cog
from geodl_dask.zarr_store import write_zarr

put, numbers, url, number = uploads._put, itertools.count(1), sys.argv[4], int(sys.argv[5])

def die(store, key, file, stopped):
    if next(numbers) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    put(store, key, file, stopped)

uploads._put = die
write = write_zarr if url.endswith(".zarr") else write_cog
write(detect_change(*sys.argv[1:4], chunks=24), url)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize(("output", "number"), [("change.tif", 1), ("change.tif", 2), ("change.zarr", 7)])
def test_killed_upload_is_gone_on_with(output, number, pair, models, change, values, bucket, computed):
    url = f"{bucket.url}/{output}"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, pair), models["pt"], url, str(number)], capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not says_it_is_whole(bucket, output)
    assert opens(bucket, output) is (number == 2)
    with pytest.raises(OutputExistsError, match="--resume"):
        write(change, url)
    write(change, url, resume=True)
    assert computed == {}
    assert np.array_equal(read(url), values)
    assert here() == []


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("replaces", [False, True])
def test_run_that_was_stopped_while_it_computed_goes_on_there(
    output, replaces, change, values, other, bucket, computed
):
    url, calls = f"{bucket.url}/{output}", []
    if replaces:
        write(other, url)
    old = bucket.content
    computed.clear()

    def stop(done_px, all_px):
        calls.append(done_px)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        write(change, url, progress=stop, overwrite=replaces)
    assert len(raised.value.__notes__) == 1
    assert bucket.content == old
    before = sum(computed.values())
    assert 5 <= before < 20
    write(change, url, resume=True)
    assert max(computed.values()) == 1
    assert len(computed) == 20
    assert np.array_equal(read(url), values)
    assert here() == []


def test_upload_is_gone_on_with_from_copies_of_the_rasters(
    pair, models, values, bucket, monkeypatch, tmp_path, computed
):
    url = f"{bucket.url}/change.tif"
    rasters = [shutil.copy(path, tmp_path) for path in pair]
    with monkeypatch.context() as patch, pytest.raises(RunError, match="broke"):
        fail_at(patch, 1, lambda: (_ for _ in ()).throw(OSError("broke")))
        write(detect_change(*rasters, models["pt"], chunks=24), url)
    (tmp_path / "copies").mkdir()
    change = detect_change(*(shutil.move(path, tmp_path / "copies") for path in rasters), models["pt"], chunks=24)
    with pytest.raises(OutputExistsError, match="--same-pixels"):
        write(change, url, resume=True)
    computed.clear()
    for _ in range(2):
        assert write(change, url, resume=True, same_pixels=True).path == url
    assert computed == {}
    assert np.array_equal(read(url), values)


def test_parts_that_outlived_their_upload_are_removed(change, bucket, monkeypatch, computed):
    """A run was stopped between its last request and the removal of its parts."""
    url = f"{bucket.url}/change.tif"
    upload = RemoteOutput.upload

    def upload_and_stop(*arguments, **options):
        upload(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RemoteOutput, "upload", upload_and_stop)
        write(change, url)
    assert here() != []
    computed.clear()
    assert write(change, url, resume=True).path == url
    assert (here(), computed) == ([], {})


@pytest.mark.parametrize("ends", ["server", "user"])
def test_file_of_several_pieces_appears_at_once_or_not_at_all(
    ends, mortal, monkeypatch, tmp_path, heeding_interrupts  # noqa: F811
):  # fmt: skip
    server, bucket = mortal
    monkeypatch.setattr(uploads, "_PIECE_BYTES", 5 * 2**20)
    monkeypatch.setattr(uploads, "_PIECES_AT_ONCE", 1)
    finished, content = tmp_path / "finished.tif", np.random.default_rng(1).bytes(16 * 2**20)
    finished.write_bytes(content)
    run = Manifest({"padding": 4}, "toy.emd", seconds=1.5)
    Manifest({"padding": 4}, "toy.emd", is_complete=True, pixels={0: 1}).write(manifest_of(finished))
    read_pieces, given = uploads._pieces, []

    def die(file, length, stopped):
        for piece in read_pieces(file, length, stopped):
            given.append(len(piece))
            if len(given) == 3:
                if ends == "user":
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                    stopped.wait(10)  # until the interrupt has reached the thread that waits
                else:
                    server.stop()
            yield piece

    remote = RemoteOutput.at(f"{bucket.url}/change.tif", is_patient=True)
    with monkeypatch.context() as patch, pytest.raises(RunError if ends == "server" else KeyboardInterrupt):
        patch.setattr(uploads, "_pieces", die)
        remote.upload(finished, run, sides=SIDES)
    assert len(given) >= 3
    if ends == "server":
        server.start()
    assert bucket.keys == {"change.tif.manifest.json"}
    if ends == "user":
        assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket=bucket.name)
    remote.upload(finished, Manifest({"padding": 4}, "toy.emd", seconds=2.5), sides=SIDES)
    assert bucket["change.tif"] == content
    assert says_it_is_whole(bucket, "change.tif")


def test_pieces_are_as_many_as_storage_takes(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("obstore.put", lambda *_, **options: asked.append(options["chunk_size"]))
    file = tmp_path / "change.tif"
    with file.open("wb") as content:
        content.truncate(400 * 2**30)  # of which a sparse file takes nothing
    uploads._put(None, "change.tif", file, None)
    assert 400 * 2**30 / asked[0] < 10_000


# What is asked wrongly


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("https://host/change.tif", r"URL of another kind; .* local disks and to s3://, gs://, az://"),
        ("file:///change.tif", "URL of another kind"),
        ("ftp://host/change.tif", "URL of another kind"),
        ("s3://bucket.tif", "no name in object storage"),
        ("s3:///change.tif", "no name in object storage"),
        ("s3://bucket/a//change.tif", "no name in object storage"),
        ("s3://bucket/a/../change.tif", "no name in object storage"),
        ("s3://bucket/change.tif?versionId=1", "no name in object storage"),
        ("s3://bucket/#1/change.tif", "no name in object storage"),
        ("s3://bucket/change.png", r"does not end in \.tif or \.tiff or \.zarr"),
    ],
)
def test_url_that_names_no_place_for_a_result_is_refused(output, message):
    with pytest.raises(OutputError, match=message):
        check_output(output, ANY, overwrite=True)


@pytest.mark.parametrize("output", OUTPUTS)
def test_bucket_that_is_not_there_is_said_before_any_work(output, pair, models, bucket, computed):
    for options in ([], ["--overwrite"], ["--resume"]):
        command = ["detect-change", *map(str, pair), f"s3://nobody/{output}", str(models["pt"]), *options]
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 2
        assert f"s3://nobody/{output} cannot be written: The specified bucket does not exist." in result.stderr
        assert "AWS_REGION" in result.stderr
    assert (computed, here()) == ({}, [])


def test_storage_that_refuses_is_said_before_any_work(bucket, monkeypatch):
    with serving(("status", 403)) as site:
        monkeypatch.setenv("AWS_S3_ENDPOINT", site.url.removeprefix("http://"))
        with pytest.raises(OutputError, match=r"403 Forbidden.*AWS_ACCESS_KEY_ID"):
            check_output("s3://bucket/change.tif", ANY, overwrite=False)


def test_store_whose_metadata_may_not_be_read_is_said_before_any_work(bucket, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionDeniedError("Access Denied")

    bucket["change.zarr/zarr.json"] = b"{}"
    monkeypatch.setattr("obstore.head", refuse)
    with pytest.raises(OutputError, match=r"change\.zarr cannot be written: Access Denied\."):
        check_output(f"{bucket.url}/change.zarr", ANY, overwrite=True)


@pytest.mark.parametrize("operation", ["put", "delete"])
def test_storage_that_may_only_be_read_is_said_before_any_work(operation, change, bucket, computed, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionDeniedError("Access Denied")

    monkeypatch.setattr(f"obstore.{operation}", refuse)
    with pytest.raises(OutputError, match=r"cannot be written: Access Denied\. .*deleted from is needed"):
        write(change, f"{bucket.url}/change.tif")
    assert (computed, here()) == ({}, [])


def test_missing_library_is_named_with_its_install_line(change, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name.startswith("obstore"):
            raise ImportError("No module named 'obstore'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependencyError, match=r"pip install 'geodl_dask\[cloud\]'"):
        write(change, "s3://bucket/change.tif")


def test_places_on_this_disk_tell_urls_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    urls = ["s3://bucket/a/change.tif", "s3://bucket/b/change.tif", "gs://bucket/a/change.tif"]
    places = {local_place(url) for url in urls}
    assert len(places) == 3
    assert {(place.parent, place.suffix, place.stem[:7]) for place in places} == {(tmp_path, ".tif", "change.")}
    assert url_of("S3://bucket/a/change.tif/") == urls[0]


def test_url_for_which_there_are_no_settings_is_an_error_of_the_request(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    with pytest.raises(RequestError, match="az://container/change"):
        check_output("az://container/change.tif", ANY, overwrite=False)


@pytest.mark.parametrize("output", OUTPUTS)
def test_shards_grow_in_the_current_folder_and_finalize_uploads_their_result(output, bucket, change):
    url = f"{bucket.url}/{output}"
    write(change, f"{bucket.url}/alone{output[6:]}")
    alone = {key[5:]: content for key, content in bucket.content.items()}
    for number in (1, 2):
        assert write(change, url, shard=(number, 2)).path == url
    assert not any(key.startswith("change") for key in bucket.keys)
    result = CliRunner().invoke(cli, ["finalize", url])
    assert result.exit_code == 0, result.output
    ours = {key[6:]: content for key, content in bucket.content.items() if key.startswith("change")}
    told = {f"{output[6:]}.manifest.json", f"{output[6:]}.stac.json"}
    assert {key for key in ours if ours[key] != alone[key]} <= told
    assert set(ours) == set(alone)
    assert list(Path.cwd().iterdir()) == []
    assert finalize(url).pixels == Manifest.parse(bucket[f"{output}.manifest.json"]).pixels
