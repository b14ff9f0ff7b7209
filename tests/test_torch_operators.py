"""Networks as people build them keep to the list of operators; operators on it bear hostile arguments."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from test_torch_files import load, member, rewrite
from torch import nn
from torch.export import Dim
from torch.nn import functional

from geodl_dask.errors import ModelFileError
from geodl_dask.runners.torch_files import require_plain_network
from geodl_dask.runners.torch_operators import OPERATORS, is_plain

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*deprecated.*:UserWarning")
FUZZ = Path(__file__).parent / "torch_operator_fuzz.py"
CASES = int(os.environ.get("GEODL_FUZZ_CASES", "3"))
EXAMPLE = torch.rand(2, 6, 32, 32, generator=torch.Generator().manual_seed(1))


def block(inputs: int, outputs: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), activation)


class UNet(nn.Module):
    """Strided and transposed convolutions, max pooling, skips, dropout."""

    def __init__(self, mode: str = "transposed") -> None:
        super().__init__()
        self.one, self.two = block(6, 8, nn.ReLU(inplace=True)), block(8, 16, nn.LeakyReLU(0.1))
        self.three = nn.Sequential(block(16, 16, nn.SiLU()), nn.Dropout2d(0.2))
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2) if mode == "transposed" else nn.Conv2d(16, 8, 1)
        self.mode = mode
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        fine = self.one(stack)
        coarse = self.three(self.two(functional.max_pool2d(fine, 2)))
        if self.mode == "transposed":
            wide = self.up(coarse)
        elif self.mode == "nearest":
            wide = functional.interpolate(self.up(coarse), scale_factor=2.0, mode="nearest")
        else:
            wide = functional.interpolate(self.up(coarse), size=fine.shape[2:], mode=self.mode, align_corners=False)
        return self.last(torch.cat([fine, wide], dim=1))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm, self.also = nn.BatchNorm2d(outputs), nn.GroupNorm(2, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        wide = self.also(self.second(functional.relu(self.norm(self.first(pixels)))))
        return functional.mish(wide + self.shortcut(pixels))


class Siamese(nn.Module):
    """A shared residual encoder for both dates, squeeze-and-excitation, a pyramid of adaptive pools."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([Residual(3, 8, 1), Residual(8, 16, 2)])
        self.pools = nn.ModuleList([nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2)])
        self.squeeze, self.last = nn.Conv2d(16, 16, 1), nn.Conv2d(64, 8, 1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        for layer in self.encoder:
            pixels = layer(pixels)
        return pixels

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        before, after = torch.chunk(stack, 2, dim=1)
        change = torch.abs(self.encode(after) - self.encode(before))
        change = change * torch.sigmoid(self.squeeze(change.mean((2, 3), keepdim=True)))
        levels = [change]
        for pool in self.pools:
            levels.append(
                functional.interpolate(pool(change), size=change.shape[2:], mode="bilinear", align_corners=True)
            )
        return functional.pixel_shuffle(self.last(torch.cat(levels, 1)), 2)


class Transformer(nn.Module):
    """Patches, LayerNorm, nn.MultiheadAttention, GELU, an encoder layer, positions resized by bicubic."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(6, 16, 4, 4), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True)
        self.position, self.head = nn.Parameter(torch.rand(1, 16, 6, 6)), nn.Linear(16, 32)

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        grid = self.patches(stack)
        grid = grid + functional.interpolate(self.position, size=grid.shape[2:], mode="bicubic", align_corners=False)
        tokens = self.norm(grid.flatten(2).transpose(1, 2))
        tokens = self.layer(tokens + self.attention(tokens, tokens, tokens)[0])
        pixels = self.head(tokens).transpose(1, 2).reshape(stack.shape[0], 32, grid.shape[2], grid.shape[3])
        return functional.pixel_shuffle(pixels, 4)


class Windows(nn.Module):
    """Shifted windows as in Swin: roll, unfold into windows, SDPA with a bias looked up by index, einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv, self.last = nn.Conv2d(6, 8, 1), nn.Linear(8, 24), nn.Conv2d(8, 2, 1)
        self.table = nn.Parameter(torch.rand(49, 2))
        at = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None, :] + 3
        self.register_buffer("index", apart[0] * 7 + apart[1])

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        grid = torch.roll(self.enter(stack).permute(0, 2, 3, 1), shifts=(-2, -2), dims=(1, 2))
        tile, y, x, features = grid.shape
        windows = grid.view(tile, y // 4, 4, x // 4, 4, features).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, features)
        query, key, value = self.qkv(windows).view(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(16, 16, 2).permute(2, 0, 1).unsqueeze(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        scores = torch.einsum("whqd,whkd->whqk", query, key).softmax(-1).mean((1, 2, 3)).view(-1, 1, 1)
        windows = mixed.transpose(1, 2).reshape(-1, 16, features) + scores
        grid = (
            windows.view(tile, y // 4, x // 4, 4, 4, features).permute(0, 1, 3, 2, 4, 5).reshape(tile, y, x, features)
        )
        return self.last(torch.roll(grid, shifts=(2, 2), dims=(1, 2)).permute(0, 3, 1, 2).contiguous())


class Dilated(nn.Module):
    """Atrous pyramid, depthwise convolutions, Hardswish, instance norm, padding modes, grid sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=rate, dilation=rate, groups=6) for rate in (1, 2, 4)])
        self.norm, self.act, self.prelu = nn.InstanceNorm2d(18, affine=True), nn.Hardswish(), nn.PReLU(18)
        self.last = nn.Conv2d(18, 2, 3)

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        stack = stack + functional.avg_pool2d(stack, 3, 1, 1)
        wide = torch.cat([rate(stack) for rate in self.rates], 1)
        wide = self.prelu(self.act(self.norm(wide))).clamp(min=-4.0)
        flow = functional.affine_grid(torch.eye(2, 3).expand(stack.shape[0], 2, 3), stack.shape, align_corners=False)
        wide = functional.grid_sample(wide, flow.to(wide.dtype), mode="bilinear", align_corners=False)
        answer = self.last(functional.pad(wide, [1, 1, 1, 1], mode="reflect"))
        scores, order = torch.sort(torch.softmax(answer, 1), dim=1)
        best = scores.gather(1, order) + scores.topk(1, dim=1)[0] - torch.logsumexp(answer, 1, keepdim=True)
        return torch.where(best > 0, best, torch.zeros_like(best)) + answer.argmax(1, keepdim=True)


NETWORKS = {
    "U-Net, transposed": UNet,
    "U-Net, nearest": lambda: UNet("nearest"),
    "U-Net, bilinear": lambda: UNet("bilinear"),
    "U-Net, bicubic": lambda: UNet("bicubic"),
    "siamese ResNet": Siamese,
    "transformer": Transformer,
    "windows": Windows,
    "dilated": Dilated,
}


@pytest.mark.parametrize("how", ["trace", "trace without gradients", "script", "export", "export, decomposed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_as_people_build_them_are_loaded(name, how, tmp_path):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    path = tmp_path / ("network.pt2" if how.startswith("export") else "network.pt")
    with warnings.catch_warnings(), torch.set_grad_enabled(how != "trace without gradients"):
        warnings.simplefilter("ignore")  # exporters warn of their own deprecations
        if how.startswith("export"):
            program = torch.export.export(network, (EXAMPLE,), dynamic_shapes=({0: Dim("tile", min=1)},))
            torch.export.save(program.run_decompositions() if "decomposed" in how else program, path)
        elif how == "script":
            torch.jit.script(network).save(str(path))
        else:
            torch.jit.trace(network, EXAMPLE, check_trace=False).save(str(path))
    answer = load(path)(EXAMPLE)
    with torch.no_grad():
        torch.testing.assert_close(answer, network(EXAMPLE), atol=1e-4, rtol=1e-4)


class Backward(nn.Module):
    """Writes where the index says: torch alone crashes on it."""

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        index = (stack[:, :2].abs().max() > 0).long() * (1 << 40) + torch.zeros([2, 2, 32, 32], dtype=torch.long)
        ones = stack[:, :2].contiguous()
        return torch.ops.aten.max_pool2d_with_indices_backward(ones, ones, [1, 1], [1, 1], [0, 0], [1, 1], False, index)


@pytest.mark.attack(
    "operators of a torch file", "that write files, reach other libraries, or reach beyond a tensor, in any spelling"
)
@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_an_operator_that_writes_where_it_is_told_is_refused(suffix, tmp_path):
    path = tmp_path / f"evil.{suffix}"
    harmless = torch.zeros_like(EXAMPLE)
    if suffix == "pt":
        torch.jit.trace(Backward(), harmless, check_trace=False).save(str(path))
    else:
        torch.export.save(torch.export.export(Backward(), (harmless,)), path)
    with pytest.raises(ModelFileError, match=r"operator.*max_pool2d_with_indices_backward.*is not on the list"):
        require_plain_network(str(path))


@pytest.mark.parametrize(
    "name",
    ["as_strided", "_reshape_alias", "set_", "resize_", "empty", "empty_strided", "new_empty", "from_file", "save",
     "embedding_bag", "repeat_interleave", "segment_reduce", "_index_put_impl_", "_unsafe_masked_index_put_accumulate",
     "adaptive_max_pool2d_backward", "fractional_max_pool2d", "sparse_coo_tensor", "fft_rfft2", "_pad_packed_sequence",
     "quantize_per_tensor", "lstm", "relu__", "_"],
)  # fmt: skip
def test_operators_that_trust_their_arguments_are_not_listed(name):
    assert not is_plain(name)


def test_no_backward_operator_is_listed():
    assert not [name for name in OPERATORS if "backward" in name or "out" in name.split("_")]


@pytest.mark.parametrize("names", [["index"], sorted(OPERATORS)], ids=["indices", "all"])
def test_listed_operators_bear_hostile_arguments(names):
    """No crash but that of a division by zero of whole numbers, which ends the process and touches no memory."""
    todo, taken = list(names), 0
    while todo:
        done = subprocess.run(
            [sys.executable, str(FUZZ), str(CASES), *todo], capture_output=True, text=True, timeout=500, check=False
        )
        *_, last = done.stdout.splitlines()
        taken += int(last.split()[-1])
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGFPE, f"{last} ended with {done.returncode}: {done.stderr[-500:]}"
        todo = todo[todo.index(last.split()[0]) + 1 :]
    assert taken > len(names) * CASES / 20, "torch took hardly any of the arguments, so nothing was tested"


@pytest.mark.attack(
    "operators of a torch file", "that write files, reach other libraries, or reach beyond a tensor, in any spelling"
)
@pytest.mark.parametrize("key", ["dtype", "memory_format"])
def test_a_number_in_place_of_a_type_is_refused(key, tmp_path):
    class Converts(nn.Module):
        def forward(self, stack: torch.Tensor) -> torch.Tensor:
            return torch.ops.aten._to_copy(stack, dtype=torch.float64, memory_format=torch.contiguous_format)

    torch.export.save(torch.export.export(Converts(), (EXAMPLE,)), tmp_path / "plain.pt2")
    require_plain_network(str(tmp_path / "plain.pt2"))
    model = json.loads(member(tmp_path / "plain.pt2", "models/model.json"))
    (given,) = (
        each for node in model["graph_module"]["graph"]["nodes"] for each in node["inputs"] if each["name"] == key
    )
    given["arg"] = {"as_int": 12345}
    changes = {"models/model.json": json.dumps(model).encode()}
    path = rewrite(tmp_path / "plain.pt2", tmp_path / "evil.pt2", **changes)
    with pytest.raises(ModelFileError, match=f"{key} is .*12345.*no type of torch's"):
        require_plain_network(str(path))
