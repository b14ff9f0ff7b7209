"""A canary for each attack: what would happen, were it to succeed, and a look whether it did."""

from __future__ import annotations

import os
import re
import secrets
import select
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from geodl_dask.cli import cli
from geodl_dask.errors import GeodlError


class Canary:
    """A folder that a payload would make, a server that it would call, a secret that it would read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.witness = folder, folder / "witness"
        self.secret = f"secret-{secrets.token_hex(16)}-"
        self.secret_file = folder / "secret.key"
        self.secret_file.write_bytes(self.secret.encode() * 64)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    @property
    def payload(self) -> str:
        """An expression of Python."""
        return f"__import__('os').mkdir({str(self.witness)!r})"

    def __reduce__(self) -> tuple:
        """Pickled, it is the payload."""
        return os.mkdir, (str(self.witness),)

    def sings(self, *told: bytes) -> list[str]:
        """What has happened, in words; empty where nothing has. It is quiet again afterwards."""
        happened = ["code ran"] if self.witness.exists() else []
        shutil.rmtree(self.witness, ignore_errors=True)
        while select.select([self.listener], [], [], 0)[0]:
            self.listener.accept()[0].close()
            happened.append("a server was called")
        return happened + ["the secret was told" for each in told if self.secret.encode() in each]


class Attack:
    """Tries something, asserts how it ends, and that the canary was quiet; the table is made from that."""

    def __init__(self, canary: Canary, told: list[tuple[str, object]]) -> None:
        self.canary, self._told = canary, told

    def proves_real(self) -> None:
        """What has just been done, without geodl_dask, was the attack: the canary sang."""
        assert self.canary.sings() == ["code ran"]

    @contextmanager
    def refused(self, says: str) -> Iterator[None]:
        """The block ends in an error of ours that says so."""
        with pytest.raises(GeodlError, match=says):
            yield
        self._end("refused")

    def refused_by_command(self, says: str, *words: str) -> str:
        """The command ends with status 2 and says so; returns what it printed."""
        done = CliRunner().invoke(cli, list(words))
        assert done.exit_code == 2, done.output
        assert re.search(says, done.output, re.DOTALL), done.output
        self._end("refused", done.output.encode())
        return done.output

    def harmless(self, *told: bytes) -> None:
        """What has just been done did what was asked, and nothing else. told : what came out of it."""
        self._end("harmless", *told)

    def is_open(self, *told: bytes) -> None:
        """What has just been done was the attack, as SECURITY.md says. told : what it told of the secret."""
        assert self.canary.sings(*told) == ["the secret was told"] * len(told)
        self._told.append(("attack", "open"))

    def _end(self, word: str, *told: bytes) -> None:
        assert self.canary.sings(*told) == []
        self._told.append(("attack", word))


@pytest.fixture
def canary(tmp_path) -> Iterator[Canary]:
    made = Canary(tmp_path / "canary")
    yield made
    made.listener.close()


@pytest.fixture
def attack(canary, request) -> Attack:
    return Attack(canary, request.node.user_properties)


@pytest.fixture
def detect(pair, tmp_path):
    """The words of the command for a model."""
    return lambda model, *more: ("detect-change", *map(str, pair), str(tmp_path / "change.tif"), str(model), *more)
