"""What the screen asks of the daemon: the control client's calls, and how a change is sent through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from gpuserve_tui.model.changes import Intent, Outcome
from gpuserved.api.inspect import EventsView, LogBatch, LogPage, ProfilesView, ReplicaDetail
from gpuserved.api.types import (
    ActionResult,
    ApplyProfileRequest,
    ApplyResult,
    FleetEvent,
    GpusRequest,
    GpusResult,
    ReplicasRequest,
    ScaleRequest,
    Status,
    VersionView,
)

_NAMED_MAX = 4


class Client(Protocol):
    """What the screen needs of a control client. Every call blocks, and raises GpuserveError or OSError."""

    def status(self) -> Status: ...
    def version(self) -> VersionView: ...
    def events(self) -> Iterator[FleetEvent]: ...
    def recent_events(self) -> EventsView: ...
    def detail(self, replica: str) -> ReplicaDetail: ...
    def profiles(self) -> ProfilesView: ...
    def profile_diff(self, profile: str) -> ApplyResult: ...
    def apply_profile(self, profile: str, request: ApplyProfileRequest) -> ApplyResult: ...
    def act(self, verb: str, request: ReplicasRequest) -> ActionResult: ...
    def scale(self, request: ScaleRequest) -> ActionResult: ...
    def quarantine(self, request: GpusRequest) -> GpusResult: ...
    def release(self, request: GpusRequest) -> GpusResult: ...
    def log_page(self, source: str, *, before: str | None = None, lines: int = 500, match: str | None = None) -> LogPage: ...  # fmt: skip
    def follow_logs(self, sources: Sequence[str], *, lines: int = 100, after: Mapping[str, str] | None = None) -> Iterator[LogBatch]: ...  # fmt: skip


def carry_out(client: Client, intent: Intent) -> Outcome:
    """Tell the daemon, on a thread that may wait.

    :raises GpuserveError: it refused: the fleet has moved since the key press, or what it said.
    """
    if intent.action.id == "apply":
        request = ApplyProfileRequest(generation=intent.generation)
        return _applied(client.apply_profile(intent.profile or "", request))
    if intent.gpu is not None:
        about = GpusRequest(gpus=[intent.gpu], generation=intent.generation)
        change = client.quarantine if intent.action.id == "quarantine" else client.release
        return _gpu_changed(change(about))
    if intent.action.verb is None:
        scale = ScaleRequest(
            profile=intent.profile or "", replicas=intent.replicas or 0, generation=intent.generation
        )
        return _acted(intent, client.scale(scale))
    act = ReplicasRequest(
        replicas=[name for name, _ in intent.targets],
        generation=intent.generation,
        replica_generations=dict(intent.targets),
    )
    return _acted(intent, client.act(intent.action.verb, act))


def _applied(result: ApplyResult) -> Outcome:
    changed = [f"{change.action} {change.replica}" for change in result.changes if change.action != "keep"]
    return Outcome(result.generation, f"Apply: {', '.join(changed[:_NAMED_MAX]) or 'nothing changed'}")


def _gpu_changed(result: GpusResult) -> Outcome:
    told = [f"GPU {gpu.index} {gpu.state}" for gpu in result.gpus]
    told += [f"{name} {what}" for name, what in sorted(result.replicas.items())]
    return Outcome(result.generation, "; ".join([*told, *result.notes]))


def _acted(intent: Intent, result: ActionResult) -> Outcome:
    states = ", ".join(f"{name} {state}" for name, state in sorted(result.replicas.items())[:_NAMED_MAX])
    more = f" and {len(result.replicas) - _NAMED_MAX} more" if len(result.replicas) > _NAMED_MAX else ""
    said = f"{intent.action.label}: {states or intent.profile or 'nothing to do'}{more}"
    return Outcome(result.generation, said, tuple(f"{name}: {why}" for name, why in result.refused.items()))


def sentence(error: Exception) -> str:
    """An error as a line for the screen."""
    hint = getattr(error, "hint", None)
    return f"{error}; {hint}" if hint else str(error) or type(error).__name__
