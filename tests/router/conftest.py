"""One bench a test."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.router.bench import Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A listening socket and a folder; replicas, tables and the router itself are up to the test."""
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        made = Bench(Path(folder), socket.create_server(("127.0.0.1", 0), backlog=512))
        try:
            yield made
        finally:
            await made.close()
