"""`status`: the whole fleet at one moment, from memory."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import gpuserved
from gpuserved.api.types import ReplicaView, Status, SupervisorView
from gpuserved.fleet import views
from gpuserved.replica.controller import ReplicaController

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet


def replica(fleet: Fleet, owner: ReplicaController) -> ReplicaView:
    """One replica at one moment."""
    since = fleet.inspection.since(owner.id)
    return views.replica_view(owner, fleet.router.stats, since, leaving=owner.id in fleet.let_go)


def status(fleet: Fleet) -> Status:
    """See `FleetPort`."""
    supervisor = SupervisorView(
        pid=os.getpid(),
        version=gpuserved.__version__,
        uptime_s=time.monotonic() - fleet.began,
        degraded=fleet.degraded or fleet.quarantine.problem,
        python=sys.executable,
        service=fleet.service,
        failed_upgrade=fleet.failed_upgrade,
    )
    return Status(
        generation=fleet.generation,
        version=gpuserved.__version__,
        endpoint=fleet.endpoint,
        supervisor=supervisor,
        router=views.router_view(fleet.router),
        gpus=fleet.gpu_list(),
        replicas=[replica(fleet, fleet.owners[name]) for name in sorted(fleet.owners, key=views.order)],
        models=views.model_views(fleet.owners.values(), fleet.router.stats),
        load=views.total_load(fleet.owners.values()),
        rollouts=fleet.rolls.views(),
    )
