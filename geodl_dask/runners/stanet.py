"""STANet, the spatial-temporal attention network for change detection: two images in, their distance per pixel out.

Chen and Shi, "A Spatial-Temporal Attention-Based Method and a New Dataset for Remote Sensing Image Change Detection",
Remote Sensing 12(10):1662, 2020. Written from the paper, from the names and shapes of state dicts that arcgis.learn
2.4.4 wrote, and from what that answers; tests/recordings says how it was compared.

::

    from --- backbone --- fusion --+              +--- features --+
                                   +-- attention -+               +-- distance -- enlarged to the tile
    to   --- backbone --- fusion --+              +--- features --+

Features lie at a quarter of the tile's resolution. The attention looks over both dates and the whole tile at once:
the answer for a pixel depends on the tile it lies in, so that tiles of another size give another answer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .resnet import STAGE_BLOCKS, ResNet

BACKBONES = tuple(STAGE_BLOCKS)
ATTENTIONS = ("PAM", "BAM")
PYRAMID = (1, 2, 4, 8)
"""Parts along each side of the features within which the stages of PAM look, after the paper's figure 4."""
LAST_DILATIONS = (1, 2, 4)
"""Of the backbone's last stage, whatever the backbone: DeepLab's multi-grid (Chen et al. 2017, arXiv 1706.05587)."""
_REDUCED, _FUSED, _FEATURES, _KEYS = 96, 256, 64, 8
_NOT_ZERO = 1e-6
"""Added to each difference of features, as torch's pairwise_distance does."""


def build_change_detector(backbone: str, attention: str, bands: int) -> nn.Module:
    """The network, in eval mode: (tile, band, y, x) of each date, normalised, to distances (tile, 1, y, x).

    backbone : one of ``BACKBONES``. attention : one of ``ATTENTIONS``. bands : of each date.
    """
    return ChangeDetector(backbone, attention, bands).eval()


def takes_tile(attention: str, size: int) -> bool:
    """Whether the attention takes tiles of ``size`` pixels.

    PAM's parts have to fill the features but for a rest that is smaller than a part; that rest is cut off.
    """
    side = -(-size // 4)
    return attention == "BAM" or all(side >= parts and side // (side // parts) == parts for parts in PYRAMID)


class ChangeDetector(nn.Module):
    """The whole network. Its parts have other names than in a state dict of arcgis.learn: see `state_dict`."""

    def __init__(self, backbone: str, attention: str, bands: int) -> None:
        super().__init__()
        self.backbone = ResNet(backbone, bands, LAST_DILATIONS)
        self.fusion = Fusion(self.backbone.widths)
        self.attention: nn.Module = PyramidAttention() if attention == "PAM" else BasicAttention()

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Two (tile, band, y, x) to (tile, 1, y, x), 0 and up."""
        features = self.fusion(self.backbone(torch.cat([before, after])))
        # The dates lie side by side, so that a position of either may look at any of both.
        both = self.attention(torch.cat(features.chunk(2), 3))
        one, other = both.chunk(2, 3)
        distance = torch.linalg.vector_norm(one - other + _NOT_ZERO, dim=1, keepdim=True)
        return _resize(distance, before.shape[-2:])


class Fusion(nn.Module):
    """Features of the backbone's four stages, brought to one size and mixed."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.dr2, self.dr3, self.dr4, self.dr5 = (_Reduction(width) for width in widths)
        self.last_conv = nn.Sequential(
            nn.Conv2d(4 * _REDUCED, _FUSED, 3, padding=1, bias=False), nn.BatchNorm2d(_FUSED), nn.ReLU(), nn.Dropout(),
            nn.Conv2d(_FUSED, _FEATURES, 1, bias=False), nn.BatchNorm2d(_FEATURES), nn.ReLU(),
        )  # fmt: skip

    def forward(self, stages: list[Tensor]) -> Tensor:
        """The backbone's stages to (tile, feature, y, x) of the first one's size."""
        first, *others = (reduce(each) for reduce, each in zip(self._reductions, stages, strict=True))
        *middle, last = (_resize(each, first.shape[-2:]) for each in others)
        fused: Tensor = self.last_conv(torch.cat([last, first, *middle], 1))
        return fused

    @property
    def _reductions(self) -> tuple[nn.Module, ...]:
        return self.dr2, self.dr3, self.dr4, self.dr5


class _Reduction(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, _REDUCED, 1, bias=False), nn.BatchNorm2d(_REDUCED)

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv1(features)))


class BasicAttention(nn.Module):
    """BAM: every position looks at every other one of both dates, and adds what it sees (the paper's figure 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.query_conv, self.key_conv = nn.Conv2d(_FEATURES, _KEYS, 1), nn.Conv2d(_FEATURES, _KEYS, 1)
        self.value_conv = nn.Conv2d(_FEATURES, _FEATURES, 1)

    def forward(self, both: Tensor) -> Tensor:
        """(tile, feature, y, 2 x) to the same shape."""
        query, key, value = (conv(both).flatten(2) for conv in (self.query_conv, self.key_conv, self.value_conv))
        return both + _look(query, key, value).view_as(both)


class PyramidAttention(nn.Module):
    """PAM: four attentions, each within parts of another size, mixed (the paper's figure 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_PartAttention(parts) for parts in PYRAMID)
        self.conv_bn = nn.Sequential(nn.Conv2d(len(PYRAMID) * _FEATURES, _FEATURES, 1, bias=False))

    def forward(self, both: Tensor) -> Tensor:
        """(tile, feature, y, 2 x) to the same shape."""
        seen = [_resize(stage(both), both.shape[-2:]) for stage in self.stages]
        mixed: Tensor = self.conv_bn(torch.cat(seen, 1))
        return mixed


class _PartAttention(nn.Module):
    """Every position looks at the part of both dates that it lies in; rows and columns left over are cut off."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self._parts = parts
        self.f_key, self.f_query = _keys(), _keys()
        self.f_value = nn.Conv2d(_FEATURES, _FEATURES, 1)

    def forward(self, both: Tensor) -> Tensor:
        query, key, value = (self._cut(each(both)) for each in (self.f_query, self.f_key, self.f_value))
        return self._join(_look(query, key, value), both)

    def _cut(self, both: Tensor) -> Tensor:
        """(tile, c, y, 2 x) to (tile part, c, position)."""
        size_yx = [side // self._parts for side in (both.shape[2], both.shape[3] // 2)]
        dates = both.unflatten(3, (2, -1))[:, :, : size_yx[0] * self._parts, :, : size_yx[1] * self._parts]
        rows = dates.unflatten(4, (self._parts, -1)).unflatten(2, (self._parts, -1))
        # From (tile, c, part row, y, date, part column, x).
        return rows.permute(0, 2, 5, 1, 4, 3, 6).flatten(4).flatten(0, 2)

    def _join(self, seen: Tensor, both: Tensor) -> Tensor:
        """(tile part, c, position) back to (tile, c, y, 2 x), less what was left over."""
        parts, (height, width) = self._parts, (both.shape[2] // self._parts, both.shape[3] // 2 // self._parts)
        apart = seen.unflatten(2, (2, height, width)).unflatten(0, (-1, parts, parts))
        # From (tile, part row, part column, c, date, y, x).
        return apart.permute(0, 3, 1, 5, 4, 2, 6).flatten(4).flatten(2, 3)


def _keys() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(_FEATURES, _KEYS, 1), nn.BatchNorm2d(_KEYS))


def _look(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention over (..., c, position): for each position, what it sees of the values."""
    scale, missing = query.shape[1] ** -0.5, value.shape[1] - query.shape[1]
    # torch's fused kernels, three times as fast and without a matrix of all pairs, want one length and one layout.
    ready = (functional.pad(each.transpose(1, 2), (0, missing)) for each in (query, key))
    query, key, value = (each.contiguous().unsqueeze(1) for each in (*ready, value.transpose(1, 2)))
    return functional.scaled_dot_product_attention(query, key, value, scale=scale).squeeze(1).transpose(1, 2)


def _resize(features: Tensor, shape_yx: torch.Size) -> Tensor:
    """Bilinear, corner pixels on corner pixels."""
    if features.shape[-2:] == shape_yx:
        return features
    return functional.interpolate(features, shape_yx, mode="bilinear", align_corners=True)
