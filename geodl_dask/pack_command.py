"""The command ``geodl-dask pack-model``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .terminal import manners, out

if TYPE_CHECKING:
    from .packing import Packed


class _Numbers(click.ParamType[Any]):
    """One number or several, with commas."""

    name = "NUMBER,..."

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            numbers = [self._kind(each) for each in value.split(",")] if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not a number, or several with commas between them", param, ctx)
        return numbers[0] if isinstance(numbers, list) and len(numbers) == 1 else numbers


@click.command("pack-model", short_help="Put a network into a deep learning package (.dlpk).")
@click.argument("model_file", metavar="MODEL_FILE")
@click.argument("output", metavar="OUT.dlpk")
@click.option(
    "--definition",
    metavar="FILE",
    help="JSON or YAML with keys of a model definition (.emd), or the class information that model-to-ecd takes; what "
    "is said by options wins.",
)
@click.option("--classes", metavar="TEXT", help='Such as "0 No change;1 Change #c81e1e".')
@click.option(
    "--bands",
    type=_Numbers(int),
    help="How many of each raster; or, with commas, which of all rasters stacked, from 0 (ExtractBands).",
)
@click.option("--rasters", type=click.IntRange(1, 2), default=2, show_default=True, help="Two dates, or one raster.")
@click.option("--tile-size", type=click.IntRange(min=1), metavar="PX", help="Side of a tile.")
@click.option("--padding", type=click.IntRange(min=0), metavar="PX", help="Cut from each side of a tile's prediction.")
@click.option(
    "--model-padding", type=click.IntRange(min=0), metavar="PX", help="What the answer is smaller by on each side."
)
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Tiles per call.")
@click.option(
    "--input", type=click.Choice(["stack", "pair"]), help="One tensor of both dates (stack, default), or one of each."
)
@click.option(
    "--output",
    "meaning",
    type=click.Choice(["logits", "probabilities", "distance", "classes"]),
    help="What the network answers with; else it is read off its answer to noise.",
)
@click.option("--threshold", type=float, metavar="X", help="Of one score per pixel; above it there is a change.")
@click.option("--mean", type=_Numbers(float), help="Subtracted from pixels: one number, or one per band of one date.")
@click.option("--std", type=_Numbers(float), help="What the difference is divided by.")
@click.option("--min", "minimum", type=_Numbers(float), help="In the place of --mean and --std: what becomes 0.")
@click.option("--max", "maximum", type=_Numbers(float), help="What becomes 1.")
@click.option("--name", metavar="TEXT", help="ModelName; the name of OUT.dlpk unless said.")
@click.option("--description", metavar="TEXT", help="What the model is for.")
@click.option("--pixel-type", metavar="TYPE", default="uint8", show_default=True, help="Of the rasters, for the noise.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.dlpk once the new one is whole.")
@click.option("-q", "--quiet", is_flag=True, help="No summary.")
def pack_model_command(model_file: str, output: str, meaning: Any, quiet: bool, **options: Any) -> None:
    """Put the network in MODEL_FILE (.pt2, .pt or .onnx) into a deep learning package, and try it on noise."""
    with manners(0):
        from .packing import pack_model

        packed = pack_model(model_file, output, output=meaning, **options)
        if not quiet:
            _print(packed)


def _print(packed: Packed) -> None:
    """What was written, and what it answered."""
    given, answered = (" x ".join(map(str, shape)) for shape in (packed.input_shape, packed.answer_shape))
    low, high = packed.answer_range
    taken = "as was said" if packed.was_said else "read off the answer; if that is wrong, say --output"
    out.print(f"{packed.path}: {packed.size_bytes:,} bytes, digest {packed.digest}")
    out.print(f"Noise of {given} (tile, band, y, x) was answered with {answered}, {low:.4g} to {high:.4g}.")
    out.print(f"That is {packed.output}, {taken}.")
    seen = [f"{each.value} {each.name} {share:.1%}" for each, share in packed.classes_seen.items()]
    out.print(f"Classes of the noise: {', '.join(seen)}")
