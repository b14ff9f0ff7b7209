"""What a result is, in a few lines and as HTML: its classes with their colours, its grid, what it was made of."""

from __future__ import annotations

import html
from dataclasses import dataclass

from .classes import ClassTable, ModelClass
from .rasters.grids import describe_grid
from .results import ResultLike, grid_of_result, opened

_MADE_OF = ("from_raster", "to_raster", "raster", "model")
_SWATCH = "display:inline-block;width:1em;height:1em;border:1px solid #0005;vertical-align:-.15em;background:#"


@dataclass(frozen=True)
class ChangeDescription:
    """A result in words; notebooks show it with the colours."""

    title: str
    """Name and type."""
    facts: tuple[tuple[str, str], ...]
    """What is said of it, by name."""
    classes: tuple[ModelClass, ...]
    """Its class table."""

    def __repr__(self) -> str:
        lines = [self.title, *(f"  {name}: {text}" for name, text in self.facts)]
        return "\n".join([*lines, *(f"  {each.value:>5}  {_hex(each)}  {each.name}" for each in self.classes)])

    def _repr_html_(self) -> str:
        facts = "".join(f"<div>{html.escape(name)}: {html.escape(text)}</div>" for name, text in self.facts)
        rows = "".join(
            f'<tr><td><span style="{_SWATCH}{_hex(each)[1:]}"></span></td><td>{each.value}</td>'
            f'<td style="text-align:left">{html.escape(each.name)}</td></tr>'
            for each in self.classes
        )
        return f"<div><strong>{html.escape(self.title)}</strong>{facts}<table>{rows}</table></div>"


def describe_change(change: ResultLike) -> ChangeDescription:
    """What a result is: its class table with colours, its grid, nodata, and what it was made of. Computes nothing.

    change : path of a result, or a DataArray or Dataset as of `detect_change` or `open_change`, also cut or masked.
    """
    classes, confidence = opened(change)
    table, attrs = ClassTable.from_attrs(classes.attrs), classes.attrs
    facts = [("grid", describe_grid(grid_of_result(classes))), ("nodata", str(attrs.get("_FillValue", "none")))]
    if confidence is not None:
        facts.append(("confidence", f"{confidence.attrs.get('long_name', 'yes')}, {confidence.dtype}"))
    facts += [(name.replace("_", " "), str(attrs[name])) for name in _MADE_OF if attrs.get(name)]
    return ChangeDescription(f"{classes.name} ({classes.dtype})", tuple(facts), table.classes if table else ())


def _hex(each: ModelClass) -> str:
    return "#{:02x}{:02x}{:02x}".format(*each.color)
