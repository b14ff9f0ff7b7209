"""Files that torch would run code of are refused before torch reads them; networks as people export them are not.

Each attack is shown to work on torch itself first, by a witness: a folder or file that the payload makes.
"""

import copy
import io
import json
import logging
import os
import pickle
import random
import re
import warnings
import zipfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ToyNetwork
from torch import nn
from torch.export import Dim

from geodl_dask.errors import ModelFileError
from geodl_dask.runners.pytorch import TorchNetwork
from geodl_dask.runners.torch_files import require_plain_network
from geodl_dask.runners.torch_operators import is_plain

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*deprecated.*:UserWarning")
DEMO = Path(__file__).parent.parent / "geodl_dask" / "demo" / "model" / "model.pt2"
EXAMPLE = torch.zeros(2, 6, 16, 16)
SIZES = {0: Dim("tile", min=1), 2: Dim("y", min=8, max=512), 3: Dim("x", min=8)}
EIGHTHS = {0: Dim("tile", min=1, max=32), 2: 8 * Dim("y", min=1, max=64), 3: 8 * Dim("x", min=1, max=64)}


class Bomb:
    """Makes the witness when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = str(witness)

    def __reduce__(self):
        return os.mkdir, (self.witness,)


def call_of(witness: Path) -> str:
    return f"__import__('os').mkdir('{witness}')"


class Classic(nn.Module):
    """Convolution, batch norm, ReLU; buffers and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        self.register_buffer("mean", torch.full((1, 6, 1, 1), 0.5))
        self.scale = torch.tensor([1.0, 2.0])

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return self.layers((stack - self.mean) * self.scale.sum()) + torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)


class UNet(nn.Module):
    """Pooling, GroupNorm, upsampling, cat, and a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(6, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.middle = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(4, 8), nn.GELU()
        )
        self.last = nn.Conv2d(24, 2, 1)

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        fine = torch.relu(self.down(stack))
        with torch.no_grad():
            fine = fine * 2
        coarse = self.middle(nn.functional.max_pool2d(fine, 2))
        smooth = nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.last(torch.cat([fine, smooth, self.up(coarse)], 1))


class Attention(nn.Module):
    """A transformer block on patches of four pixels, with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(6, 16, 4, 4), nn.Linear(16, 32)
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.position = nn.Parameter(torch.linspace(-1, 1, 256).reshape(1, 16, 4, 4))

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        grid = self.patches(stack)
        tile, _, y, x = grid.shape
        grid = grid + nn.functional.interpolate(self.position, size=(y, x), mode="bicubic")
        tokens = grid.flatten(2).transpose(1, 2)
        known = self.norm(tokens)
        tokens = self.head(tokens + self.attention(known, known, known, need_weights=False)[0])
        return tokens.reshape(tile, y, x, 2, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(tile, 2, 4 * y, 4 * x)


class Odd(nn.Module):
    """Operators of fewer networks: softmax, einsum, squeeze-and-excitation, dilation, roll, adaptive pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2))
        self.pool, self.squeeze = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)
        self.stages = nn.ModuleDict({"stage-1": nn.InstanceNorm2d(8, affine=True), "ops": nn.PReLU()})

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        wide = self.stages["ops"](self.stages["stage-1"](self.conv(stack)))
        wide = wide * torch.sigmoid(self.squeeze(self.pool(wide))).clamp(0.1, 0.9)
        wide = torch.where(wide > 0, wide, wide.roll((1, 2), (2, 3)).abs().sqrt())
        pair = torch.einsum("bcyx,cd->bdyx", wide, torch.eye(8)[:, :2])
        return pair.softmax(1).log_softmax(1) + nn.functional.pad(pair, (1, 1, 1, 1))[:, :, 1:-1, 1:-1].mean()


def export(network: nn.Module, path: Path, *, shapes=None, decompose=False) -> Path:
    with warnings.catch_warnings():  # exporters warn of their own deprecations
        warnings.simplefilter("ignore")
        program = torch.export.export(network.eval(), (EXAMPLE,), dynamic_shapes=(shapes,) if shapes else None)
        torch.export.save(program.run_decompositions() if decompose else program, path)
    return path


def script(network: nn.Module, path: Path, *, trace=False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = (
            torch.jit.trace(network.eval(), EXAMPLE, check_trace=False) if trace else torch.jit.script(network.eval())
        )
        made.save(str(path))
    return path


def load(path: Path) -> TorchNetwork:
    return TorchNetwork(
        SimpleNamespace(
            definition=SimpleNamespace(model_file=str(path), source="model.emd"),
            device="cpu",
            precision="float32",
            compiled=False,
        )
    )


def load_raw_and_run(path: Path) -> None:
    """What torch does without us. Attacks may end in any error, after their work is done."""
    try:
        network = torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path)
        network(EXAMPLE)
    except Exception:
        logging.getLogger(__name__).debug("the attack ended in an error", exc_info=True)


def rewrite(source: Path, target: Path, **changes: bytes | None) -> Path:
    """Copy a torch file with members replaced, added or (None) left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        members = {name.removeprefix(root + "/"): old.read(name) for name in old.namelist()}
        for name, content in {**members, **changes}.items():
            if content is not None:
                new.writestr(f"net/{name}", content)
    return target


def member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(each for each in archive.namelist() if each.split("/", 1)[1] == name))


def pickled(thing: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plain")
    return {
        "pt": script(Classic(), folder / "plain.pt"),
        "pt2": export(Classic(), folder / "plain.pt2", shapes=EIGHTHS),
        "toy": export(ToyNetwork(), folder / "toy.pt2", shapes={0: Dim("tile", min=1)}),
    }


@pytest.fixture
def attack(plain, tmp_path, monkeypatch):
    """attack(suffix, change): refused with nothing run, after torch alone is shown to run it. Returns the message."""

    monkeypatch.syspath_prepend(tmp_path)

    def attack_one(suffix, change, *, works_on_torch=True):
        witness = tmp_path / "witness"
        path = change(plain[suffix], tmp_path / f"evil.{suffix}", witness)
        with pytest.raises(ModelFileError, match="cannot be loaded") as refusal:
            load(path)
        assert not witness.exists(), "the check ran the payload"
        if works_on_torch:
            load_raw_and_run(path)
            assert witness.exists(), "no attack, so no test"
        return str(refusal.value)

    return attack_one


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (Classic, {}),
        (Classic, {"shapes": EIGHTHS}),
        (UNet, {"shapes": EIGHTHS}),
        (UNet, {"shapes": EIGHTHS, "decompose": True}),
        (UNet, {"shapes": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}}),
        (Attention, {}),
        (Attention, {"shapes": {0: Dim("tile", min=1)}, "decompose": True}),
        (Attention, {"shapes": {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}}),
        (Odd, {"shapes": SIZES}),
        (Odd, {"decompose": True}),
    ],
)
def test_exported_networks_are_loaded(network, options, tmp_path):
    network = network().eval()
    answer = load(export(network, tmp_path / "network.pt2", **options))(EXAMPLE)
    torch.testing.assert_close(answer, network(EXAMPLE).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("network", "trace"),
    [*product((Classic, UNet, Attention), (True, False)), (Odd, True)],  # torch cannot script a parametrized weight
)
def test_scripted_and_traced_networks_are_loaded(network, trace, tmp_path):
    network = network().eval()
    answer = load(script(network, tmp_path / "network.pt", trace=trace))(EXAMPLE)
    torch.testing.assert_close(answer, network(EXAMPLE).detach(), atol=1e-4, rtol=1e-4)


def test_the_demo_model_is_loaded():
    require_plain_network(str(DEMO))


def with_model(change):
    """An attack on model.json: change(model, witness)."""

    def change_file(source, target, witness):
        model = json.loads(member(source, "models/model.json"))
        change(model, witness)
        return rewrite(source, target, **{"models/model.json": json.dumps(model).encode()})

    return change_file


def pickled_payload(kind, name):
    def change_file(source, target, witness):
        config = json.loads(member(source, f"data/{kind}/model_{kind}_config.json"))
        meta = copy.deepcopy(
            next(iter(json.loads(member(source, "data/weights/model_weights_config.json"))["config"].values()))
        )
        config["config"]["x"] = {**meta, "path_name": name, "use_pickle": True}
        content = pickle.dumps(Bomb(witness)) if name.startswith("opaque") else pickled(Bomb(witness))
        changes = {f"data/{kind}/model_{kind}_config.json": json.dumps(config).encode(), f"data/{kind}/{name}": content}
        return rewrite(source, target, **changes)

    return change_file


def bomb_as(name, *, wrap=lambda bomb: bomb):
    return lambda source, target, witness: rewrite(source, target, **{name: pickled(wrap(Bomb(witness)))})


def first_expression(model, witness):
    values = model["graph_module"]["graph"]["tensor_values"].values()
    next(s for v in values for s in v["sizes"] if "as_expr" in s)["as_expr"]["expr_str"] = call_of(witness)


def guard_out_of_its_message(model, witness):
    """torch writes the guard once more between double quotes, as its message."""
    model["guards_code"].append(f"'\" + exec(bytes({list(call_of(witness).encode())})) + \"' != 0")


def from_file_node(model, witness):
    graph = model["graph_module"]["graph"]
    node = copy.deepcopy(next(each for each in graph["nodes"] if len(each["outputs"]) == 1))
    graph["tensor_values"]["evil"] = graph["tensor_values"][node["outputs"][0]["as_tensor"]["name"]]
    values = {"filename": {"as_string": str(witness)}, "shared": {"as_bool": True}, "size": {"as_int": 4}}
    node["target"], node["name"], node["outputs"] = (
        "torch.ops.aten.from_file.default",
        "evil",
        [{"as_tensor": {"name": "evil"}}],
    )
    node["inputs"] = [{"name": name, "arg": value, "kind": 1} for name, value in values.items()]
    graph["nodes"].append(node)


def name_in_signature(model, witness):
    """torch writes the name twice: the second closes the text that the first opens."""
    name = f'stack=""", evil={call_of(witness)}):\n    pass #'
    model["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [name]


def module_in_tree(model, witness):
    (witness.parent / "evil_module.py").write_text(call_of(witness))
    context = json.dumps({"__enum__": True, "fqn": "evil_module:Evil", "name": "EVIL"})
    tree = [1, {"type": "builtins.dict", "context": context, "children_spec": []}]
    model["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(tree)


def rename_input(model, witness):
    text = json.dumps(model).replace('{"name": "stack"}', json.dumps({"name": f"stack=({call_of(witness)})"}))
    text = text.replace('"stack": {"dtype"', json.dumps(f"stack=({call_of(witness)})") + ': {"dtype"')
    model.clear()
    model.update(json.loads(text))
    model["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = None


EXPORT_ATTACKS = {
    "pickled weight": (pickled_payload("weights", "weight_99"), "weight_99 is pickled"),
    "pickled constant": (pickled_payload("constants", "tensor_99"), "tensor_99 is pickled"),
    "opaque constant": (pickled_payload("constants", "opaque_obj_0"), "member 'data/constants/opaque_obj_0'"),
    "sample inputs": (
        bomb_as("data/sample_inputs/model.pt", wrap=lambda bomb: ((bomb,), {})),
        "more than plain tensors",
    ),
    "old weights": (bomb_as("data/weights/model.pt", wrap=lambda bomb: {"w": bomb}), "more than plain tensors"),
    "old constants": (bomb_as("data/constants/model.pt", wrap=lambda bomb: {"w": bomb}), "more than plain tensors"),
    "size": (with_model(first_expression), "the expression"),
    "guard": (with_model(lambda model, w: model["guards_code"].append(call_of(w))), "the expression"),
    "guard's message": (with_model(guard_out_of_its_message), "the expression"),
    "file operator": (with_model(from_file_node), "operator torch.ops.aten.from_file.default"),
    "argument name": (with_model(name_in_signature), "has as forward_arg_names"),
    "output tree": (with_model(module_in_tree), "takes or gives"),
    "input name": (with_model(rename_input), "has as name|the name"),
}


@pytest.mark.attack(
    "code in a torch file", "in every text of torch.export and TorchScript that torch unpickles, evaluates or compiles"
)
@pytest.mark.parametrize("name", EXPORT_ATTACKS)
def test_code_in_an_exported_file_is_refused(name, attack):
    change, message = EXPORT_ATTACKS[name]
    assert re.search(message, attack("pt2", change))


class Saves(nn.Module):
    """Writes a file when it is run."""

    def __init__(self, witness: str) -> None:
        super().__init__()
        self.witness = witness

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        torch.save(stack, self.witness)
        return stack


class Maps(Saves):
    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return stack + torch.from_file(self.witness, True, 1)


class SavesOnLoad(Saves):
    """Writes a file when it is loaded."""

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return stack

    @torch.jit.export
    def __getstate__(self):
        return self.witness, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.witness = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.witness)


@pytest.mark.attack(
    "operators of a torch file", "that write files, reach other libraries, or reach beyond a tensor, in any spelling"
)
@pytest.mark.parametrize("network", [Saves, Maps, SavesOnLoad])
def test_operators_that_write_files_are_refused(network, attack):
    def change(source, target, witness):
        script(network(str(witness)), target)
        witness.unlink(missing_ok=True)  # saving runs __getstate__ only, tracing would run more
        return target

    assert re.search(r"operator (save|from_file)", attack("pt", change))


@pytest.mark.attack(
    "operators of a torch file", "that write files, reach other libraries, or reach beyond a tensor, in any spelling"
)
@pytest.mark.parametrize(
    "spelling",
    [
        "torch.save(stack, W)",
        "t = torch\n    t.save(stack, W)",
        "s = torch.save\n    s(stack, W)",
        "stack.save(W)",
        "torch . save(stack, W)",
        'getattr(torch, "save")(stack, W)',
        "getattr(torch, 'sa' \"ve\")(stack, W)",
        'getattr(torch, "sa\\166e")(stack, W)',
        "ops.aten.save(stack, W)",
        "o = ops\n    o.aten.save(stack, W)",
        "torch.\\\n      save(stack, W)",
        "# '\n    torch.save(stack, W)",
    ],
)
def test_no_spelling_hides_an_operator_of_a_script(spelling, attack):
    works_on_torch = spelling != "stack.save(W)"  # torch has no such method now

    def change(source, target, witness):
        spelled = spelling.replace("W", f'"{witness}"')
        code = f"class Plain(Module):\n  def forward(self, stack: Tensor) -> Tensor:\n    {spelled}\n    return stack\n"
        script(Plain(), target.with_name("plain.pt"))
        name = next(each for each in zipfile.ZipFile(target.with_name("plain.pt")).namelist() if each.endswith(".py"))
        code = code.replace("self,", f"self: {re.sub(r'.*code/|[.]py', '', name).replace('/', '.')}.Plain,")
        head = (
            "  __parameters__ = []\n  __buffers__ = []\n  training : bool\n  _is_full_backward_hook : Optional[bool]\n"
        )
        code = code.replace("(Module):\n", f"(Module):\n{head}").replace("Optional[bool]", "NoneType")
        return rewrite(target.with_name("plain.pt"), target, **{name.split("/", 1)[1]: code.encode()})

    attack("pt", change, works_on_torch=works_on_torch)


class Plain(nn.Module):
    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        return stack


@pytest.mark.attack(
    "operators of a torch file", "that write files, reach other libraries, or reach beyond a tensor, in any spelling"
)
def test_native_classes_and_operators_of_other_libraries_are_refused(plain, tmp_path):
    code = next(each for each in zipfile.ZipFile(plain["pt"]).namelist() if each.endswith(".py")).split("/", 1)[1]
    text = member(plain["pt"], code)
    for extra in (
        b"x = ops.image.read_file('a')",
        b"o = ops.prim",
        b"x = __torch__.torch.classes.a.B()",
        b"t = __torch__.torch",
        b"t = __torch__",
        b"x = ops.prim.rpc_sync('a')",
        b"x = rpc_async('a')",
        b"x = torch._nested_view_from_buffer(a)",
        b"x = torch.sparse_coo_tensor(a)",
    ):
        path = rewrite(plain["pt"], tmp_path / "evil.pt", **{code: text + b"\n" + extra})
        with pytest.raises(ModelFileError, match="cannot be loaded as TorchScript: code/"):
            require_plain_network(str(path))
    data = member(plain["pt"], "data.pkl")
    for name in (b"__torch__.torch\nclasses.a.B", b"os\nmkdir", b"torch._utils\n_rebuild_sparse_tensor"):
        evil = re.sub(rb"ccollections\nOrderedDict", b"c" + name, data, count=1)
        assert evil != data
        with pytest.raises(ModelFileError, match="makes objects of"):
            require_plain_network(str(rewrite(plain["pt"], tmp_path / "evil.pt", **{"data.pkl": evil})))


@pytest.mark.attack(
    "operators of a torch file", "that write files, reach other libraries, or reach beyond a tensor, in any spelling"
)
def test_a_script_tensor_beyond_its_storage_is_refused(tmp_path):
    class Holder(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("held", torch.zeros(97, 3))

    path = script(Holder(), tmp_path / "plain.pt")
    data = member(path, "data.pkl")
    long = data.replace(b"KaK\x03", b"M\x00\x20K\x03")  # 8192 rows
    believed = long.replace((291).to_bytes(2, "little"), b"\xff\xff")  # and a storage of 65535, of 291
    assert len({data, long, believed}) == 3
    for content, message in ((long, "beyond its storage"), (believed, "shorter than")):
        evil = rewrite(path, tmp_path / "evil.pt", **{"data.pkl": content})
        with pytest.raises(ModelFileError, match=message):
            require_plain_network(str(evil))
    assert torch.jit.load(evil).held.untyped_storage().nbytes() > len(member(evil, "data/0")), "torch checks by now"


@pytest.mark.attack(
    "code in a torch file", "in every text of torch.export and TorchScript that torch unpickles, evaluates or compiles"
)
@pytest.mark.parametrize(
    ("suffix", "extra"),
    [
        ("pt2", "data/aotinductor/model/model.so"),
        ("pt2", "models/other.json"),
        ("pt2", "data/constants/custom_obj_0"),
        ("pt2", "serialized_exported_program.json"),
        ("pt2", "models/../models/model.json"),
        ("pt2", "Models/Model.json"),
        ("pt", "model.json"),
        ("pt", "bytecode.pkl"),
        ("pt", "code/other.py"),
    ],
)
def test_other_members_are_refused(suffix, extra, plain, tmp_path):
    path = rewrite(plain[suffix], tmp_path / f"evil.{suffix}", **{extra: b"{}"})
    with pytest.raises(ModelFileError, match="member"):
        require_plain_network(str(path))


@pytest.mark.attack(
    "code in a torch file", "in every text of torch.export and TorchScript that torch unpickles, evaluates or compiles"
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_two_readers_may_read_differently_are_refused(plain, tmp_path):
    for root, name, message in (
        ("net", "models/model.json", "same members"),
        ("net", "MODELS/model.json", "same members"),
        ("other", "models/model.json", "not in a subdirectory"),
    ):
        path = rewrite(plain["pt2"], tmp_path / "evil.pt2")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{root}/{name}", b"{}")
        with pytest.raises(ModelFileError, match=message):
            require_plain_network(str(path))


@pytest.mark.attack("bombs in a torch file", "members that inflate to gigabytes")
def test_bombs_are_refused_quickly(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("geodl_dask.runners.torch_files.MAX_TEXT", 1 << 20)
    deep, huge = b"[" * 200_000, b'{"a": "' + b"x" * (2 << 20) + b'"}'
    for content in (deep, huge, b'{"graph_module": 1}', b"\xff", b"null"):
        path = rewrite(plain["pt2"], tmp_path / "evil.pt2", **{"models/model.json": content})
        with pytest.raises(ModelFileError, match="cannot be loaded"):
            require_plain_network(str(path))
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/version", b"3")
        archive.writestr("net/data/0", b"0" * (5 << 20))
    with pytest.raises(ModelFileError, match="unpack to more than 4 MiB"):
        require_plain_network(str(path))


@pytest.mark.attack(
    "code in a torch file", "in every text of torch.export and TorchScript that torch unpickles, evaluates or compiles"
)
@pytest.mark.parametrize(
    "text",
    ["9**9**9", "Pow(9, Pow(9, 99))", "((s0**99)**99)**99", "(" * 300 + ")" * 300, "s0.__class__",
     "[s0 for s0 in s1]", "lambda: 1", "exec(s0)", "Symbol('a\"b')", "s0 # x", "f'{s0}'", "9" * 30,
     "math.fsum(s0)", "Symbol(*s0)", "s0()", "size()", "1 << 99", "(yield)", "(s0 := 1)", "\uff33ymbol('x')"],
)  # fmt: skip
def test_expressions_are_arithmetic_only(text, plain, tmp_path):
    model = json.loads(member(plain["pt2"], "models/model.json"))
    model["guards_code"].append(text)
    path = rewrite(plain["pt2"], tmp_path / "evil.pt2", **{"models/model.json": json.dumps(model).encode()})
    with pytest.raises(ModelFileError, match=r"expression|damaged"):
        require_plain_network(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, graph: graph["inputs"].append({"as_string": "a' + b"}), "takes as_string, not tensors"),
        (lambda model, graph: graph["custom_obj_values"].update(x={"class_fqn": "a.B"}), "class_fqn is code"),
        (lambda model, graph: graph["nodes"][0]["inputs"].append({"as_operator": "torch.load"}), "as_operator is code"),
        (lambda model, graph: graph["nodes"][0]["metadata"].update(target="torch.load"), "operator torch.load"),
        (lambda model, graph: graph["tensor_values"].update({"a b": {}}), "has the name 'a b'"),
        (lambda model, graph: graph["tensor_values"].update({"a.__class__.b": {}}), "has the name 'a.__class__.b'"),
        (lambda model, graph: model["guards_code"].append("exit"), "not plain arithmetic"),
        (lambda model, graph: model["guards_code"].append("L['a b']"), "not plain arithmetic"),
        (lambda model, graph: model.update(torch_version="x" * (2 << 20)), "2 MiB, more than 1"),
    ],
)
def test_the_message_says_what_is_wrong_and_what_to_do(change, message, plain, tmp_path, monkeypatch):
    monkeypatch.setattr("geodl_dask.runners.torch_files.MAX_TEXT", 1 << 20)
    model = json.loads(member(plain["pt2"], "models/model.json"))
    change(model, model["graph_module"]["graph"])
    path = rewrite(plain["pt2"], tmp_path / "evil.pt2", **{"models/model.json": json.dumps(model).encode()})
    with pytest.raises(ModelFileError) as refusal:
        require_plain_network(str(path))
    for each in (str(path), "models/model.json", message, "Save the network again in eval mode with torch.export.save"):
        assert each in str(refusal.value)


def test_weights_without_their_network_are_refused(tmp_path):
    torch.save(Classic().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ModelFileError, match=r"no data\.pkl and constants\.pkl"):
        require_plain_network(str(tmp_path / "weights.pt"))


def texts_of(value, key=""):
    """Every place of a text in parsed JSON, as (container, key or index)."""
    for name, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(item, (dict, list)):
            yield from texts_of(item, name)
        elif isinstance(item, str):
            yield value, name


@pytest.mark.attack(
    "code in a torch file", "in every text of torch.export and TorchScript that torch unpickles, evaluates or compiles"
)
def test_code_in_place_of_any_text_never_runs(plain, tmp_path):
    """Each distinct kind of text of the graph in turn; what is let through is loaded and run."""
    witness, refused, loaded = tmp_path / "witness", 0, 0
    payload = f"({call_of(witness)})"
    original = json.loads(member(plain["toy"], "models/model.json"))
    for number in range(len(list(texts_of(original)))):
        model = copy.deepcopy(original)
        container, name = list(texts_of(model))[number]
        container[name] = payload
        path = rewrite(plain["toy"], tmp_path / "evil.pt2", **{"models/model.json": json.dumps(model).encode()})
        try:
            load(path)(EXAMPLE)
            loaded += 1
        except ModelFileError:
            refused += 1
        assert not witness.exists(), f"{name} ran code"
    assert refused > 3 * loaded > 0


def test_damaged_files_give_one_clean_error(plain, tmp_path, caplog):
    """Texts and numbers of the graph mixed up, members cut, archives cut: loaded or refused, nothing else."""
    rng = random.Random(3)
    original = member(plain["toy"], "models/model.json").decode()
    pieces = re.findall(r'"[^"]*"|-?\d+|[\[\]{}]|true|false|null', original)
    for number in range(150):
        path = tmp_path / f"damaged.{'pt' if number % 3 == 2 else 'pt2'}"
        content = plain["pt" if number % 3 == 2 else "toy"].read_bytes()
        if number % 3 == 0:
            at = rng.choice(list(re.finditer(re.escape(rng.choice(pieces)), original)))
            model = original[: at.start()] + rng.choice(pieces) + original[at.end() :]
            rewrite(plain["toy"], path, **{"models/model.json": model.encode()})
        else:
            at = rng.randrange(len(content))
            path.write_bytes(
                content[:at] + (b"" if number % 2 else bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
            )
        try:
            load(path)(EXAMPLE)
        except ModelFileError as error:
            assert "\n" not in str(error)
    assert not caplog.records


def test_operators_that_take_texts_are_known():
    """A new torch may bring operators that open files: whatever takes a name like one has to be looked at."""
    names = {
        schema.name.removeprefix("aten::")
        for schema in torch._C._jit_get_all_schemas()
        for each in schema.arguments
        if schema.name.startswith("aten::")
        and str(each.type) == "str"
        and each.name.endswith(("file", "filename", "path", "url"))
    }
    assert {"save", "from_file"} <= names
    assert not [each for each in names if is_plain(each)]
