"""Broken bytes and broken values, the same for the same random numbers."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

VALUES = [
    None, True, 0, -1, 1, 3.5, 64, 256, 2**31, 10**30, 1e308, float("nan"), float("inf"), "", " ", "..", "../evil",
    "/etc/passwd", "/dev/zero", "a\\b", "\0", "\n", "\ud800", "x" * 3000, "7", "2:16", "00:00:00", "32GB", "=", ";",
    [], [[]], [0], [1, 2, 3], ["a"], [None], {}, {"a": {}}, {"format": 1}, [{}],
]  # fmt: skip
TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\ud800", b"null", b"NaN", b"1e999", b"\0", b"\xff\xfe", b"\r\n",
    b"\xef\xbb\xbf", b"9" * 5000, b"[" * 100_000, b'{"a":' * 50_000, b"PK\x03\x04", b"\xc3", b"&a [*a]",
    b"!!python/object", b"- ", b"? ", b"|", b">", b"%", b"\t", b"<<: ", b"*x", b"---\n",
]  # fmt: skip


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Some bytes or tokens replaced, put in or taken out, or the end cut off."""
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(content) + 1)
        end = start + rng.choice([0, 0, 1, 1, 2, rng.randrange(200), len(content)])
        put = rng.choice([b"", rng.randbytes(1), rng.choice(TOKENS), content[start:end] * 2])
        content = content[:start] + put + content[end:]
    return content


def mutate_values(rng: random.Random, record: Any) -> Any:
    """A copy of a JSON value with some values replaced, removed or added."""
    record = copy.deepcopy(record)
    for _ in range(rng.randrange(1, 4)):
        node = record
        while isinstance(node, dict | list) and node:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if isinstance(node[key], dict | list) and rng.random() < 0.6:
                node = node[key]
                continue
            if rng.random() < 0.2:
                del node[key]
            else:
                node[key] = copy.deepcopy(rng.choice(VALUES))
            break
    return record


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Its values, its bytes, or both."""
    if rng.random() < 0.6:
        content = json.dumps(mutate_values(rng, json.loads(content))).encode()
        if rng.random() < 0.8:
            return content
    return mutate_bytes(rng, content)
