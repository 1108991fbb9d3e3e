"""What is possible now: connection, rights, selection."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from gpuserve_tui.actions import Situation
from gpuserve_tui.view.cells import age

if TYPE_CHECKING:
    from gpuserve_tui.app import FleetApp

SILENT_S = 5.0
"""A connected daemon sends figures every second; after this long without any they are old, and nothing is decided on them."""


def situation_of(app: FleetApp) -> Situation:
    """What decides which actions are possible."""
    silent_s = app.monotonic() - app.heard_at
    why = ""
    if app.lost is not None or app.status is None:
        why = "not connected to the daemon"
    elif silent_s > SILENT_S:
        why = f"the data is {age(silent_s)} old"
    names = app.outlook.marked or frozenset(filter(None, [app.current.selected_replica]))
    found = tuple(replica for replica in (app.status.replicas if app.status else []) if replica.id in names)
    profile = found[0].profile if found else None
    if app.pane == "profiles":
        profile = app.profiles.selected.name if app.profiles.selected else None
    busy = frozenset(app.acting.busy)
    gpu = app.board.gpu(app.current.selected_gpu)
    return Situation(app.pane, not why, why, app.read_only, found, profile, busy, gpu)


def host_of(path: Path) -> str:
    """What the first line calls this daemon: the machine, and the socket where it is not the usual one."""
    name = socket.gethostname().split(".")[0]
    return name if "gpuserve" in path.parts or path.parent.name == "run" else f"{name}:{path}"
