"""The page itself: a template in which all text is escaped, with its styles and scripts inside.

The page's own policy (CSP) lets only those scripts and styles work that it was written with, and images inside it. So
even text that came through as markup could neither run nor call anybody.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__

ASSETS = Path(__file__).with_name("assets")
SCRIPTS, STYLES = ("leaflet/leaflet.js", "report.js"), ("leaflet/leaflet.css", "report.css")
SHOWN_CLASSES, MOST_CLASSES = 12, 500
"""Rows of the class table that are there at once, and that are there at all."""


def render_page(**content: Any) -> str:
    """The whole HTML text. content : by the names that the template uses; all text in it is escaped."""
    scripts, styles = ([_asset(name) for name in names] for names in (SCRIPTS, STYLES))
    template = _environment().get_template("report.html")
    return template.render(
        content, scripts=list(map(Markup, scripts)), styles=list(map(Markup, styles)), policy=_policy(scripts, styles),
        licence=Markup(_asset("leaflet/LICENSE")), version=__version__, shown_classes=SHOWN_CLASSES,
        most_classes=MOST_CLASSES,
    )  # fmt: skip


def _policy(scripts: list[str], styles: list[str]) -> str:
    """What the page may load and run: its own scripts and styles by digest, and images that it holds."""
    by_digest = {"script-src": scripts, "style-src": styles}
    rules = [f"{rule} {' '.join(map(_source, texts))}" for rule, texts in by_digest.items()]
    return "; ".join(["default-src 'none'", "img-src data:", *rules, "base-uri 'none'", "form-action 'none'"])


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _asset(name: str) -> str:
    """A file of ours, without the pointer to a source map, which browsers' tools would ask for."""
    text = (ASSETS / name).read_text(encoding="utf-8")
    return re.sub(r"//# sourceMappingURL=\S+\s*$", "", text)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
