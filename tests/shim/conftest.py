"""Real shims under a private folder, started and ended by each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.shim.yard import Connect, IsAlive, WaitUntil, Yard, alive, until

from gpuserved.host import shimclient as sc


@pytest.fixture
def yard() -> Iterator[Yard]:
    top = Path(tempfile.mkdtemp(prefix="gs-shim-"))  # short: socket paths must fit
    made = Yard(top)
    yield made
    made.clean()
    shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connections that are closed after the test."""
    made: list[sc.ShimConnection] = []

    async def open_one(folder: Path, who: str | None = None) -> sc.ShimConnection:
        connection = await sc.ShimConnection.connect(folder / "shim.sock")
        made.append(connection)
        if who is not None:
            await connection.hello(who)
        return connection

    yield open_one
    for connection in made:
        connection.close()


@pytest.fixture
def wait_until() -> WaitUntil:
    return until


@pytest.fixture
def is_alive() -> IsAlive:
    return alive
