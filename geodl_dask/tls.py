"""Encrypted connections between client, scheduler and workers: one file, or ``auto`` -> what Dask is to be told.

A Dask scheduler runs what it is sent, by whoever reaches its port. With TLS both ends of each connection prove that
they have a certificate of the same authority, before anything is sent.
"""

from __future__ import annotations

import logging
import ssl
import stat
from pathlib import Path

from distributed.security import Security

from .errors import MissingDependencyError, RequestError

log = logging.getLogger(__name__)

AUTO = "auto"
"""A certificate that is made for one run, and is never written to disk."""
HOW_TO_MAKE = (
    "a PEM file with the authority's certificate, and the certificate and key of this run, is needed, such as `source "
    "cluster/tls.sh` makes"
)


def security_of(tls: str | None) -> Security | None:
    """What Dask is to be told: everybody shows the certificate of the file, and takes only those of its authority.

    tls : path of a PEM file, or ``"auto"`` where all processes are started from this one. None: nothing.
    Raises RequestError for a file that is none; MissingDependencyError for ``"auto"`` without cryptography.
    """
    if tls is None:
        return None
    if tls == AUTO:
        try:
            return Security.temporary()
        except ImportError as error:
            raise MissingDependencyError(
                'tls is auto, and making a certificate needs cryptography: pip install "geodl_dask[tls]"'
            ) from error
    path = str(Path(tls).absolute())  # workers may stand in another folder
    _require_key(path)
    roles = {f"tls_{role}_{part}": path for role in ("client", "scheduler", "worker") for part in ("cert", "key")}
    return Security(require_encryption=True, tls_ca_file=path, **roles)


def _require_key(path: str) -> None:
    try:
        mode = Path(path).stat().st_mode
        context = ssl.create_default_context(cafile=path)
        context.load_cert_chain(path)
    except ssl.SSLError as error:
        raise RequestError(f"tls is {path}, which does not hold what is needed ({error}); {HOW_TO_MAKE}.") from error
    except OSError as error:
        raise RequestError(f"tls is {path}, which cannot be read ({error.strerror}); {HOW_TO_MAKE}.") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("Others may read or write %s, and with it run code in your name: chmod 600 %s", path, path)
