"""Executes notebooks: ``python tests/notebooks.py notebooks/*.ipynb`` saves each with its outputs."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

TIMEOUT_S = 300
"""Of a cell, on a machine that is busy with other things."""


def read_notebook(path: Path) -> NotebookNode:
    """The notebook of a file, checked against the format."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(path: Path, folder: Path) -> NotebookNode:
    """The notebook of a file, executed anew in a folder; cells find the commands of this environment.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    notebook = read_notebook(path)
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as sockets:
        client = NotebookClient(
            notebook, timeout=TIMEOUT_S, iopub_timeout=TIMEOUT_S, kernel_name="python3", record_timing=False,
            resources={"metadata": {"path": str(folder)}}, config=_without_ports(sockets),
        )  # fmt: skip
        # That a worker takes its time to end, of which Dask warns, is the machine's doing.
        client.execute(env={**os.environ, "PATH": commands, "DASK_LOGGING__DISTRIBUTED": "error"})
    for each in notebook.cells:
        if each.cell_type == "code":
            each.outputs = _joined(each.outputs)
    return notebook


def _without_ports(folder: str) -> Config:
    """A kernel that listens at files: a port that is free may be somebody else's by the time that it begins."""
    if sys.platform == "win32":
        return Config()
    return Config({"ConnectionFileMixin": {"transport": "ipc", "ip": f"{folder}/kernel"}})


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """What a cell has printed comes in pieces, as the kernel happened to send them."""
    joined: list[NotebookNode] = []
    for each in outputs:
        if joined and each.output_type == "stream" and each.get("name") == joined[-1].get("name"):
            joined[-1].text += each.text
        else:
            joined.append(each)
    return joined


def save(path: Path) -> None:
    """Execute the notebook of a file in a folder of its own, and write it back with its outputs."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(path, Path(folder))
    notebook.metadata.language_info.pop("version", None)  # of this machine's Python, which says nothing
    nbformat.write(notebook, path)
    print(f"{path}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        save(Path(name))
