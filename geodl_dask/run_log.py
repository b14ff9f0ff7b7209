"""What happens in a run, as JSON lines for batch jobs: one object a line, with ``time`` (UTC) and ``event``.

Most of it arrives as log records: warnings, and those of `dispatch` that bring an event and its facts along. A log that
can no longer be written, of a full disk say, is said once, and the run goes on and ends as it would without it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from .errors import OutputError

PROGRESS_EVERY_S = 5.0
"""Seconds between two lines of progress, at the least."""
RATE_OVER_S = 120.0
"""The rate is that of so many last seconds."""

_log = logging.getLogger(__name__)


class Rate:
    """How fast pixels are done, of late."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, done_px: int) -> float:
        """Pixels a second, now that so many are done; 0 where it is the first time that this is known."""
        now = time.monotonic()
        self._seen.append((now, done_px))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        then, before_px = self._seen[0]
        return (done_px - before_px) / max(now - then, 1e-9)


class RunLog(logging.Handler):
    """Appends to a file, each line at once and whole, so that several runs may share it. Raises OutputError."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.DEBUG)
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputError(
                f"The log {path} cannot be written: {error.strerror}. Choose another --log-json."
            ) from error
        self._rate, self._last, self._is_lost = Rate(), float("-inf"), False

    def say(self, event: str, **facts: Any) -> None:
        """Write one line. Passwords and keys in URLs are left out."""
        said = {"time": _iso(datetime.now(UTC)), "event": event, **facts}
        line = json.dumps(_without_secrets(said), default=str, ensure_ascii=False)
        try:
            os.write(self._file, f"{line}\n".encode(errors="replace"))
        except OSError as error:
            if not self._is_lost:
                self._is_lost = True  # first, for the warning comes here too
                _log.warning("The log of --log-json cannot be written any more: %s.", error.strerror)

    def emit(self, record: logging.LogRecord) -> None:
        """Write what a record of a log brings, if it is for this file."""
        try:
            event, facts = getattr(record, "event", None), getattr(record, "facts", {})
            if event == "progress":
                self._say_progress(**facts)
            elif event:
                self.say(event, message=record.getMessage(), **facts)
            elif record.levelno >= logging.WARNING:
                self.say("warning", message=record.getMessage())
        except Exception:  # as handlers do: a log must not end a run
            self.handleError(record)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()

    def _say_progress(self, done: int, blocks: int, done_px: int, all_px: int) -> None:
        rate, now = self._rate.note(done_px), time.monotonic()
        if now - self._last < PROGRESS_EVERY_S and done < blocks:
            return
        self._last = now
        left_s = (all_px - done_px) / rate if rate else None
        ends = None if left_s is None else _iso(datetime.now(UTC) + timedelta(seconds=left_s))
        self.say(
            "progress", blocks_done=done, blocks=blocks, pixels_done=done_px, pixels=all_px,
            pixels_per_s=round(rate), estimated_end=ends,
        )  # fmt: skip


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _without_secrets(value: Any) -> Any:
    from .rasters.network import without_secrets

    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: _without_secrets(each) for key, each in value.items()}
    return [_without_secrets(each) for each in value] if isinstance(value, list | tuple) else value
