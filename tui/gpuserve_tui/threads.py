"""Calls to the daemon that must not hold up the screen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from textual.message import Message

from gpuserve_tui.link import sentence
from gpuserved.api.errors import GpuserveError


@dataclass
class Called(Message):
    """A call came back. `error`: a sentence for the operator."""

    value: Any
    error: str | None
    then: Callable[[Any], None]
    failed: Callable[[], None] | None = None


def calling(
    work: Callable[[], Any],
    then: Callable[[Any], None],
    failed: Callable[[], None] | None,
    post: Callable[[Message], None],
) -> None:
    """Run `work` on a thread of its own and post what it returned, or what went wrong."""

    def run() -> None:
        try:
            value, error = work(), None
        except (GpuserveError, OSError) as caught:
            value, error = None, sentence(caught)
        post(Called(value, error, then, failed))

    threading.Thread(target=run, name="call", daemon=True).start()
