"""What an operator asked for, frozen at the key press, and what the dialog says about it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuserve_tui.model.actions import Action, Grade
from gpuserved.api.inspect import ProfileView
from gpuserved.api.types import ApplyResult, GpuView, ReplicaView, Status

DOING = {
    "start": "starting",
    "stop": "stopping",
    "restart": "restarting",
    "drain": "draining",
    "undrain": "undraining",
}
"""What stands in the state column while an action is under way."""
_NAMED_MAX = 6


@dataclass(frozen=True)
class Intent:
    """One change, with the state it was decided on: what the daemon is asked, whatever the screen shows later."""

    action: Action
    generation: int
    """Of the desired state."""
    targets: tuple[tuple[str, int], ...] = ()
    """Replicas and the start that each was seen in."""
    profile: str | None = None
    replicas: int | None = None
    """For scale: the number wanted."""
    gpu: str | None = None
    """For quarantine and release: its UUID."""


@dataclass(frozen=True)
class Outcome:
    """What came of a change, as the operator is told."""

    generation: int
    """The desired state's, after it."""
    said: str
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Question:
    """What is asked before it is carried out."""

    title: str
    lines: tuple[str, ...]
    accept: str
    typed: str | None = None
    """To be typed before it can be accepted; None: a key is enough."""
    drain_instead: bool = False


def replica_intent(action: Action, status: Status, targets: Sequence[ReplicaView]) -> Intent:
    """About replicas: those of the targets whose state knows the action."""
    able = [r for r in targets if action.states is None or r.state in action.states]
    return Intent(action, status.generation, tuple((r.id, r.generation) for r in able))


def scale_intent(action: Action, status: Status, profile: str) -> Intent:
    """One replica more, or one less, of those that are to stay."""
    have = sum(replica.profile == profile and not replica.leaving for replica in status.replicas)
    wanted = max(0, have + (1 if action.id == "scale_up" else -1))
    return Intent(action, status.generation, profile=profile, replicas=wanted)


def question(asked: Intent, status: Status) -> Question | None:
    """What to ask; None: nothing, it is done at once."""
    action = asked.action
    if action.grade is Grade.NONE:
        return None
    if action.verb is None:
        return _about_scale(asked, status)
    replicas = [r for r in status.replicas if r.id in dict(asked.targets)]
    names = _names([r.id for r in replicas])
    lines = [f"{action.label} {names}.", *_consequences(action, replicas)]
    last = _last_of_model(replicas, status) if action.id in {"stop", "drain", "restart"} else None
    if last:
        lines.append(f"No other replica of {last} is ready: its requests wait in the queue, or are refused.")
    typed = None
    if action.grade is Grade.CONSEQUENCES and last:
        typed = replicas[0].id if len(replicas) == 1 else last
    busy = any(_requests(r) for r in replicas)
    return Question(
        f"{action.label} {len(replicas)} replicas?" if len(replicas) > 1 else f"{action.label} {names}?",
        tuple(lines),
        action.label,
        typed,
        drain_instead=action.id == "stop" and busy,
    )


def about_gpu(action: Action, gpu: GpuView, status: Status) -> Question:
    """What setting a GPU aside costs, or what a release allows."""
    title = f"{action.label} GPU {gpu.index}?"
    if action.id == "release":
        why = f"It is set aside: {gpu.reason}." if gpu.reason else "It is set aside."
        return Question(
            title, (why, "What waits for it starts; what has moved stays where it is."), action.label
        )
    replicas = [r for r in status.replicas if gpu.index in r.gpus and r.state != "STOPPED"]
    lines = [f"Nothing is started on GPU {gpu.index} ({gpu.name}) until it is released."]
    if replicas:
        flight = sum(_requests(r) for r in replicas)
        lines.append(
            f"{_names([r.id for r in replicas])}: drained ({flight} requests), then to a free GPU; waits where there is none."
        )
    last = _last_of_model(replicas, status)
    if last:
        lines.append(f"No other replica of {last} is ready: its requests wait in the queue, or are refused.")
    return Question(title, tuple(lines), action.label, last)


def about_apply(profile: ProfileView, plan: ApplyResult) -> Question:
    """What applying a profile would do, and whether that needs its name."""
    changes = [change for change in plan.changes if change.action != "keep"]
    lines = [f"{change.action:<8}{change.replica}  {change.why}" for change in changes]
    kept = len(plan.changes) - len(changes)
    lines += [f"keep    {kept} as they are"] if kept else []
    lines += [f"warning: {warning.message}" for warning in plan.warnings]
    stops = any(change.action in {"stop", "replace"} for change in changes)
    head = "Nothing would change." if not changes else f"Applying {profile.source} would:"
    return Question(f"Apply {profile.name}?", (head, "", *lines), "Apply", profile.name if stops else None)


def _about_scale(asked: Intent, status: Status) -> Question:
    name, wanted = asked.profile or "", asked.replicas or 0
    mine = [replica for replica in status.replicas if replica.profile == name and not replica.leaving]
    lines = [f"Scale {name} from {len(mine)} to {wanted} replicas."]
    typed = None
    if wanted < len(mine):
        gone = [r for r in mine if _number(r.id) >= wanted]
        lines += _consequences(asked.action, gone)
        if wanted == 0:
            lines.append("Nothing of this profile serves then.")
            typed = name
    return Question(f"Scale {name} to {wanted}?", tuple(lines), "Scale", typed)


def _consequences(action: Action, replicas: Sequence[ReplicaView]) -> list[str]:
    running = sum(r.running or 0 for r in replicas)
    waiting = sum(r.waiting or 0 for r in replicas)
    flight = sum(r.in_flight or 0 for r in replicas)
    lines: list[str] = []
    busy = running or waiting or flight
    if action.id in {"stop", "restart", "scale_down"} and busy:
        lines.append(
            f"{max(running, flight - waiting)} running and {waiting} waiting requests may go on until drain_s, and are cut then."
        )
    if action.id == "stop" and busy:
        lines.append("Drain instead [d] lets them finish and keeps the model loaded.")
    if action.id == "drain":
        lines.append(f"No new requests; {flight} in flight go on. The model stays loaded; D puts it back.")
    starting = [r.id for r in replicas if r.state == "STARTING"]
    if starting and action.id in {"stop", "restart"}:
        lines.append(f"{_names(starting)} is loading: that work is lost.")
    return lines


def _requests(replica: ReplicaView) -> int:
    return (replica.running or 0) + (replica.waiting or 0) + (replica.in_flight or 0)


def _last_of_model(targets: Sequence[ReplicaView], status: Status) -> str | None:
    """A model that would be without a ready replica."""
    names = {r.id for r in targets}
    for model in dict.fromkeys(r.model for r in targets if r.state == "READY"):
        if not any(r.state == "READY" and r.model == model and r.id not in names for r in status.replicas):
            return model
    return None


def _names(names: Sequence[str]) -> str:
    if len(names) <= _NAMED_MAX:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMED_MAX])} and {len(names) - _NAMED_MAX} more"


def _number(replica: str) -> int:
    tail = replica.rpartition("-")[2]
    return int(tail) if tail.isdigit() else 0
