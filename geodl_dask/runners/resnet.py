"""Residual networks that give the features of their four stages (He et al. 2016, "Deep Residual Learning").

Written from the paper and from the names and shapes of a state dict. Of torch's two customs, the one that
halves the resolution in the 3 x 3 convolution of a bottleneck.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

STAGE_BLOCKS = {
    "resnet18": (2, 2, 2),
    "resnet34": (3, 4, 6),
    "resnet50": (3, 4, 6),
    "resnet101": (3, 4, 23),
    "resnet152": (3, 4, 36),
}
"""Blocks of the first three stages, by the network's name, as in state dicts of arcgis.learn (the paper's resnet152
has 8 in the second). What the last stage has does not depend on the name: see `stanet`."""
_WIDTHS = (64, 128, 256, 512)
_PLAIN = ("resnet18", "resnet34")


class ResidualBlock(nn.Module):
    """Two or three convolutions whose result is added to their input.

    ::

        plain       x -> 3x3 -> 3x3 -> + x
        bottleneck  x -> 1x1 -> 3x3 -> 1x1 to 4 times the width -> + x
    """

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, is_plain: bool) -> None:
        super().__init__()
        outputs = width if is_plain else 4 * width
        self._is_plain = is_plain
        if is_plain:
            self.conv1, self.bn1 = _convolution(inputs, width, 3, stride, dilation), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = _convolution(width, width, 3), nn.BatchNorm2d(width)
        else:
            self.conv1, self.bn1 = _convolution(inputs, width, 1), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = _convolution(width, width, 3, stride, dilation), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = _convolution(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """(tile, inputs, y, x) to (tile, outputs, y / stride, x / stride)."""
        change = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(features)))))
        if not self._is_plain:
            change = self.bn3(self.conv3(functional.relu(change)))
        return functional.relu(change + self.downsample(features))


class ResNet(nn.Module):
    """The convolutions of a residual network. Raises KeyError for a name that is not in ``STAGE_BLOCKS``.

    last_dilations : one block of the last stage for each, with the distance of its 3 x 3 convolution's taps.
    """

    def __init__(self, name: str, bands: int, last_dilations: tuple[int, ...]) -> None:
        super().__init__()
        expansion = 1 if name in _PLAIN else 4
        self.widths = tuple(expansion * width for width in _WIDTHS)
        """Channels of what each stage gives."""
        self.conv1, self.bn1 = _convolution(bands, 64, 7, 2), nn.BatchNorm2d(64)
        dilations = (*((1,) * count for count in STAGE_BLOCKS[name]), last_dilations)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(inputs, width, 1 if width == 64 else 2, each, name in _PLAIN)
            for inputs, width, each in zip((64, *self.widths), _WIDTHS, dilations, strict=False)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Four (tile, width, y, x), at a quarter of the image's resolution, an eighth, a sixteenth and so on."""
        features = functional.max_pool2d(functional.relu(self.bn1(self.conv1(image))), 3, 2, 1)
        stages = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
            stages.append(features)
        return stages


def _stage(inputs: int, width: int, stride: int, dilations: tuple[int, ...], is_plain: bool) -> nn.Sequential:
    outputs = width if is_plain else 4 * width
    first, *others = dilations
    blocks = [ResidualBlock(inputs, width, stride, first, is_plain)]
    return nn.Sequential(*blocks, *(ResidualBlock(outputs, width, 1, each, is_plain) for each in others))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, dilation * (size // 2), dilation, bias=False)
