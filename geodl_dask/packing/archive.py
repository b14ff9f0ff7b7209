"""Zip archives whose bytes depend on their members alone."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
_ORDINARY_FILE = 0o100644 << 16
_UNIX = 3


def write_archive(path: Path, members: Mapping[str, bytes | Path]) -> None:
    """Write a zip archive to the new file ``path``: of each member its bytes, or those of a file.

    Nothing is compressed: weights hardly can be, and what zlib makes of bytes differs from one version to another.
    """
    with path.open("xb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name, _TIME)
            member.create_system, member.external_attr = _UNIX, _ORDINARY_FILE
            if isinstance(content, bytes):
                archive.writestr(member, content)
                continue
            member.file_size = content.stat().st_size  # by which zipfile knows whether 32 bits will do
            with content.open("rb") as source, archive.open(member, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        archive.close()
        file.flush()
        os.fsync(file.fileno())
