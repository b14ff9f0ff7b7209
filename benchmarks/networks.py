"""The two networks of the speed benchmarks, and the model definitions that carry them.

Both take a pair of three bands and give two scores per pixel. `Cheap` computes about a thousand operations per pixel,
so that all else shows; `Heavy` is a siamese U-Net of a million parameters. Neither looks further than 63 pixels, so
that a padding of 64 hides every edge of a tile.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

TILE_PX = 256
MEAN, STD = (120.0, 115.0, 105.0), (55.0, 52.0, 50.0)
CLASS_VALUES = (0, 255)


class Cheap(nn.Module):
    """Three convolutions over the stacked pair."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)
        )

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Two (tile, 3, y, x) -> (tile, 2, y, x)."""
        scores: torch.Tensor = self.layers(torch.cat([before, after], 1))
        return scores


class Heavy(nn.Module):
    """Siamese U-Net of five stages, with one 3 x 3 convolution in each."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128, 320)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_convolution(i, o) for i, o in zip((3, *widths), widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        narrower = widths[-2::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in zip(widths[:0:-1], narrower, strict=True)
        )
        self.join = nn.ModuleList(_convolution(2 * o, o) for o in narrower)
        self.head = nn.Conv2d(widths[0], 2, 1)

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The features of each stage."""
        features = [self.down[0](image)]
        for stage in self.down[1:]:
            features.append(stage(self.pool(features[-1])))
        return features

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Two (tile, 3, y, x) -> (tile, 2, y, x)."""
        *skips, merged = [
            torch.abs(one - other) for one, other in zip(self.encode(before), self.encode(after), strict=True)
        ]
        for up, join, skip in zip(self.up, self.join, reversed(skips), strict=True):
            merged = join(torch.cat([up(merged), skip], 1))
        scores: torch.Tensor = self.head(merged)
        return scores


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def make_network(name: str) -> nn.Module:
    """``"cheap"`` or ``"heavy"``, the same weights each time, with classes that are about as frequent on noise."""
    torch.manual_seed(0)
    network: nn.Module = {"cheap": Cheap, "heavy": Heavy}[name]()
    noise = [torch.randn(2, 3, TILE_PX, TILE_PX) for _ in range(2)]
    with torch.no_grad():
        network.train()
        for _ in range(30):
            network(*noise)
        network.eval()
        head = network.layers[-1] if name == "cheap" else network.head
        head.bias -= network(*noise).median(dim=0).values.median(dim=-1).values.median(dim=-1).values
    return network


def write_model(name: str, padding: int, folder: Path) -> Path:
    """A model definition (.emd) with the network as TorchScript beside it. Returns the definition's path."""
    network, example = make_network(name), [torch.randn(1, 3, TILE_PX, TILE_PX)] * 2
    torch.jit.trace(network, example).save(folder / f"{name}.pt")
    definition = {
        "Framework": "PyTorch", "ModelType": "ImageClassification", "ModelFile": f"{name}.pt",
        "ImageHeight": TILE_PX, "ImageWidth": TILE_PX, "ExtractBands": [0, 1, 2, 3, 4, 5],
        "Padding": padding, "BatchSize": 4,
        "Classes": [
            {"Value": CLASS_VALUES[0], "Name": "No change", "Color": [220, 220, 220]},
            {"Value": CLASS_VALUES[1], "Name": "Change", "Color": [220, 40, 40]},
        ],
        "GeodlDask": {"input": "pair", "output": "logits", "mean": MEAN, "std": STD},
    }  # fmt: skip
    path = folder / f"{name}.emd"
    path.write_text(json.dumps(definition), encoding="utf-8")
    return path
