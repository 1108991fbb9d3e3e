"""What the routes of one server share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gpuserved.engines.sim import body as request_body
from gpuserved.engines.sim.engine_client import EngineClient
from gpuserved.engines.sim.errors import ApiError
from gpuserved.engines.sim.flags import Options
from gpuserved.engines.sim.generation import Generator
from gpuserved.engines.sim.logs import Log
from gpuserved.engines.sim.metrics import Metrics
from gpuserved.engines.sim.sabotage import Sabotage


@dataclass
class Server:
    """One API server."""

    options: Options
    engine: EngineClient
    generator: Generator
    metrics: Metrics
    sabotage: Sabotage
    log: Log
    created: int = field(default_factory=lambda: int(time.time()))
    _responses: dict[str, dict[str, Any]] = field(default_factory=dict)
    _load: int = 0
    _sleeping: bool = False
    _paused: bool = False

    @property
    def load(self) -> int:
        """Generating requests under way, where they are counted."""
        return self._load

    @property
    def sleeping(self) -> bool:
        """It pretends to sleep."""
        return self._sleeping

    @property
    def paused(self) -> bool:
        """It pretends to be paused."""
        return self._paused

    @contextmanager
    def generating(self) -> Iterator[None]:
        """One generating request, from its first byte to its last."""
        tracked = 1 if self.options.load_tracking else 0
        self._load += tracked
        try:
            yield
        finally:
            self._load -= tracked

    def sleep(self, level: int | None) -> None:
        """Pretend to sleep, or with None to wake up; the gauge says so."""
        self._sleeping = level is not None
        self.metrics.sleep_state(level)

    def pause(self, *, paused: bool) -> None:
        """Pretend to pause, or to resume."""
        self._paused = paused

    def store_response(self, name: str, content: dict[str, Any]) -> None:
        """Keep a response under its id."""
        self._responses[name] = content

    def stored_response(self, name: str) -> dict[str, Any]:
        """A stored response; another replica's is unknown here.

        :raises ApiError: 404.
        """
        if name not in self._responses:
            raise ApiError(
                404, f"Response with id '{name}' not found.", "invalid_request_error", "response_id"
            )
        return self._responses[name]

    def check_model(self, body: dict[str, Any]) -> None:
        """Refuse requests for another model, with a line in the log.

        :raises ApiError: 404.
        """
        try:
            request_body.check_model(body, self.options)
        except ApiError as error:
            self.log.complain(
                "serving.py:274",
                f"Error with model error=ErrorInfo(message={error.message!r}, type={error.kind!r}, param='model', "
                f"code={error.status})",
            )
            raise
