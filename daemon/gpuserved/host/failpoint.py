"""The failpoints that exist: every step at which a test can have the supervisor, or a shim, killed. See `shim/failpoint.py`.

The supervisor passes the variable on to its shims; each program dies at its own steps only.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from gpuserved.api.errors import Invalid
from gpuserved.shim.failpoint import VARIABLE, arm, parse, reach

__all__ = ["POINTS", "SHIM_POINTS", "VARIABLE", "arm_from", "reach"]

POINTS: Mapping[str, str] = {
    # a durable write: fleet.json, a start's note, routing.json, a crash card
    "save.unlinked": "the copy before the last is gone, and the new one not there yet",
    "save.linked": "the last state is kept as .prev",
    "save.opened": "the new file exists and is empty",
    "save.written": "its bytes are with the kernel",
    "save.synced": "its bytes are on disk, under a name nobody reads",
    "save.renamed": "it has its name, which is not on disk yet",
    "save.done": "the write is durable",
    # a start
    "spawn.turn": "its turn has come, its GPUs are free",
    "spawn.leased": "its GPUs are leased, by this process",
    "spawn.folder": "its folder exists and says nothing",
    "spawn.noted": "its folder says what it is for",
    "spawn.recorded": "the intent is on disk",
    "spawn.forked": "the shim's launcher runs and knows nothing yet",
    "spawn.told": "the launcher has been told what to run",
    "spawn.answered": "the shim has said that the replica runs; nobody here has noted it",
    "spawn.attached": "the supervisor watches it, and still holds its leases",
    "spawn.released": "the leases are the shim's alone",
    # a stop, and an end
    "stop.decided": "the stop is decided, in memory alone",
    "stop.signalled": "the replica has its signal",
    "exit.seen": "the tree is gone, and the shim has said how",
    "exit.carded": "the crash card is on disk",
    "exit.recorded": "the end is in the state; its folder is still there",
    "exit.forgotten": "the folder is gone",
    # a new supervisor
    "serve.locked": "it alone has the root",
    "adopt.read": "the state has been read",
    "adopt.scanned": "the run folders have been read",
    "adopt.stray": "a start that nobody wants is about to be ended",
    "adopt.ended": "it is gone, and its folder",
    "adopt.attached": "a replica is watched again",
    "adopt.all": "every replica is, and nothing has been published",
    "adopt.saved": "what was found is published and saved",
    "serve.listening": "the control socket answers",
    # routers
    "router.found": "the router is watched again",
    "router.bound": "the port is bound, by this process alone",
    "router.stored": "systemd holds the port as well, where there is one; no router has it yet",
    "router.answered": "the router's shim has said that it runs; nobody here has noted it",
    "router.started": "every router runs",
    "router.fresh": "one of the next generation runs, and knows no table yet",
    "router.serving": "the next generation serves beside the present one, which knows nothing of it",
    "router.drained": "a router that goes knows its terms, and its shim nothing",
    "router.ending": "its shim knows, too",
    "router.aside": "the first generation's control socket has a second name",
    "router.renamed": "the control sockets' names lead to the new routers",
    "router.forgotten": "a replaced router has ended, and what it left is removed",
    "router.failed": "new routers that did not serve have ended again",
    # an upgrade
    "upgrade.freed": "the old daemon has let go of everything, and nobody serves",
    "upgrade.launched": "the new one runs, and the old one waits for it",
    "upgrade.answered": "the new one serves, and systemd does not know it",
    "upgrade.named": "systemd knows it, and the new one does not know that",
    "upgrade.ended": "the new one did not serve and is gone, and nobody serves",
    # what operators ask for
    "act.done": "replicas have been told, nothing is saved",
    "act.saved": "it is saved, and nobody has been answered",
    "apply.assigned": "replicas have been told what they run next, nothing is saved",
    "apply.saved": "the new state is on disk",
    # a rolling change
    "roll.decided": "the next step of a rolling change is decided, in memory alone",
    "roll.saved": "the order is on disk, and not given",
    "roll.ordered": "the order is given",
    "roll.turned": "the change is turned back, in memory alone",
    # down
    "down.begun": "everything is told to stop",
    "down.emptied": "no replica is left, the routers are",
    "down.ended": "the routers are gone, too",
}
"""Of the supervisor: name and how things stand at that moment."""

SHIM_POINTS: Mapping[str, str] = {
    "shim.locked": "the folder is the shim's, its socket does not exist yet",
    "shim.started": "the replica runs; nothing says who it is",
    "shim.named": "replica.json says who it is",
    "shim.told": "the starter has its answer",
    "shim.ended": "the API process is gone, its tree is not swept",
    "shim.recorded": "exit.json is on disk, and nobody has been told",
    "rotate.shifted": "the older parts of the log have moved up",
    "rotate.renamed": "the log has become an older part; there is no live file",
    "rotate.opened": "the new log is open",
}
"""Of a shim."""


def arm_from(environ: Mapping[str, str]) -> None:
    """Arm what the environment names; nothing where it names nothing.

    :raises Invalid: a name that does not exist, or a number that is none.
    """
    text = environ.get(VARIABLE, "")
    known = {**POINTS, **SHIM_POINTS}
    try:
        names = parse(text)
    except ValueError as error:
        raise Invalid(f"{VARIABLE}: {error} is no failpoint", "write NAME or NAME@N with N from 1") from None
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise Invalid(
                f"{VARIABLE}: there is no failpoint {name!r}",
                f"did you mean {near}? docs/reliability.md lists them all",
            )
    arm(text)
