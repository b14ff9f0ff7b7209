"""Encrypted connections by one option: with the certificate they are there, without it, or with another, they are not.

All of it on a real scheduler; the certificates are those that ``cluster/tls.sh`` makes.
"""

import logging
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import dask
import pytest
from click.testing import CliRunner
from distributed import LocalCluster

import geodl_dask as gd
from geodl_dask.cli import cli
from geodl_dask.cluster_config import ClusterConfig
from geodl_dask.errors import MissingDependencyError, RequestError
from geodl_dask.job_queue import job_script
from geodl_dask.tls import security_of

SCRIPT = Path(__file__).parent.parent / "cluster" / "tls.sh"
has_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl, which makes the keys, is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> tuple[str, str]:
    """Two files of ``tls.sh``, which have nothing in common."""
    made = []
    for name in ("ours", "theirs"):
        folder = tmp_path_factory.mktemp(name)
        done = subprocess.run(
            ["bash", "-c", f"source {SCRIPT} && echo $pem"], cwd=folder, capture_output=True, check=True
        )
        made.append(done.stdout.decode().strip())
    return made[0], made[1]


@contextmanager
def scheduler_with(key: str):
    """A scheduler with one worker process that talk to holders of the key alone."""
    quiet = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    with LocalCluster(**quiet, security=security_of(key), protocol="tls://") as cluster:
        yield cluster.scheduler_address


@has_openssl
@pytest.mark.attack("a client without the certificate", "none, another, or no encryption at all")
def test_scheduler_with_a_certificate_takes_its_holders_and_nobody_else(keys, tmp_path):
    ours, theirs = keys
    with scheduler_with(ours) as address, dask.config.set({"distributed.comm.timeouts.connect": "5s"}):
        assert address.startswith("tls://")
        with gd.connect(address, config={"tls": ours}) as client:
            assert client.submit(sum, [1, 2]).result() == 3
        with pytest.raises(RequestError, match=r"the ends differ \(.*Say --tls FILE .*that it was started with"):
            gd.connect(address, config={"tls": theirs})
        with pytest.raises(RequestError, match=r"this side has no certificate\. Say --tls FILE"):
            gd.connect(address)
        with pytest.raises(RequestError, match="is not encrypted; tls://host:port is needed"):
            gd.connect(address.replace("tls://", "tcp://"), config={"tls": ours})
        (tmp_path / "scheduler.json").write_text(f'{{"address": "{address}"}}')
        with gd.connect(str(tmp_path / "scheduler.json"), config={"tls": ours}) as client:
            assert client.submit(sum, [1, 2]).result() == 3


@has_openssl
@pytest.mark.attack("a client without the certificate", "none, another, or no encryption at all")
def test_client_that_only_knows_the_schedulers_certificate_is_refused_by_it(keys, tmp_path):
    """The scheduler is whom it takes it for; that the scheduler does not take it comes after the handshake."""
    ours, theirs = (Path(key).read_text() for key in keys)
    (tmp_path / "mixed.pem").write_text(theirs + ours[ours.index("-----BEGIN CERTIFICATE") :])
    with scheduler_with(keys[0]) as address, pytest.raises(RequestError, match="the ends differ"):
        gd.connect(address, config={"tls": str(tmp_path / "mixed.pem")})


@has_openssl
def test_the_command_refuses_a_wrong_certificate_before_any_work(keys, pair, models, tmp_path):
    with scheduler_with(keys[0]) as address:
        words = ["detect-change", *map(str, pair), str(tmp_path / "out.tif"), str(models["pt"]), "--cluster", address]
        done = CliRunner().invoke(cli, [*words, "--tls", keys[1]])
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "the file that it was started with" in " ".join(done.output.split())


@has_openssl
def test_worker_processes_of_this_machine_are_encrypted_and_give_the_same_pixels(keys, pair, models, tmp_path):
    plain = gd.write_cog(gd.detect_change(*pair, models["pt"]), tmp_path / "plain.tif").pixels
    words = ["detect-change", *map(str, pair), str(tmp_path / "out.tif"), str(models["pt"]), "--workers", "1"]
    done = CliRunner().invoke(cli, [*words, "--tls", keys[0]])
    assert done.exit_code == 0, done.output
    with gd.open_change(tmp_path / "out.tif") as written:
        assert {value: int((written == value).sum()) for value in plain} == plain


def test_auto_needs_no_file_and_shuts_others_out():
    pytest.importorskip("cryptography")
    with gd.connect("local", workers=1, config={"tls": "auto"}) as client:
        address = client.scheduler.address
        assert address.startswith("tls://")
        assert client.submit(sum, [1, 2]).result() == 3
        with pytest.raises(RequestError, match="this side has no certificate"):
            gd.connect(address)


def test_auto_without_cryptography_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "geodl_dask\[tls\]"'):
        security_of("auto")


def test_auto_is_for_workers_that_are_ours():
    for cluster in ("slurm", "tls://here:8786"):
        with pytest.raises(RequestError, match=r"cannot know what is made here\. Give the PEM file"):
            ClusterConfig(cluster, tls="auto")


@has_openssl
def test_jobs_of_a_queue_get_the_same_file(keys):
    pytest.importorskip("dask_jobqueue")
    script = job_script(ClusterConfig("slurm", tls=keys[0]))
    for option in ("--protocol tls://", f"--tls-ca-file {keys[0]}", f"--tls-cert {keys[0]}", f"--tls-key {keys[0]}"):
        assert option in script


@has_openssl
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read .No such file"),
        ("", "does not hold what is needed"),
        ("CERTIFICATE", "does not hold what is needed"),
    ],
)
def test_file_that_holds_no_certificate_with_its_key_is_refused(content, says, keys, tmp_path):
    path = tmp_path / "key.pem"
    if content is not None:
        whole = Path(keys[0]).read_text()
        path.write_text(whole[whole.index(f"-----BEGIN {content}") :] if content else "")
    with pytest.raises(RequestError, match=f"tls is {path}, which {says}.*`source cluster/tls.sh` makes"):
        security_of(str(path))


@has_openssl
def test_key_that_others_can_read_is_warned_of(keys, tmp_path, caplog):
    shutil.copy(keys[0], tmp_path / "key.pem")
    security_of(str(tmp_path / "key.pem"))
    assert "chmod 600" not in caplog.text
    (tmp_path / "key.pem").chmod(0o640)
    security_of(str(tmp_path / "key.pem"))
    assert "Others may read or write" in caplog.text


@has_openssl
def test_plain_text_is_not_understood_by_the_scheduler(keys):
    """What the option is for: nobody who reaches the port is listened to."""
    with scheduler_with(keys[0]) as address:
        host, port = address.removeprefix("tls://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as plain:
            plain.sendall(bytes(64))
            try:
                answer = plain.recv(1)
            except ConnectionResetError:
                answer = b""
            assert answer in (b"", b"\x15")  # nothing, or the alert of TLS
