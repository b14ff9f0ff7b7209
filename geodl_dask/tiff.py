"""One tag of a finished TIFF, set right in its place, so that nothing in the file moves. Standard library only."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

EXTRA_SAMPLES, SHORT = 338, 3


def clear_alpha(path: Path) -> None:
    """Say of a second band beside a palette, in every resolution of a TIFF or BigTIFF, that it is no transparency.

    GDAL (3.10, in frmts/gtiff) copies any two bands, of which the first has a palette, to colours and transparency,
    and takes no option for it; viewers then hide what has a low value there.
    """
    with path.open("r+b") as file:
        order = {b"II": "<", b"MM": ">"}[file.read(2)]
        is_big = _read(file, 2, order + "H") == 43
        word, count, entry_bytes = ("Q", "Q", 20) if is_big else ("I", "H", 12)
        place = _read(file, 8 if is_big else 4, order + word)
        while place:
            first = place + struct.calcsize(order + count)
            entries = _read(file, place, order + count)
            for entry in range(first, first + entries * entry_bytes, entry_bytes):
                # One value of this type stands in the entry itself, after its tag, type and number of values.
                if _read(file, entry, order + "H") == EXTRA_SAMPLES and _read(file, entry + 2, order + "H") == SHORT:
                    file.seek(entry + entry_bytes - struct.calcsize(order + word))
                    file.write(struct.pack(order + "H", 0))
            place = _read(file, first + entries * entry_bytes, order + word)


def _read(file: BinaryIO, place: int, kind: str) -> int:
    file.seek(place)
    number: int = struct.unpack(kind, file.read(struct.calcsize(kind)))[0]
    return number
