# ruff: noqa
"""How a batch of tiles lies in a block: rows by columns, or one column where no rectangle has that many."""

import math

import numpy as np


def rectangle(batch_size):
    rows = int(math.sqrt(batch_size))
    while rows > 1 and batch_size % rows:
        rows -= 1
    return (rows, batch_size // rows) if rows > 1 or batch_size == 1 else (batch_size, 1)


def block_to_batch(block, height, width, padding, rows, cols):
    inner_y, inner_x = height - 2 * padding, width - 2 * padding
    batch = np.zeros((rows * cols, block.shape[0], height, width), dtype=block.dtype)
    for b in range(rows * cols):
        y, x = b // cols * inner_y, b % cols * inner_x
        part = block[:, y : y + height, x : x + width]
        batch[b, :, : part.shape[1], : part.shape[2]] = part
    return batch


def batch_to_block(batch, rows, cols):
    _, bands, height, width = batch.shape
    block = np.zeros((bands, rows * height, cols * width), dtype=batch.dtype)
    for b in range(rows * cols):
        y, x = b // cols * height, b % cols * width
        block[:, y : y + height, x : x + width] = batch[b]
    return block
