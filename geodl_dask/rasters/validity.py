"""Which pixels have an observation: (y, x) bool, True = valid."""

from __future__ import annotations

import numpy as np


def validity(pixels: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
    """(y, x) bool: every band unmasked and finite.

    pixels : (band, y, x). masks : (band, y, x) uint8, 0 = masked, or None where nothing is.
    """
    valid = np.ones(pixels.shape[1:], bool) if masks is None else (masks != 0).all(axis=0)
    if np.issubdtype(pixels.dtype, np.floating):
        valid &= np.isfinite(pixels).all(axis=0)
    return valid


def validity_by_nodata(pixels: np.ndarray, nodata: float | None) -> np.ndarray:
    """(y, x) bool: every band finite and another value than ``nodata``. pixels : (band, y, x)."""
    masks = None if nodata is None or nodata != nodata else (pixels != nodata).astype(np.uint8)
    return validity(pixels, masks)
