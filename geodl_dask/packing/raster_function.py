"""Esri Python raster function of a network that stands in one file, for packages of ``geodl-dask pack-model``.

A copy of this file lies in every such package as ``GeodlDaskFunction.py``, so that whoever speaks Esri's protocol, as
ArcGIS does, can run it; geodl_dask itself runs the network without it, and both give the same classes. It needs
numpy, and torch (``.pt``, ``.pt2``) or onnxruntime (``.onnx``); Python 3.9 or newer; nothing of geodl_dask.

The raster is one, of two dates stacked with the bands of the earlier one first. A block holds a batch of tiles::

    | padding |<------ tx = columns x core ------>| padding |
              |  core  |  core  |  core  |  core  |            each core with its padding is a tile
"""

from __future__ import annotations

import json
import math
import os
import warnings
from typing import Any

import numpy as np

_FIELDS = {"OID": "OID", "Value": "Integer", "Class": "String", "Red": "Integer", "Green": "Integer", "Blue": "Integer"}


class GeodlDaskFunction:
    """What the host calls: ``initialize`` first, then the others in the order in which they stand here."""

    def __init__(self) -> None:
        self.name = "geodl_dask classifier"
        self.description = "Classifies each pixel of a raster, or of two that are stacked, by a network of one file."
        self._keys: dict[str, Any] = {}
        self._network: Any = None

    def initialize(self, **kwargs: Any) -> None:
        """Read the definition and load the network.

        model : path of the ``.emd``, or its text. device : number of a GPU, -1 for the CPU, less or none for any GPU;
        where there is none, the CPU.
        """
        if "model" not in kwargs:
            return
        text, folder = kwargs["model"], ""
        if not text.lstrip().startswith("{"):
            folder = os.path.dirname(os.path.abspath(text))
            with open(text, encoding="utf-8") as file:
                text = file.read()
        self._keys = json.loads(text)
        path = os.path.join(folder, self._keys["ModelFile"].replace("\\", "/"))
        device = -2 if kwargs.get("device") is None else int(kwargs["device"])
        self._network = (_OnnxNetwork if path.lower().endswith(".onnx") else _TorchNetwork)(path, device)

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """What the function takes."""
        parameters = [
            _parameter("raster", "raster", "Raster", "The raster, or both dates stacked, the earlier one first", True),
            _parameter("model", "string", "Model definition", "Model definition (.emd)", True),
            _parameter("device", "numeric", "Device", "Number of the GPU; -1 for the CPU", False),
        ]
        if "ModelPadding" not in self._keys:
            what = "Pixels cut from each side of a tile's prediction"
            parameters.append({**_parameter("padding", "numeric", "Padding", what, False), "value": self._padding()})
        if self._network is None or self._network.batch_size is None:
            batch_size = self._keys.get("BatchSize") or 4
            what = "Tiles per call of the network"
            parameters.append({**_parameter("batch_size", "numeric", "Batch size", what, False), "value": batch_size})
        return parameters

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """Which block the function wants: a batch of tiles, with the padding around it."""
        self.padding = int(float(scalars.get("padding", self._padding())))
        batch_size = self._network.batch_size or int(float(scalars.get("batch_size", self._keys.get("BatchSize") or 4)))
        if batch_size < 1 or self.padding < 0:
            raise ValueError("batch_size is %d, padding %d; at least 1 and 0 are needed" % (batch_size, self.padding))
        self.rows = max(count for count in range(1, math.isqrt(batch_size) + 1) if batch_size % count == 0)
        self.columns = batch_size // self.rows
        self.tile_yx = self._keys["ImageHeight"], self._keys["ImageWidth"]
        self.core_yx = self.tile_yx[0] - 2 * self.padding, self.tile_yx[1] - 2 * self.padding
        if min(self.core_yx) < 1:
            raise ValueError("padding %d leaves nothing of a tile of %d x %d pixels" % (self.padding, *self.tile_yx))
        configuration = {
            "extractBands": tuple(self._keys["ExtractBands"]),
            "padding": self.padding,
            "tx": self.columns * self.core_yx[1],
            "ty": self.rows * self.core_yx[0],
            "fixedTileSize": 1,
            "inputMask": True,
            "inheritProperties": 2 | 4 | 8,  # all but the pixel type
            "invalidateProperties": 2 | 4,  # statistics and histogram
        }
        options = self._keys["GeodlDask"]
        if self._keys.get("DataRange") and not (options.get("mean") or options.get("std")):
            configuration["dataRange"] = tuple(self._keys["DataRange"])
        return configuration

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """One band, of the smallest type that holds the class values, with their names and colours."""
        classes = self._keys["Classes"]
        highest = max(each["Value"] for each in classes)
        kwargs["output_info"]["bandCount"] = 1
        kwargs["output_info"]["pixelType"] = "u1" if highest < 2**8 else "u2" if highest < 2**16 else "u4"
        rows = [(place + 1, each["Value"], each["Name"], *each["Color"]) for place, each in enumerate(classes)]
        table = {
            "displayFieldName": "",
            "fieldAliases": {name: name for name in _FIELDS},
            "fields": [{"name": name, "type": "esriFieldType" + kind, "alias": name} for name, kind in _FIELDS.items()],
            "features": [{"attributes": dict(zip(_FIELDS, row))} for row in rows],
        }
        kwargs["output_info"]["rasterAttributeTable"] = json.dumps(table)
        return kwargs

    def updatePixels(
        self, tlc: Any, shape: tuple[int, ...], props: dict[str, Any], **pixelBlocks: Any
    ) -> dict[str, Any]:
        """Class values of a block (1, ty, tx), and a mask of where both dates have an observation."""
        pixels = np.asarray(pixelBlocks["raster_pixels"])
        valid = (np.broadcast_to(pixelBlocks["raster_mask"], pixels.shape) != 0).all(axis=0)
        full = [count * core + 2 * self.padding for count, core in self._grid()]
        missing = [(0, max(0, wanted - given)) for wanted, given in zip(full, valid.shape)]
        valid = np.pad(valid, missing)
        stack = np.where(valid, np.pad(pixels, [(0, 0), *missing]), 0).astype(np.float32)
        values = self._join(self._decide(self._network(self._inputs(self._cut(self._normalised(stack))))))
        inner = valid[self.padding : full[0] - self.padding, self.padding : full[1] - self.padding]
        if (values[inner] < 0).any():
            raise ValueError("the network answered with NaN, or with a class index that Classes does not have")
        asked = np.s_[: shape[-2], : shape[-1]]
        pixelBlocks["output_pixels"] = np.where(inner, values, 0)[asked][None].astype(props["pixelType"])
        pixelBlocks["output_mask"] = inner[asked][None].astype("u1")
        return pixelBlocks

    def _padding(self) -> int:
        """ModelPadding, or the default of the argument."""
        if "ModelPadding" in self._keys:
            return int(self._keys["ModelPadding"])
        smallest = min(self._keys.get("ImageHeight", 0), self._keys.get("ImageWidth", 0))
        return int(self._keys.get("Padding", smallest // 4))

    def _grid(self) -> list[tuple[int, int]]:
        """(tiles, pixels of a core) along y and along x."""
        return [(self.rows, self.core_yx[0]), (self.columns, self.core_yx[1])]

    def _normalised(self, stack: np.ndarray) -> np.ndarray:
        options, count = self._keys["GeodlDask"], len(stack)
        for key, change in (("mean", np.subtract), ("std", np.divide)):
            if options.get(key):
                stack = change(stack, np.resize(np.float32(options[key]), count)[:, None, None])
        return stack

    def _cut(self, stack: np.ndarray) -> np.ndarray:
        """(tile, band, y, x) of (band, y, x)."""
        (height, width), (core_y, core_x) = self.tile_yx, self.core_yx
        corners = [(row * core_y, column * core_x) for row in range(self.rows) for column in range(self.columns)]
        return np.stack([stack[:, y : y + height, x : x + width] for y, x in corners])

    def _inputs(self, tiles: np.ndarray) -> list[np.ndarray]:
        if self._keys["GeodlDask"].get("input") != "pair":
            return [tiles]
        half = tiles.shape[1] // 2
        return [np.ascontiguousarray(tiles[:, :half]), np.ascontiguousarray(tiles[:, half:])]

    def _decide(self, answer: np.ndarray) -> np.ndarray:
        """Class values (tile, y, x) of the network's answer; -1 where there is none."""
        values = np.array([each["Value"] for each in self._keys["Classes"]], np.int64)
        output, threshold = self._keys["GeodlDask"]["output"], self._keys["GeodlDask"].get("threshold")
        if output == "classes":
            index = (answer[:, 0] if answer.ndim == 4 else answer).astype(np.int64)
            is_known = (index >= 0) & (index < len(values))
            return np.where(is_known, values[np.where(is_known, index, 0)], -1)
        scores = answer[:, None] if answer.ndim == 3 else answer
        if scores.shape[1] > 1:
            return np.where(np.isnan(scores).any(axis=1), -1, values[scores.argmax(axis=1)])
        above = next(value for value in values if value != 0)
        below = next((value for value in values if value != above), 0)
        if threshold is None:
            threshold = 1.0 if output == "distance" else 0.5
        if output == "logits":
            threshold = math.log(threshold / (1 - threshold))
        decided = np.where(scores[:, 0] > np.float32(threshold), above, below)
        return np.where(np.isnan(scores[:, 0]), -1, decided)

    def _join(self, tiles: np.ndarray) -> np.ndarray:
        """(y, x) of the cores of (tile, y, x), which are whole tiles or, of a network with ModelPadding, cores."""
        (rows, height), (columns, width) = self._grid()
        margin = (tiles.shape[1] - height) // 2
        cores = tiles[:, margin : margin + height, margin : margin + width]
        return cores.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


class _TorchNetwork:
    """TorchScript (``.pt``) or torch.export (``.pt2``). ``batch_size``: the batch axis's fixed length, if it is."""

    def __init__(self, path: str, device: int) -> None:
        import torch

        self._torch = torch
        on_cpu = device == -1 or not torch.cuda.is_available()
        self._device = torch.device("cpu" if on_cpu else "cuda:%d" % max(device, 0))
        self.batch_size = None
        if not path.lower().endswith(".pt2"):
            with warnings.catch_warnings():  # of TorchScript's age
                warnings.simplefilter("ignore")
                self._module: Any = torch.jit.load(path, map_location=self._device).eval()
            return
        program = torch.export.load(path)
        first = program.graph_signature.user_inputs[0]
        count = next(node.meta["val"] for node in program.graph.nodes if node.name == first).shape[0]
        self.batch_size = count if isinstance(count, int) else None
        self._module = program.module().to(self._device)

    def __call__(self, inputs: list[np.ndarray]) -> np.ndarray:
        with self._torch.inference_mode():
            answer = self._module(*[self._torch.from_numpy(each).to(self._device) for each in inputs])
            return np.asarray((answer.float() if answer.is_floating_point() else answer).cpu().numpy())


class _OnnxNetwork:
    """ONNX (``.onnx``). ``batch_size``: the batch axis's fixed length, if it is."""

    def __init__(self, path: str, device: int) -> None:
        import onnxruntime

        wanted = ["CPUExecutionProvider"] if device == -1 else ["CUDAExecutionProvider", "CPUExecutionProvider"]
        there = onnxruntime.get_available_providers()
        self._session = onnxruntime.InferenceSession(path, providers=[each for each in wanted if each in there])
        count = self._session.get_inputs()[0].shape[0]
        self.batch_size = count if isinstance(count, int) else None

    def __call__(self, inputs: list[np.ndarray]) -> np.ndarray:
        names = [each.name for each in self._session.get_inputs()]
        return np.asarray(self._session.run(None, dict(zip(names, inputs)))[0])


def _parameter(name: str, kind: str, title: str, what: str, required: bool) -> dict[str, Any]:
    return {"name": name, "dataType": kind, "displayName": title, "description": what, "required": required}
