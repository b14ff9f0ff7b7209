"""Who is at work in a folder: a lock, and beside it a file that names its holder and is touched while that lives.

The system takes a lock back however a process ends. But not every network file system tells other machines of its
locks, and some have none; of the file they all hear.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import OutputExistsError

log = logging.getLogger(__name__)

_BEAT_EVERY_S, _SILENT_AFTER_S, _PATIENCE_S = 15, 120, 60
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class Post:
    """What one process at a time may do in a folder."""

    folder: Path
    """Where."""
    name: str = ""
    """What sets it apart from others there."""

    @property
    def lock(self) -> Path:
        """Its lock."""
        return self.folder / (f"{self.name}.lock" if self.name else "lock")

    @property
    def owner(self) -> Path:
        """The file that names its holder."""
        return self.folder / (f"{self.name}.owner" if self.name else "owner")

    def owner_in_words(self) -> str:
        """The process that holds it, or did, for a sentence; nothing where that is not known."""
        host, process = self._holder()
        return f" (process {process} on {host})" if host else ""

    def locked(self, work: str, *, patience_s: float = 0) -> AbstractContextManager[object]:
        """Hold the lock. work : what a holder does, for the message; patience_s : others may hold it that long.

        Raises OutputExistsError where another process of this machine holds it.
        """
        try:
            return FileLock(self.lock, fallback_to_soft=False).acquire(timeout=patience_s)
        except Timeout as error:
            raise OutputExistsError(
                f"Another run{self.owner_in_words()} is {work}. Wait for its end, or choose another name."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("There are no locks on the file system of %s: let no other run do the same there.", self.folder)
            return nullcontext()

    def entered(self, work: str) -> AbstractContextManager[object]:
        """Hold the lock for a moment, as others do for a moment each; not where one holds it for as long as it works.

        Raises OutputExistsError.
        """
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self.locked(work, patience_s=0.5)
            except OutputExistsError:
                if self._silent_s() < 2 * _BEAT_EVERY_S or time.monotonic() > until:
                    raise

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Say in the file that this process is at work, again and again; gone when it is not."""
        self.owner.write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(_BEAT_EVERY_S):
                with suppress(OSError):
                    os.utime(self.owner)

        thread = threading.Thread(target=beat, name="geodl-dask-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.owner.unlink(missing_ok=True)

    def require_vacant_elsewhere(self, work: str) -> None:
        """Raise OutputExistsError where a process of another machine does that work."""
        if elsewhere := self._elsewhere():
            raise OutputExistsError(
                f"{elsewhere} is {work}. Wait for its end, or choose another name; if it has died, go on "
                f"{_SILENT_AFTER_S} seconds later."
            )

    def await_vacancy_elsewhere(self, work: str) -> None:
        """The same, but wait until one that may have died gives a sign of life, or has been silent for long enough."""
        heard = self._heard()
        if elsewhere := self._elsewhere():
            log.warning("%s was %s. Waiting up to %s s to see whether it still is.", elsewhere, work, _SILENT_AFTER_S)
        while self._elsewhere():
            if self._heard() != heard:
                self.require_vacant_elsewhere(work)
            time.sleep(min(1, _SILENT_AFTER_S / 10))

    def _holder(self) -> tuple[str, str]:
        """Host and process; empty where they are not known, or just being written."""
        try:
            host, _, process = self.owner.read_text(encoding="utf-8", errors="replace").partition(" ")
        except OSError:
            return "", ""
        return host, process

    def _heard(self) -> float | None:
        """When the holder last gave a sign of life, by the file system's clock."""
        try:
            return self.owner.stat().st_mtime
        except OSError:
            return None

    def _silent_s(self) -> float:
        """For how long the holder has given none; without end where there is no holder."""
        heard = self._heard()
        if heard is None:
            return float("inf")
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=self.owner.name) as now:
            return Path(now.name).stat().st_mtime - heard

    def _elsewhere(self) -> str | None:
        """The process of another machine that is at work."""
        host, process = self._holder()
        if not host or host == socket.gethostname() or self._silent_s() > _SILENT_AFTER_S:
            return None
        return f"Process {process} on {host}"
