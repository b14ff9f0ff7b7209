"""Prints the licence of every pinned package that is installed: ``python .ci/licences.py > .github/LICENCES.md``."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
HEAD = """# Licences of what geodl_dask is tested with

As each package says it; `python .ci/licences.py > .github/LICENCES.md` makes this list, and a test compares it. None of
these packages is in the wheel but Leaflet (BSD 2-Clause, `html_report/assets/leaflet`). Those of TensorFlow and
dask-kubernetes, which only CI installs, are not listed.

| Package | Version | Licence |
|---|---|---|"""
IN_A_FILE_ONLY = {
    "axe-playwright-python": "MIT",
    "namex": "Apache-2.0",
    "xarray-multiscale": "BSD 3-Clause",
}
"""Packages whose metadata does not say it: read from the licence file in them."""


def pins() -> dict[str, str]:
    """Version of each pinned package by its name."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))


def licence_of(name: str) -> str | None:
    """What an installed package says; empty where it says nothing, None where it is not installed."""
    try:
        about = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    classified = [
        each.rpartition("::")[2].strip() for each in about.get_all("Classifier") or () if "License ::" in each
    ]
    said = about.get("License-Expression") or ", ".join(classified) or (about.get("License") or "").split("\n")[0]
    return IN_A_FILE_ONLY.get(name, "") if said in ("", "UNKNOWN") else said


def rows() -> list[str]:
    """A line of the table for each."""
    found = {name: licence_of(name) for name in pins()}
    return [f"| {name} | {pins()[name]} | {said} |" for name, said in found.items() if said is not None]


if __name__ == "__main__":
    print("\n".join([HEAD, *rows()]))
