"""May torch load this file? Only where it holds plain tensors and plain operators.

``torch.export.load`` and ``torch.jit.load`` trust their file: the former unpickles, evaluates size expressions
and compiles guards, both run any registered operator, and some of those write files. A network that we run
ourselves needs no ``trust_code``, so whatever is not on the lists below is refused before torch reads the file.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
import zlib
from typing import Any

import torch

from ..errors import ModelFileError
from .torch_operators import is_plain

MAX_TEXT = 64 << 20
"""Bytes of a member that is parsed, and, times four, of all compressed members together."""

_BOTH = r"version|byteorder|archive_(format|version)|\.data/\w+|\.format_version|\.storage_alignment|extra/[\w./-]+"
_EXPORT_MEMBER = re.compile(
    rf"{_BOTH}|models/model\.json|data/(sample_inputs|weights|constants)/model\.pt"
    r"|data/(weights/(model_weights_config\.json|weight_\d+)|constants/(model_constants_config\.json|tensor_\d+))"
)
_SCRIPT_MEMBER = re.compile(
    rf"{_BOTH}|(data|constants|traced_inputs)(\.pkl|/\d+)|code/__torch__(/\w+)*\.py(\.debug_pkl)?"
)

_ATEN_TARGET = re.compile(r"torch\.ops\.aten\.(\w+)\.([A-Za-z]\w*)")
_OTHER_TARGET = re.compile(
    r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.(sym_[a-z]+|_sym_[a-z]+)"
)
_NOT_LISTED = "is not on the list of those that are known to be harmless (runners/torch_operators.py)"
_IDENTIFIER = re.compile(r"((?!__)[A-Za-z_]\w*)?", re.ASCII)
_NAME = re.compile(r"((?!__)[\w-]+(\.(?!__)[\w-]+)*)?", re.ASCII)
_TREE_TYPE = re.compile(r"builtins\.(tuple|list|dict)|collections\.OrderedDict")
_TREE_CONTEXT = re.compile(r"null|\[(\"[A-Za-z_]\w*\"(, )?)*\]", re.ASCII)
_CODE_KEYS = {"as_custom_obj", "as_operator", "custom_obj", "constant_input", "custom_obj_name", "class_fqn"}
# Types of torch's which operators take as any number, and follow it beyond their tables.
_NUMBERED_TYPES = {"dtype", "out_dtype", "layout", "memory_format", "from_", "to", "type1", "type2"}
_TYPE_KINDS = {"as_scalar_type", "as_layout", "as_memory_format", "as_none"}
_METADATA_KEYS = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"}


_SYNTAX = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Load, ast.unaryop, ast.boolop, ast.cmpop,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr,
)  # fmt: skip
_FUNCTION = re.compile(
    r"Integer|Symbol|Add|Mul|Pow|(Python)?Mod|(Floor|Ceil|Clean|IntTrue|FloatTrue)Div|Max|Min|max|min|ToFloat|Abs|floor"
    r"|(Trunc|Round|Ceil|Floor)To(Int|Float)|ceiling|ModularIndexing|Where|Identity|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not"
    r"|(Une|E)quality|(Strict)?(Greater|Less)Than"
)
_SYMBOL = re.compile(r"[suz][a-z]*\d+|L|true|false|math")

_OPS_OF_SCRIPT = re.compile(
    r"(?<![.\w])ops(?!\w| : |\.prim\.(NumToTensor|RaiseException|device|dtype|layout|type|data|name|index|is_\w+"
    r"|requires_grad|grad|abs|max|min|itemsize|nbytes|rangelist|tolist|unchecked_\w+|id)\b)"
)
_STRING_OF_SCRIPT = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")
_ATTRIBUTE_OF_SCRIPT = re.compile(r"\.(?:\s|\\|#[^\n]*\n)*(\w+)")
_ITEM_SIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
               "Bool": 1, "ComplexFloat": 8, "ComplexDouble": 16}  # fmt: skip


class _NotPlainError(Exception):
    """What is wrong with which member."""


def is_export(path: str) -> bool:
    """Whether the file is of torch.export, by its suffix or, where that says nothing, its members; else TorchScript."""
    if path.lower().endswith((".pt", ".pt2")):
        return path.lower().endswith(".pt2")
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/models/model.json") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):  # which is for whoever reads the file to say
        return False


def require_plain_network(path: str) -> None:
    """Return if torch may load this file; runs nothing of it.

    Raises ModelFileError with the member, what is wrong with it, and what to do.
    """
    kind, check, members = "TorchScript", _require_plain_script, _SCRIPT_MEMBER
    if is_export(path):
        kind, check, members = "torch.export", _require_plain_export, _EXPORT_MEMBER
    try:
        with zipfile.ZipFile(path) as archive:
            check(_Members(path, archive, members))
    except _NotPlainError as error:
        raise ModelFileError(_message(path, kind, str(error))) from error
    except (
        OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, MemoryError,
        NameError, ArithmeticError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        first_line = (str(error).strip() or "no more said").splitlines()[0]
        damage = f"it is damaged, or not laid out as torch writes it ({type(error).__name__}: {first_line})"
        raise ModelFileError(_message(path, kind, damage)) from error


def _message(path: str, kind: str, reason: str) -> str:
    return (
        f"{path} cannot be loaded as {kind}: {reason}. Only plain tensors and operators of inference may be in it, for "
        "anything else could do harm; weights alone (a state dict) need their network. Save the network again in eval "
        "mode with torch.export.save (torch 2.8 or later), torch.jit.trace or as ONNX."
    )


class _Members:
    """The members of a torch file by the name torch gives them, where zipfile and torch see the same."""

    def __init__(self, path: str, archive: zipfile.ZipFile, allowed: re.Pattern[str]) -> None:
        self._zip, self._torch = archive, torch._C.PyTorchFileReader(path)
        infos = archive.infolist()
        self._root = infos[0].filename.split("/")[0] + "/"
        self.sizes = {each.filename.removeprefix(self._root): each.file_size for each in infos}
        seen = sorted(self._root + name for name in self._torch.get_all_records())
        # torch finds names whatever their case.
        if sorted(each.filename for each in infos) != seen or len({name.lower() for name in seen}) != len(infos):
            raise _NotPlainError("two readers of the archive do not see the same members")
        if any(each.compress_type == zipfile.ZIP_STORED and each.compress_size != each.file_size for each in infos):
            raise _NotPlainError("its list of members is not true")
        if sum(each.file_size for each in infos if each.compress_type != zipfile.ZIP_STORED) > 4 * MAX_TEXT:
            raise _NotPlainError(f"its compressed members unpack to more than {4 * MAX_TEXT >> 20} MiB")
        for name in self.sizes:
            _require_match(allowed, name, "the archive", "has the member")

    def read(self, name: str) -> bytes:
        if self.sizes[name] > MAX_TEXT and not name.endswith(".pt"):
            raise _NotPlainError(f"{name} has {self.sizes[name] >> 20} MiB, more than {MAX_TEXT >> 20}")
        content: bytes = self._torch.get_record(name)
        if self._zip.read(self._root + name) != content:
            raise _NotPlainError(f"two readers of the archive do not see the same {name}")
        return content


def _require_match(pattern: re.Pattern[str], text: str, member: str, says: str) -> None:
    if not pattern.fullmatch(text):
        raise _NotPlainError(f"{member} {says} {text[:99]!r}, which may be code")


def _require_plain_export(archive: _Members) -> None:
    model = json.loads(archive.read("models/model.json").decode())
    for each in model["graph_module"]["graph"]["inputs"]:
        if set(each) != {"as_tensor"}:
            raise _NotPlainError(f"models/model.json: the network takes {', '.join(map(str, each))}, not tensors only")
    _require_plain_json("models/model.json", model)
    for name in archive.sizes:
        if name.endswith("_config.json"):
            config = json.loads(archive.read(name).decode())
            for payload in config["config"].values():
                if payload["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
                    raise _NotPlainError(f"{name}: {payload['path_name']} is pickled, so it may be code")
            _require_plain_json(name, config)
        elif name.endswith(".pt") and archive.sizes[name]:
            _require_plain_pickle(name, archive.read(name))


def _require_plain_pickle(member: str, content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # whatever a hostile pickle leads torch into; without this check torch would unpickle it
        raise _NotPlainError(f"{member} has more than plain tensors in it: {str(error).splitlines()[:1]}") from error


def _require_plain_json(member: str, model: Any) -> None:
    """Every text is a plain name, unless its key has a rule of its own. torch writes names into code that it runs."""
    todo: list[tuple[str, Any]] = [("", model)]
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict):
            if value.get("name") in _NUMBERED_TYPES and not _TYPE_KINDS.issuperset(value.get("arg", ())):
                raise _NotPlainError(f"{member}: {value['name']} is {value['arg']}, which is no type of torch's")
            for name, item in value.items():
                if name in _CODE_KEYS:
                    raise _NotPlainError(f"{member}: {name} is code or a foreign object")
                if name == "metadata" and _METADATA_KEYS.issuperset(item) and set(map(type, item.values())) <= {str}:
                    continue
                if key == "range_constraints":
                    _require_arithmetic(member, name)
                else:
                    _require_match(_NAME, name, member, "has the name")
                todo.append((name, item))
        elif isinstance(value, list):
            todo += [(key, each) for each in value]
        elif isinstance(value, str):
            _require_plain_text(member, key, value)


def _require_plain_text(member: str, key: str, text: str) -> None:
    if key == "target":
        _require_plain_target(member, text)
    elif key in ("expr_str", "guards_code"):
        _require_arithmetic(member, text)
    elif key in ("in_spec", "out_spec"):
        todo = [json.loads(text)[1]]
        while todo:
            node = todo.pop()
            if node["type"] is not None:
                _require_match(_TREE_TYPE, node["type"], member, "takes or gives")
                _require_match(_TREE_CONTEXT, node["context"], member, "takes or gives")
            todo += node["children_spec"]
    elif key not in ("as_string", "as_strings", "torch_version"):  # these stay text: torch writes them with repr()
        identifiers = ("name", "as_name", "forward_arg_names")
        _require_match(_IDENTIFIER if key in identifiers else _NAME, text, member, f"has as {key}")


def _require_plain_target(member: str, target: str) -> None:
    aten = _ATEN_TARGET.fullmatch(target)
    if not (aten and is_plain(aten[1])) and not _OTHER_TARGET.fullmatch(target):
        raise _NotPlainError(f"{member}: the operator {target[:99]} {_NOT_LISTED}")


def _require_arithmetic(member: str, text: str) -> None:
    """Sizes and guards as torch writes them: torch evaluates the text."""
    _require_match(re.compile(r"[\w .,'()\[\]+*/%<>=!&|~-]{1,9999}", re.ASCII), text, member, "has the expression")
    exponents = 1
    for node in ast.walk(ast.parse(text, mode="eval")):
        plain = isinstance(node, _SYNTAX)
        match node:
            case ast.Constant(value=str(value)):
                plain = bool(_IDENTIFIER.fullmatch(value))
            case ast.Constant(value=int() | float() as value):
                plain = abs(value) < 2**63
            case ast.Name(id=name):
                plain = bool(_FUNCTION.fullmatch(name) or _SYMBOL.fullmatch(name))
            case ast.Subscript(slice=ast.Constant()) | ast.keyword(value=ast.Constant(value=True | False)):
                plain = True
            case ast.Attribute(attr="size") | ast.Attribute(value=ast.Name(id="math"), attr="ceil" | "floor" | "trunc"):
                plain = True
            case ast.Call(func=ast.Name(id=name)):
                plain = bool(_FUNCTION.fullmatch(name))
            case ast.Call(func=ast.Attribute()):
                plain = True
        match node:
            case ast.Call(func=ast.Name(id="Pow"), args=[_, exponent]) | ast.BinOp(op=ast.Pow(), right=exponent):
                number = re.fullmatch(r"(?:Integer\()?(-?\d{1,4})\)?", ast.unparse(exponent))
                exponents *= max(1, abs(int(number[1]))) if number else 10_000
        if not plain or exponents >= 10_000:
            raise _NotPlainError(f"{member} has the expression {text[:99]!r}, which is not plain arithmetic of sizes")


def _require_plain_script(archive: _Members) -> None:
    if "constants.pkl" not in archive.sizes or "data.pkl" not in archive.sizes:
        raise _NotPlainError("it has no data.pkl and constants.pkl, as TorchScript has")
    for name in archive.sizes:
        if name.endswith(".py"):
            _require_plain_code(name, archive.read(name).decode("ascii"))
        elif name.endswith("pkl") and name != "traced_inputs.pkl":  # that one torch reads only on demand
            _ScriptPickle(name, archive).load()


def _require_plain_code(member: str, text: str) -> None:
    """Read by attributes, since operators have many spellings: ``t = torch; t.save``, ``getattr(x, "save")``."""
    if set(re.findall(r"\\(.)", text, re.DOTALL)) - set("nt\"'\\") or re.search(r"[^\x20-\x7e\n]", text):
        raise _NotPlainError(f"{member} hides characters")
    if any(re.compile(r"\s*[\"']").match(text, each.end()) for each in _STRING_OF_SCRIPT.finditer(text)):
        raise _NotPlainError(f"{member} joins texts")
    if found := _OPS_OF_SCRIPT.search(text):
        raise _NotPlainError(
            f"{member} uses operators that are not torch's own: {text[found.start() :].splitlines()[0][:99]}"
        )
    for name in re.findall(r"__torch__((?:\.\w+)*)", text):
        if name in ("", ".torch") or name.startswith(".torch.classes"):
            raise _NotPlainError(f"{member} uses native classes: __torch__{name}")
    if found := re.search(r"\brpc_\w+", text):
        raise _NotPlainError(f"{member}: {found[0]} reaches other machines")
    texts = {each[0][1:-1] for each in _STRING_OF_SCRIPT.finditer(text)}
    attributes = _ATTRIBUTE_OF_SCRIPT.findall(_STRING_OF_SCRIPT.sub('""', text))  # bare names are variables
    for word in {*texts, *attributes}:
        if torch._C._jit_get_schemas_for_operator(f"aten::{word}") and not is_plain(word):
            raise _NotPlainError(f"{member}: the operator {word} {_NOT_LISTED}")


class _ScriptObject:
    def __setstate__(self, state: object) -> None:
        """Nothing: here objects are inert."""


class _ScriptPickle(pickle.Unpickler):
    """Reads a TorchScript pickle as inert values. Checks tensors against their storage, which torch's C++ does not."""

    def __init__(self, member: str, archive: _Members) -> None:
        super().__init__(io.BytesIO(archive.read(member)))
        self._member, self._sizes = member, archive.sizes

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "torch._utils._rebuild_tensor_v2":
            return self._check_tensor
        if full == "collections.OrderedDict":
            return dict
        if module == "torch" and name.endswith("Storage"):
            return _ITEM_SIZES[name.removesuffix("Storage")]
        if module == "torch.jit._pickle" and re.fullmatch(r"build_\w+list|restore_type_tag", name):
            return lambda value, *_: value
        if full.startswith("__torch__.") and not full.startswith("__torch__.torch.classes"):
            return _ScriptObject
        raise _NotPlainError(f"{self._member} makes objects of {full}, which may be code")

    def persistent_load(self, pid: Any) -> int:
        """Return the elements of a storage."""
        kind, item_size, key, _, count = pid
        record = f"{self._member.removesuffix('.pkl')}/{key}"
        if kind != "storage" or not 0 <= count * item_size <= self._sizes[record]:
            raise _NotPlainError(f"{self._member}: {record} is shorter than what is to be read of it")
        return int(count)

    def _check_tensor(self, count: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> None:
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and last >= count):
            raise _NotPlainError(f"{self._member} has a tensor that reaches beyond its storage")
