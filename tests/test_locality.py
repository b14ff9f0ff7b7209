"""Networks whose scores are the same in a larger tile, and networks whose scores are not."""

import pytest
import torch
from conftest import write_definition
from torch import nn

from geodl_dask.definition import load_definition
from geodl_dask.runners import RunnerSpec
from geodl_dask.runners.locality import probe_locality
from geodl_dask.runners.native import NativeRunner, random_batch
from geodl_dask.runners.pytorch import TorchNetwork
from geodl_dask.tiling import TileRun

TILE_PX, PADDING = 64, 16  # so that the stride is 32


def convolution(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=options.get("dilation", 1), **options)


class Branches(nn.Module):
    """A local network and, with a weight, something else."""

    def __init__(self, other, weight=1.0):
        super().__init__()
        self.local = nn.Sequential(convolution(6, 8), nn.ReLU(), convolution(8, 2))
        self.other, self.weight = other, weight

    def forward(self, stack):
        return self.local(stack / 255) + self.weight * self.other(stack / 255)


class UNet(nn.Module):
    """Stages of half the size each, joined on the way back."""

    def __init__(self, depth, upsample="deconvolution"):
        super().__init__()
        widths = [8, 12, 16, 20, 24][: depth + 1]
        self.down = nn.ModuleList(convolution(i, o) for i, o in zip([6, *widths], widths, strict=False))
        self.norm = nn.ModuleList(nn.BatchNorm2d(o) for o in widths)
        ups = {
            "deconvolution": lambda i, o: nn.ConvTranspose2d(i, o, 2, stride=2),
            "bilinear": lambda i, o: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(i, o, 1)),
            "corners": lambda i, o: nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(i, o, 1)
            ),
        }
        self.up = nn.ModuleList(ups[upsample](i, o) for i, o in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, stack):
        found = [stack / 255]
        for index, (convolve, norm) in enumerate(zip(self.down, self.norm, strict=True)):
            found.append(torch.relu(norm(convolve(nn.functional.max_pool2d(found[-1], 2) if index else found[-1]))))
        merged = found.pop()
        for up in self.up:
            merged = up(merged) + found.pop()
        return self.head(merged)


class WindowAttention(nn.Module):
    """Attention within windows of 8 pixels, which a tile of whole windows does not change."""

    def forward(self, stack):
        count, bands, height, width = stack.shape
        windows = stack.reshape(count, bands, height // 8, 8, width // 8, 8).permute(0, 2, 4, 3, 5, 1).flatten(3, 4)
        weights = torch.softmax(windows @ windows.transpose(-1, -2), dim=-1)
        mixed = (weights @ windows).unflatten(3, (8, 8)).permute(0, 5, 1, 3, 2, 4)
        return mixed.reshape(count, bands, height, width)[:, :2]


class Attention(nn.Module):
    """Every pixel of a coarse image looks at every other."""

    def forward(self, stack):
        coarse = nn.functional.avg_pool2d(stack, 4)
        tokens = coarse.flatten(2).transpose(1, 2)
        mixed = torch.softmax(tokens @ tokens.transpose(1, 2), dim=-1) @ tokens
        back = mixed.transpose(1, 2).reshape(coarse.shape)
        return nn.functional.interpolate(back, scale_factor=4)[:, :2]


class SqueezeAndExcitation(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Conv2d(6, 6, 1)

    def forward(self, stack):
        return (stack * torch.sigmoid(self.gate(stack.mean(dim=(2, 3), keepdim=True))))[:, :2]


class Coordinates(nn.Module):
    """Where in the tile a pixel lies."""

    def forward(self, stack):
        rows = torch.linspace(-1, 1, stack.shape[2])[:, None].expand(stack.shape[2:])
        return stack[:, :2] * rows


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, stack):
        return self.function(stack)


class NeverWins(nn.Module):
    """Wrongly aligned, and with a score so large that it drowns the others."""

    def forward(self, stack):
        pooled = _thirds(stack / 255)
        return torch.cat([pooled[:, :1], torch.full_like(pooled[:, :1], -1e9)], 1)


def _thirds(stack):
    """Pooled by three, which no stride here is a multiple of."""
    pooled = nn.functional.max_pool2d(nn.functional.pad(stack, (0, 2, 0, 2)), 3)
    return nn.functional.interpolate(pooled, scale_factor=3)[:, :2, : stack.shape[2], : stack.shape[3]]


LOCAL = {
    "three convolutions": lambda: nn.Sequential(convolution(6, 8), nn.ReLU(), convolution(8, 8), nn.Conv2d(8, 2, 1)),
    "U-Net of two stages": lambda: UNet(2),
    "U-Net that grows bilinearly": lambda: UNet(2, "bilinear"),
    "dilated convolutions": lambda: Branches(
        nn.Sequential(convolution(6, 8, dilation=7), nn.ReLU(), convolution(8, 2, dilation=8))
    ),
    "attention in windows": lambda: Branches(WindowAttention()),
    "as far as the padding": lambda: Branches(Function(lambda stack: stack[:, :2].roll(PADDING, 2))),
}
NOT_LOCAL = {
    "instance norm": lambda: nn.Sequential(convolution(6, 8), nn.InstanceNorm2d(8), nn.ReLU(), convolution(8, 2)),
    "squeeze and excitation": lambda: Branches(SqueezeAndExcitation(), 0.01),
    "global pooling": lambda: Branches(nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Conv2d(6, 2, 1)), 0.01),
    "pyramid pooling": lambda: Branches(
        nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Upsample(size=1), nn.Conv2d(6, 2, 1))
    ),
    "self-attention": lambda: Branches(Attention(), 0.01),
    "mean of the tile taken away": lambda: Branches(Function(lambda stack: (stack - stack.mean())[:, :2])),
    "wrong alignment": lambda: Branches(Function(_thirds)),
    "U-Net of four stages": lambda: UNet(4),
    "from the left alone": lambda: Branches(Function(lambda stack: stack[:, :2].roll(PADDING + 1, 3))),
    "from the right alone": lambda: Branches(Function(lambda stack: stack[:, :2].roll(-PADDING - 1, 3))),
    "by a thousandth": lambda: Branches(Coordinates(), 2e-3),
    "training's batch norm": lambda: Branches(
        Function(lambda s: nn.functional.batch_norm(s, None, None, training=True)[:, :2])
    ),
    "zeros take the tile's mean": lambda: Branches(
        Function(lambda s: torch.where(s == 0, s.mean(dim=(2, 3), keepdim=True), s)[:, :2])
    ),
    "beside a class that never wins": lambda: NeverWins(),
    "U-Net with aligned corners": lambda: UNet(2, "corners"),
    "coordinates": lambda: Branches(Coordinates()),
    "one pixel further than the padding": lambda: Branches(
        Function(lambda stack: stack[:, :2].roll(PADDING + 1, 2)), 1e-6
    ),
    "dark pixels far away": lambda: Branches(
        nn.Sequential(Function(lambda s: torch.relu(s[:, :2].roll(PADDING + 4, 3) - 1.5)), nn.MaxPool2d(3, 1, 1))
    ),
}


@pytest.fixture
def probe(tmp_path):
    """probe(network) -> why its tiles may not be joined, and the runner."""

    def probe_one(network, **keys):
        torch.manual_seed(0)
        network = network().eval()
        example = torch.rand(1, 6, TILE_PX, TILE_PX)
        torch.jit.trace(network, example, check_trace=False).save(tmp_path / "network.pt")
        size = {"ImageHeight": TILE_PX, "ImageWidth": TILE_PX, "ModelFile": "network.pt"}
        native = {"GeodlDask": {"output": "logits"}}
        path = write_definition(tmp_path / "model.emd", **{**size, **native, **keys})
        spec = RunnerSpec(load_definition(path), "native", 3, "uint8", (("padding", str(PADDING)),))
        runner = NativeRunner(spec, TorchNetwork(spec))
        images = random_batch(spec, TileRun(0, 0, 2, 2).merged(runner.tile), 1).images
        noise = tuple(pixels[0] for pixels in images)
        for pixels in noise:
            pixels[:, 10:30, 20:50] = 0
        return probe_locality(runner, [noise], 4)

    return probe_one


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.mark.parametrize("name", LOCAL)
def test_tiles_of_a_local_network_may_be_joined(name, probe):
    assert probe(LOCAL[name]).obstacle is None


@pytest.mark.parametrize("name", NOT_LOCAL)
def test_tiles_of_a_network_that_looks_further_or_at_the_whole_tile_may_not(name, probe):
    assert probe(NOT_LOCAL[name]).obstacle


@pytest.mark.parametrize(
    "answer",
    [
        lambda stack: nn.functional.interpolate(stack[:, ::, ::2, ::2], size=(TILE_PX, TILE_PX))[:, :2],
        lambda stack: stack[:, :2] if stack.shape[2] <= 150 else stack[:, :2] * 2,
        lambda stack: stack[:, :2].expand(-1, -1, stack.shape[3], -1),
    ],
    ids=["size that is baked in", "other for large tiles", "square alone"],
)
def test_sizes_for_which_a_network_does_something_else_are_tried(answer, probe, monkeypatch):
    monkeypatch.setattr(torch.jit, "trace", lambda network, *_, **__: _Kept(network))
    plain = TorchNetwork
    monkeypatch.setattr("test_locality.TorchNetwork", lambda spec: plain(spec, Function(answer)))
    assert probe(lambda: Function(answer)).obstacle


class _Kept:
    """A network that is not traced, for a trace forgets what it has not seen."""

    def __init__(self, network):
        self.network = network

    def save(self, path):
        path.write_bytes(b"")


def test_a_network_that_takes_its_own_size_alone_is_not_given_another(probe):
    def fixed():
        return Branches(Function(lambda stack: stack[:, :2] + torch.ones(TILE_PX, TILE_PX)))

    assert "could not be probed with larger tiles" in probe(fixed).obstacle


def test_classes_do_not_show_what_they_hang_on(probe):
    network = lambda: Function(lambda stack: stack[:, :2].argmax(1))  # noqa: E731
    assert "answers with classes" in probe(network, GeodlDask={"output": "classes"}).obstacle


def test_what_a_prediction_takes_is_measured(probe):
    """A network of 64 bands of float32 takes some hundreds of bytes a pixel, with a margin; not ten times that."""
    wide = nn.Sequential(convolution(6, 64), nn.ReLU(), convolution(64, 2))
    found = probe(lambda: wide, ImageHeight=512, ImageWidth=512)
    assert 4 * 64 < found.bytes_per_px < 4 * 64 * 8
