"""The change detectors that were compared with arcgis.learn, and the pairs they were compared on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from recordings.seeded import seeded_pair

RECORDED = Path(__file__).with_name("change_detectors.npz")
STEP = 5
"""Of the distances every fifth in each direction is kept, of the classes all."""
KINDS = ("noise", "changed", "smooth", "texture")


@dataclass(frozen=True)
class Detector:
    """A package as arcgis.learn writes it, with seeded weights."""

    name: str
    backbone: str
    attention: str
    tile: int
    """ImageHeight and ImageWidth, pixels."""
    shape_yx: tuple[int, int]
    """Of the rasters."""
    contrast: float
    """See `recordings.seeded`: brings the middle distance to about 1."""
    arguments: dict[str, str] = field(default_factory=dict)
    """Both runners are given these."""
    bands: int = 3
    """3 are 8-bit; 4 are 16-bit and multispectral."""
    kinds: tuple[str, ...] = KINDS
    """Of pairs."""

    @property
    def pixel_type(self) -> str:
        """numpy's name."""
        return "uint8" if self.bands == 3 else "uint16"

    def pair(self, kind: str) -> np.ndarray:
        """(date, band, y, x) as stored."""
        top = 256 if self.bands == 3 else 4000
        return seeded_pair(kind, 7, (self.bands, *self.shape_yx), self.pixel_type, top)


DETECTORS = (
    # The last stage's features are 8 x 8, so that its widest convolutions reach; defaults of padding and batch size.
    Detector("resnet18_pam", "resnet18", "PAM", 256, (200, 230), 18.0),
    Detector("resnet34_bam", "resnet34", "BAM", 128, (150, 170), 4.0, {"padding": "32", "batch_size": "4"}),
    Detector("resnet50_pam", "resnet50", "PAM", 160, (150, 170), 20.0, {"padding": "1", "batch_size": "1"}),
    # 25 x 25 features, of which the attention's parts leave one row and column over.
    Detector(
        "resnet18_pam_16bit", "resnet18", "PAM", 100, (130, 150), 18.0, {"padding": "10", "batch_size": "5"}, bands=4
    ),
    Detector("resnet101_bam", "resnet101", "BAM", 64, (60, 60), 12.0, kinds=("texture",)),
    Detector("resnet152_pam", "resnet152", "PAM", 64, (60, 60), 15.0, kinds=("texture",)),
)
