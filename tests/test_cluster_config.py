"""Options of a cluster, from a dict, a YAML file and the command line."""

from __future__ import annotations

import pytest

from geodl_dask.cluster_config import QUEUES, ClusterConfig, read_cluster_config
from geodl_dask.errors import RequestError

WHOLE = """
cluster: slurm
workers: 8
gpus_per_node: 4
walltime: "02:00:00"
queue: gpu
account: forests
memory: "32GB"
cores: 8
interface: ib0
directives: ["--exclusive", --mail-type=END]
setup_lines:
  - module load cuda
"""


def test_file_and_dict_say_the_same(tmp_path):
    path = tmp_path / "slurm.yaml"
    path.write_text(WHOLE)
    expected = ClusterConfig(
        "slurm", 8, 4, "02:00:00", "gpu", "forests", "32GB", 8, "ib0", ("--exclusive", "--mail-type=END"),
        ("module load cuda",),
    )  # fmt: skip
    assert read_cluster_config(path) == read_cluster_config(str(path)) == expected
    as_dict = {
        "cluster": "slurm", "workers": 8, "gpus_per_node": 4, "walltime": "02:00:00", "queue": "gpu",
        "account": "forests", "memory": "32GB", "cores": 8, "interface": "ib0",
        "directives": ["--exclusive", "--mail-type=END"], "setup_lines": ["module load cuda"],
    }  # fmt: skip
    assert read_cluster_config(as_dict) == expected
    assert read_cluster_config(expected) == expected


def test_text_of_the_file_means_what_it_looks_like(tmp_path):
    # With YAML's own types: 43200, 136, 83 and False.
    path = tmp_path / "slurm.yaml"
    path.write_text("cluster: pbs\nwalltime: 12:00:00\nworkers: 2:16\naccount: 0123\nqueue: no\ncores:\n")
    assert read_cluster_config(path) == ClusterConfig(
        "pbs", workers=(2, 16), walltime="12:00:00", account="0123", queue="no"
    )


def test_what_is_given_besides_wins_over_the_file(tmp_path):
    path = tmp_path / "slurm.yaml"
    path.write_text(WHOLE)
    found = read_cluster_config(path, workers="4:12", queue="debug", directives=["--nice"], account=None)
    assert (found.workers, found.queue, found.directives) == ((4, 12), "debug", ("--nice",))
    assert (found.account, found.walltime) == ("forests", "02:00:00")
    assert read_cluster_config(found, queue="night") == read_cluster_config({**vars(found), "queue": "night"})


@pytest.mark.parametrize("empty", [None, {}, ClusterConfig()])
def test_nothing_said_is_local(empty):
    found = read_cluster_config(empty)
    assert found == ClusterConfig("local")
    assert found.is_here
    assert not found.is_queue


def test_empty_file_is_local(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert read_cluster_config(path) == ClusterConfig("local")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"workers": 0}, "workers is 0; a number, at least 1, is needed"),
        ({"workers": True}, "workers is True; a number"),
        ({"workers": "many"}, "workers is 'many'; a number"),
        ({"workers": "-3"}, "workers is '-3'; a number"),
        ({"workers": 2.5}, "workers is 2.5; a number"),
        ({"workers": "16:2"}, "workers is '16:2'; a number, or the least and the most"),
        ({"workers": "1:2:3"}, "workers is '1:2:3'; a number, or the least and the most"),
        ({"workers": [0, 2]}, "workers is 0; a number, at least 1"),
        ({"cores": "x"}, "cores is 'x'; a number, at least 1"),
        ({"gpus_per_node": 0}, "gpus_per_node is 0; a number, at least 1"),
        ({"walltime": 7200}, 'walltime is 7200; text as "02:00:00"'),
        ({"walltime": "2h"}, "walltime is '2h'; text as"),
        ({"walltime": "02:60:00"}, "walltime is '02:60:00'; text as"),
        ({"walltime": "00:00:00"}, "walltime is '00:00:00'; text as"),
        ({"memory": 32}, 'memory is 32; text as "32GB"'),
        ({"memory": "32"}, "memory is '32'; text as"),
        ({"memory": "0GB"}, "memory is '0GB'; text as"),
        ({"queue": ""}, "queue is ''; text"),
        ({"account": 12}, "account is 12; text"),
        ({"queue": "gpu\nrm -r"}, "queue is 'gpu\\\\nrm -r'; text, all in one line"),
        ({"directives": "--exclusive"}, "directives is '--exclusive'; a list of texts"),
        ({"directives": ["a\nb"]}, "directives is 'a\\\\nb'; text, all in one line"),
        ({"setup_lines": [1]}, "setup_lines is 1; text"),
        (
            {"wokers": 4, "wall": 2},
            "wokers and wall: no such option of a cluster; there are cluster, workers, ",
        ),
    ],
)
def test_wrong_value_is_named_with_what_is_needed(given, says):
    with pytest.raises(RequestError, match=says):
        read_cluster_config({"cluster": "slurm", **given})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read from .*slurm.yaml: No such file"),
        (b"cluster: [slurm", "slurm.yaml are no YAML: while parsing a flow sequence"),
        (b"cluster: \xff\xfe", "slurm.yaml are no YAML"),
        (b"- slurm\n- pbs\n", "slurm.yaml are no list of names and values"),
        (b"slurm", "slurm.yaml are no list of names and values"),
        (b"cluster: slurm\npartition: gpu\n", "partition: no such option of a cluster; there are cluster, workers"),
        (b"cluster: slurm\nwalltme:\n", "walltme: no such option of a cluster; there are cluster, workers"),
        (b"cluster: slurm\ncores: {a: 1}\n", "cores is {'a': '1'}; a number"),
    ],
)
def test_file_that_cannot_be_used_is_named(content, says, tmp_path):
    path = tmp_path / "slurm.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=says):
        read_cluster_config(path)


@pytest.mark.parametrize("cluster", ["local", "cuda", "tcp://127.0.0.1:8786", "scheduler.json"])
def test_options_of_jobs_are_refused_by_name_where_there_are_none(cluster):
    with pytest.raises(RequestError, match=f"walltime and directives can be said to a job queue.*cluster is {cluster}"):
        read_cluster_config({"cluster": cluster, "walltime": "01:00:00", "directives": ["-x"]})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": (2, 4)}, "workers is 2 to 4; that is for job queues"),
        ({"cluster": "tcp://127.0.0.1:8786", "workers": 2}, "scheduler at tcp://127.0.0.1:8786 has its own workers"),
        ({"cluster": "slurm", "workers": 6, "gpus_per_node": 4}, "workers is 6, and a job has 4, one for each of its"),
        ({"cluster": "slurm", "workers": (4, 6), "gpus_per_node": 4}, "Give a multiple of 4"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, says):
    with pytest.raises(RequestError, match=says):
        read_cluster_config(options)


@pytest.mark.parametrize("cluster", QUEUES)
def test_workers_of_a_queue_are_those_of_one_job_unless_said(cluster):
    assert read_cluster_config({"cluster": cluster}).worker_range == (1, 1)
    assert read_cluster_config({"cluster": cluster, "gpus_per_node": 4}).worker_range == (4, 4)
    assert read_cluster_config({"cluster": cluster, "gpus_per_node": 4, "workers": "4:8"}).worker_range == (4, 8)
