"""Weights alone: a state dict that torch reads without unpickling code, and a network that takes them by name."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelFileError

NAMED = 8
"""At most so many names stand in a message."""
_MOST_INFLATED = 2
"""torch.save stores tensors as they are; a file that unpacks to more than so many times its size is none of its."""


def read_state_dict(path: str) -> dict[str, Tensor]:
    """The tensors of a file of torch.save by name: a state dict, or one in ``"model"`` beside ``"opt"``.

    Runs nothing of the file. Raises ModelFileError.
    """
    try:
        _require_no_bomb(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelFileError(f"The model file {path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # whatever a damaged or hostile file leads torch into
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelFileError(
            f"{path} cannot be loaded as weights alone by torch {torch.__version__}: {first_line[:200]} A state dict "
            "(torch.save(network.state_dict(), path)) is needed; anything else in the file may be code."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise ModelFileError(f"{path} holds a {type(content).__name__}; a state dict, names and tensors, is needed.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ModelFileError(f"{path}: {str(name)[:99]!r} is no plain tensor; a state dict is needed.")
    return dict(content)


def take_weights(network: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], path: str) -> None:
    """Copy the tensors of ``state`` into ``network``.

    names : the tensor's name in ``state`` by the network's own; a tensor of ``state`` that stands for none is too much.
    Raises ModelFileError that names every tensor that is missing, too many, or of another shape or kind.
    """
    wanted = {name: tensor for name, tensor in network.state_dict().items() if name in names}
    missing = [names[name] for name in wanted if names[name] not in state]
    extra = sorted(set(state) - set(names.values()))
    others = [
        f"{names[name]} is {_described(state[names[name]])} where {_described(tensor)} is needed"
        for name, tensor in wanted.items()
        if names[name] in state and not _fits(state[names[name]], tensor)
    ]
    if missing or extra or others:
        found = [("missing: ", missing), ("not known: ", extra), ("", others)]
        raise ModelFileError(
            f"{path} does not have the weights of this network; "
            + "; ".join(word + _listed(each) for word, each in found if each)
            + "."
        )
    network.load_state_dict({name: state[names[name]] for name in wanted}, strict=False)


def _fits(given: Tensor, wanted: Tensor) -> bool:
    return given.shape == wanted.shape and given.is_floating_point() == wanted.is_floating_point()


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _listed(names: list[str]) -> str:
    short = [name[:200] for name in names[:NAMED]]
    more = len(names) - len(short)
    return ", ".join(short) + (f" and {more} more" if more else "")


def _require_no_bomb(path: str) -> None:
    if not zipfile.is_zipfile(path):  # torch's older format, which is not packed
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(each.file_size for each in archive.infolist())
    if unpacked > _MOST_INFLATED * Path(path).stat().st_size:
        raise ModelFileError(f"it unpacks to {unpacked:,} bytes.")
