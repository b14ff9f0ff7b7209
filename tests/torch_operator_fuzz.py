"""Call torch operators with hostile arguments: ``python torch_operator_fuzz.py CASES NAME...``. Errors are fine.

Before each call its operator, its case and the calls that torch took are printed: who runs this knows which crashed.
With the name ``index``, those that take an index are called with every wrong one.
"""

import random
import resource
import sys
import warnings
import zlib
from contextlib import suppress

import torch

INTEGERS = [-(2**63), -(2**31), -7, -2, -1, -1, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 17, 1000, 2**31, 2**40, 2**62, 2**63 - 1]
FLOATS = [0.0, 1.0, -1.0, 0.5, 2.0, 1e-5, 1e30, -1e30, float("nan"), float("inf"), float("-inf")]
SHAPES = [(), (0,), (1,), (2,), (3,), (4,), (6,), (2, 3), (3, 2), (4, 4), (0, 3), (1, 4, 4), (2, 3, 4), (2, 4, 4, 4)]
SHAPES += [(1, 2, 8, 8), (2, 3, 8, 8), (2, 3, 3, 3), (1, 1, 2, 2), (2, 0, 4, 4), (1, 2, 4, 4, 4), (1, 1, 1, 1, 1, 1)]
KINDS = [torch.float32] * 5 + [torch.int64] * 3 + [torch.bool, torch.uint8, torch.int32, torch.float64, torch.float16]
ENUMERATIONS = {
    "ScalarType": [None, *KINDS],
    "Layout": [None, torch.strided],
    "MemoryFormat": [None, torch.contiguous_format, torch.channels_last],
}  # torch takes any number for these, and crashes on one that is none
WORDS = ["mean", "sum", "none", "zeros", "border", "reflect", "replicate", "circular", "constant", "bilinear"]
WORDS += ["nearest", "bicubic", "trunc", "floor", "tanh", "ij", "same", "valid", "prod", "amax", "fro", "", "ab,bc->ac"]


def tensor(rng: random.Random, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    shape = rng.choice(SHAPES) if shape is None else shape
    kind = rng.choice(KINDS)
    made = torch.rand(shape, generator=torch.Generator().manual_seed(rng.randrange(9999)))
    if kind is torch.int64 or kind is torch.int32:
        made = (made * 4 - (1 if rng.random() < 0.3 else 0)).to(kind)
        if made.numel() and rng.random() < 0.6:
            made.view(-1)[rng.randrange(made.numel())] = max(min(rng.choice(INTEGERS), 2**31 - 1), -(2**31)) if (
                kind is torch.int32) else rng.choice(INTEGERS)  # fmt: skip
    else:
        made = (made * 4).to(kind)
        if kind.is_floating_point and made.numel() and rng.random() < 0.3:
            made.view(-1)[rng.randrange(made.numel())] = rng.choice(FLOATS)
    change = rng.random()
    if change < 0.1 and made.dim() > 1:
        made = made.transpose(0, -1)
    elif change < 0.2 and made.dim():
        made = made[:1].expand(made.shape) if made.shape[0] else made
    elif change < 0.25 and made.dim() == 4:
        made = made.contiguous(memory_format=torch.channels_last)
    return made


def value(rng: random.Random, kind: str, shape: tuple[int, ...]):
    """Something of a schema's type; what torch does not take ends in an error of torch."""
    if kind.startswith("Optional["):
        return None if rng.random() < 0.4 else value(rng, kind[len("Optional[") : -1], shape)
    if kind.startswith("List["):
        return [value(rng, kind[len("List[") : -1], shape) for _ in range(rng.choice([0, 1, 1, 2, 2, 2, 3, 4, 6]))]
    if kind == "Tensor":
        return tensor(rng, shape if rng.random() < 0.5 else None)
    if kind in ENUMERATIONS:
        return rng.choice(ENUMERATIONS[kind])
    small = rng.random() < 0.7
    if kind in ("int", "SymInt"):
        return rng.choice([-1, 0, 1, 1, 2, 2, 3, 4]) if small else rng.choice(INTEGERS)
    if kind == "float":
        return rng.choice(FLOATS)
    if kind in ("number", "Scalar"):
        return rng.choice([1, 2, 0.5]) if small else rng.choice([*INTEGERS, *FLOATS])
    return {"bool": rng.random() < 0.5, "str": rng.choice(WORDS)}.get(kind)


def call(name: str, number: int) -> bool:
    """One call with the arguments of case ``number``; whether torch took them."""
    rng = random.Random(f"{name} {number}")
    schema = rng.choice(torch._C._jit_get_schemas_for_operator(f"aten::{name}"))
    shape = rng.choice(SHAPES)
    args, named = [], {}
    for each in schema.arguments:
        is_number = any(word in str(each.real_type) for word in ENUMERATIONS)
        kind = "ScalarType" if each.name == "dtype" else str(each.real_type if is_number else each.type)
        if each.has_default_value() and rng.random() < 0.5:
            if each.kwarg_only:
                continue
            made = each.default_value
        else:
            made = value(rng, kind, shape)
        if each.kwarg_only:
            named[each.name] = made
        else:
            args.append(made)
    packet = getattr(torch.ops.aten, name)
    try:
        getattr(packet, schema.overload_name or "default")(*args, **named)
    except Exception:
        return False
    return True


ops = torch.ops.aten
WITH_INDEX = {
    "embedding": lambda pixels, at: ops.embedding(pixels[0, 0], at),
    "gather": lambda pixels, at: ops.gather(pixels, 1, at),
    "scatter": lambda pixels, at: ops.scatter(pixels, 2, at, pixels),
    "scatter, value": lambda pixels, at: ops.scatter(pixels, 3, at, 1.0),
    "scatter_add": lambda pixels, at: ops.scatter_add(pixels, 0, at, pixels),
    "scatter_add, expanded": lambda pixels, at: ops.scatter_add(
        pixels[0, 0], 0, at[0, 0, 0, :1].reshape(1, 1).expand(4, 4), pixels[0, 0]
    ),
    "gather, expanded": lambda pixels, at: ops.gather(pixels[0, 0], 0, at[0, 0, 0, :1].reshape(1, 1).expand(4, 4)),
    "scatter_reduce": lambda pixels, at: ops.scatter_reduce(pixels, 1, at, pixels, "amax"),
    "scatter_reduce, expanded": lambda pixels, at: ops.scatter_reduce(
        pixels[0, 0], 0, at[0, 0, 0, :1].reshape(1, 1).expand(4, 4), pixels[0, 0], "mean"
    ),
    "index": lambda pixels, at: ops.index(pixels, [at[0, 0], None, at[0, 0]]),
    "_unsafe_index": lambda pixels, at: ops._unsafe_index(pixels, [at[0, 0], None, at[0, 0]]),
    "_unsafe_masked_index": lambda pixels, at: ops._unsafe_masked_index(pixels, at[0, 0] == at[0, 0], [at[0, 0]], 0.0),
    "index_put": lambda pixels, at: ops.index_put(pixels, [at[0, 0], at[0, 0]], pixels[0, 0, 0]),
    "index_put, added": lambda pixels, at: ops.index_put(pixels, [at[0, 0]], pixels[:1, :1, :, :], True),
    "index_select": lambda pixels, at: ops.index_select(pixels, 1, at[0, 0, 0]),
    "index_select, last": lambda pixels, at: ops.index_select(pixels.flatten(), 0, at.flatten()),
    "index_add": lambda pixels, at: ops.index_add(pixels, 2, at[0, 0, 0], pixels),
    "index_add, flat": lambda pixels, at: ops.index_add(pixels.flatten(), 0, at.flatten(), pixels.flatten()),
    "index_copy": lambda pixels, at: ops.index_copy(pixels, 2, at[0, 0, 0], pixels),
    "index_fill": lambda pixels, at: ops.index_fill(pixels, 2, at[0, 0, 0], 1.0),
    "take": lambda pixels, at: ops.take(pixels, at),
    "take_along_dim": lambda pixels, at: ops.take_along_dim(pixels, at, 1),
    "max_unpool2d": lambda pixels, at: ops.max_unpool2d(pixels, at, [8, 8]),
    "one_hot": lambda pixels, at: ops.one_hot(at, 3),
    "select": lambda pixels, at: ops.select(pixels, 1, int(at.max())),
    "slice": lambda pixels, at: ops.slice(pixels, 1, int(at.max()), int(at.max()), 1),
    "narrow": lambda pixels, at: ops.narrow(pixels, 1, int(at.max()), 2),
    "unfold": lambda pixels, at: ops.unfold(pixels, 1, int(at.max()), 1),
    "grid_sampler": lambda pixels, at: [
        ops.grid_sampler(pixels, at[..., :2] * scale, mode, pad, True)
        for mode in (0, 1, 2) for pad in (0, 1, 2) for scale in (1.0, 1e30, float("nan"))
    ],
}  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cases, taken = int(sys.argv[1]), 0
    with torch.inference_mode(zlib.crc32(sys.argv[2].encode()) % 2 == 0):
        for name in sys.argv[2:]:
            for number in range(cases):
                print(name, number, taken, flush=True)
                taken += call(name, number)
        for name, wrong in WITH_INDEX.items() if "index" in sys.argv[2:] else ():
            for number in INTEGERS:
                print(name, number, taken, flush=True)
                with suppress(Exception):
                    wrong(torch.rand(2, 3, 4, 4), torch.full((2, 3, 4, 4), number))
                    taken += 1
    print("end", 0, taken)


if __name__ == "__main__":
    main()
