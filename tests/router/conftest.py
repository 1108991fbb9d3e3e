"""One bench a test."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

# Test files share modules of this folder; under --import-mode=importlib the repository is not on the path by itself.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

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
