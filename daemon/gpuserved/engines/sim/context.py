"""What the routes of one server share."""

from __future__ import annotations

import time
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
    responses: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stored responses by id."""
    load: int = 0
    """Generating requests under way, where they are counted."""
    sleeping: bool = False
    paused: bool = False

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
