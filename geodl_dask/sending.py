"""Files that workers lack, sent to them by the client: through the scheduler, once to a node, and only if they ask.

A worker that has not got some files asks for them by an event, which the scheduler hands on to the client. That answers
with the files, piece by piece, to all workers that have asked by then; neither it nor the scheduler ever holds more of
them than a piece. They are kept in the node's cache by what they are (their digests), for the workers beside and the
runs to come. Nothing is scattered: a worker that comes later, or again, asks in its turn.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Client, Worker
from filelock import FileLock

from .cache import cache_folder, keep
from .digest import digest_file
from .errors import RunError

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 23
"""What is under way at once."""
SILENCE_S = 120.0
"""A worker that has heard nothing of what it asked for as long as that gives up."""
_AGAIN_S = 3.0
_GATHER_S = 0.3
"""Neighbours ask at about the same time, and get one answer together."""


@dataclass(frozen=True)
class Parcel:
    """Files that a worker may have to be sent, by what they are."""

    topic: str
    """Under which workers ask for it."""
    files: tuple[tuple[str, str], ...]
    """Of each the name, relative, with forward slashes, and its sha256."""

    @property
    def key(self) -> str:
        """What these files have in common with no others."""
        return hashlib.sha256(json.dumps(self.files).encode()).hexdigest()[:32]

    def fetch(self, worker: Worker) -> Path:
        """The folder of this node's cache with the files, which are asked for if it is not there.

        Runs in a thread of a worker. Raises RunError where they do not come, and OSError.
        """
        place = cache_folder() / "models" / self.key
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock(place):
            return keep(place, lambda folder: _Arrival(self, folder).wait(worker))


def _lock(place: Path) -> AbstractContextManager[object]:
    """Held by the one process of a node that is sent something, while the others wait for it."""
    try:
        return FileLock(f"{place}.lock").acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        return nullcontext()  # each is sent it then


_arrivals: dict[str, _Arrival] = {}


@dataclass
class _Arrival:
    """A parcel that a worker is being sent."""

    parcel: Parcel
    folder: Path
    ended: Future[None] = field(default_factory=Future)
    heard: float = field(default_factory=time.monotonic)

    def wait(self, worker: Worker) -> list[str]:
        """The names of the files, once all are in the folder. Raises RunError."""
        self.folder.mkdir()
        _arrivals[self.parcel.key] = self
        try:
            self._ask_until_ended(worker)
        finally:
            del _arrivals[self.parcel.key]
        for name, digest in self.parcel.files:
            if digest_file(str(self.folder / name)).hex() != digest:
                raise RunError(f"{name} arrived damaged, or was changed meanwhile. Start the run again.")
        return [name for name, _ in self.parcel.files]

    def _ask_until_ended(self, worker: Worker) -> None:
        question = {"key": self.parcel.key, "worker": worker.contact_address or worker.address}
        began = asked = self.heard
        worker.log_event(self.parcel.topic, question)
        while True:
            with suppress(TimeoutError):
                return self.ended.result(timeout=1)
            now = time.monotonic()
            if now - self.heard > SILENCE_S:
                raise RunError(f"files were asked for, and for {SILENCE_S:.0f} s the client has sent none of them.")
            if self.heard == began and now - asked > _AGAIN_S:  # the client may not have listened yet
                worker.log_event(self.parcel.topic, question)
                asked = now

    def write(self, name: str, offset: int, piece: bytes) -> None:
        """Keep a piece of one of the files; it may come twice."""
        if name not in dict(self.parcel.files):
            raise RunError(f"{name} was not asked for.")
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(piece)
        self.heard = time.monotonic()


async def _take(key: str, name: str, offset: int, piece: bytes) -> None:
    """Runs in a worker's event loop, which goes on meanwhile."""
    if arrival := _arrivals.get(key):
        try:
            await asyncio.to_thread(arrival.write, name, offset, piece)
        except OSError as error:
            _take_end(key, str(error))


def _take_end(key: str, cause: str | None) -> None:
    """Runs on a worker. cause : why not all of it came."""
    arrival = _arrivals.get(key)
    if arrival is None or arrival.ended.done():
        return
    if cause is None:
        arrival.ended.set_result(None)
    else:
        arrival.ended.set_exception(RunError(f"not all files could be sent: {cause}"))


def pack_parcel(topic: str, files: Mapping[str, str]) -> Parcel:
    """The parcel of some files of this machine: of each its name in the parcel, and its path."""
    return Parcel(topic, tuple((name, digest_file(path).hex()) for name, path in sorted(files.items())))


@contextmanager
def sending(client: Client, parcels: Mapping[Parcel, Mapping[str, str]]) -> Iterator[None]:
    """While the block lasts, workers that ask for a parcel are sent the files of this machine that are in it."""
    sender = _Sender(client, {parcel.key: dict(files) for parcel, files in parcels.items()})
    topics = {parcel.topic for parcel in parcels}
    for topic in topics:
        client.subscribe_topic(topic, sender.hear)
    try:
        yield
    finally:
        sender.has_ended.set()
        with suppress(Exception):  # the scheduler may be lost, or closed
            for topic in topics:
                client.unsubscribe_topic(topic)


class _Sender:
    """Answers those that ask. Lives in the client's event loop."""

    def __init__(self, client: Client, files: dict[str, dict[str, str]]) -> None:
        self.has_ended = threading.Event()
        self._client, self._files = client, files
        self._asked: dict[str, set[str]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Note who asks for what."""
        key, worker = event[1]["key"], event[1]["worker"]
        self._asked.setdefault(key, set()).add(worker)
        if key in self._files and key not in self._tasks:
            self._tasks[key] = asyncio.get_running_loop().create_task(self._answer(key))

    async def _answer(self, key: str) -> None:
        try:
            await asyncio.sleep(_GATHER_S)
            while workers := sorted(self._asked.pop(key, ())):
                log.info("%d workers have no files of the model, and are sent them.", len(workers))
                cause = None
                try:
                    for name, path in self._files[key].items():
                        await self._send(workers, key, name, Path(path))
                except OSError as error:
                    cause = str(error)
                await self._tell(workers, _take_end, key, cause)
        finally:
            del self._tasks[key]

    async def _send(self, workers: list[str], key: str, name: str, path: Path) -> None:
        with path.open("rb") as file:
            offset = 0
            while (piece := await asyncio.to_thread(file.read, PIECE_BYTES)) or not offset:
                if self.has_ended.is_set():
                    raise OSError("the run has ended")
                await self._tell(workers, _take, key, name, offset, piece)
                offset += max(1, len(piece))

    async def _tell(self, workers: list[str], function: Any, *words: Any) -> None:
        """Run something on those of the workers that are there still."""
        awaited: Any = self._client.run(function, *words, workers=workers, on_error="return")
        for worker, answer in (await awaited).items():
            if isinstance(answer, Exception):
                log.debug("%s does not take it: %s", worker, answer)
