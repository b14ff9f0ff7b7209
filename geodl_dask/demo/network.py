"""The demo's change network: small, local and stride aligned.

    from ──┐ 2x2 pixels                           2x2 pixels
           ├──────────► conv, conv ────────► conv ──────────► logits      half resolution
    to   ──┘                 │                ▲
                             └─► 4 convs ─────┘                           quarter resolution

Nothing in it looks further than ``RADIUS_PX``: no pooling over the image, no instance or group
norm, no attention. A tile padded by that much therefore gives what the whole image gives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

RADIUS_PX = 25
"""Farthest input pixel, along a row or column, that can change an output pixel."""


def _convolve(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    padding = size // 2 if stride == 1 else 0
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class ChangeNetwork(nn.Module):
    """Scores each class of change from two normalised RGB images.

    Parameters
    ----------
    classes : int
        Number of classes, "no change" included.
    fine, coarse : int
        Features at half and at quarter resolution.
    depth : int
        Convolutions at quarter resolution; each adds 4 pixels to the radius.
    """

    def __init__(self, classes: int, fine: int = 32, coarse: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.enter = nn.Sequential(_convolve(24, fine), _convolve(fine, fine))
        self.down = _convolve(fine, coarse, size=2, stride=2)
        self.context = nn.ModuleList(_convolve(coarse, coarse) for _ in range(depth))
        self.up = nn.Conv2d(coarse, 4 * fine, 1)
        self.leave = _convolve(2 * fine, fine)
        self.decide = nn.Conv2d(fine, 4 * classes, 1)

    def forward(self, from_pixels: Tensor, to_pixels: Tensor) -> Tensor:
        """Give logits (n, class, y, x) of two images (n, 3, y, x), float32 and normalised."""
        pair = pixel_unshuffle(torch.cat([from_pixels, to_pixels], 1), 2)
        # Convolutions on CPUs take half the time with bands innermost, whatever the caller has.
        fine = self.enter(pair.contiguous(memory_format=torch.channels_last))
        coarse = self.down(fine)
        for layer in self.context:
            coarse = coarse + layer(coarse)
        fine = self.leave(torch.cat([fine, pixel_shuffle(self.up(coarse), 2)], 1))
        return pixel_shuffle(self.decide(fine), 2)
