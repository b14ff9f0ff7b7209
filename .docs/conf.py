"""Sphinx makes pages of the guide, which is Markdown that the forge shows too, and of the docstrings."""

import re
from importlib import metadata

project = "geodl_dask"
release = metadata.version("geodl_dask")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["README.md"]  # index.rst includes it; the forge shows it as the folder's front page
html_theme = "furo"
html_title = project
myst_heading_anchors = 3
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

_ITEM = re.compile(r"(\w+(?:, \w+)*) : (.*)")
_END = re.compile(r"$|(Returns|Raises) ")


def itemise(app, what, name, obj, options, lines):
    """Make list items of ``name : what it is`` and the lines after it, which our docstrings have for parameters."""
    written, is_item = [], False
    for line in lines:
        if found := _ITEM.fullmatch(line):
            written += ["" if is_item else "\n", f"- **{found[1]}** : {found[2]}"]
            is_item = True
        elif is_item and _END.match(line):
            written += ["", line]
            is_item = False
        else:
            written.append(f"  {line.strip()}" if is_item else line)
    lines[:] = [part for line in written for part in line.split("\n")]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", itemise, priority=400)  # before napoleon
