"""What every request of one router shares."""

from __future__ import annotations

from dataclasses import dataclass

from gpuserved.core.replay import RetryBudget
from gpuserved.router.accesslog import AccessLog
from gpuserved.router.admission import Admission
from gpuserved.router.affinity import Affinity
from gpuserved.router.drain import Drain
from gpuserved.router.metrics import Metrics
from gpuserved.router.poison import Poison
from gpuserved.router.request import InFlight


@dataclass(frozen=True)
class Context:
    """Each part has one owner: itself."""

    admission: Admission
    affinity: Affinity
    poison: Poison
    budget: RetryBudget
    metrics: Metrics
    in_flight: InFlight
    drain: Drain
    access_log: AccessLog | None
