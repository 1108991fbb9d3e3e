"""From a key to a change: freeze what is meant, ask as much as it deserves, tell the daemon, report what came of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from gpuserve_tui.actions import BY_ID, Action, unavailable
from gpuserve_tui.screens.dialogs import Confirm
from gpuserve_tui.view.wishes import Question, Wish, about_apply, about_gpu, question, scale_wish, wish
from gpuserved.api.gpus import GpusRequest, GpusResult
from gpuserved.api.inspect import ProfileView
from gpuserved.api.types import (
    ActionResult,
    ApplyProfileRequest,
    ApplyResult,
    GpuView,
    ReplicasRequest,
    ReplicaView,
    ScaleRequest,
)

if TYPE_CHECKING:
    from gpuserve_tui.app import FleetApp

_DOING = {
    "start": "starting",
    "stop": "stopping",
    "restart": "restarting",
    "drain": "draining",
    "undrain": "undraining",
}


class Acting:
    """Everything that changes the fleet."""

    def __init__(self, app: FleetApp) -> None:
        self._app = app
        self.busy: dict[str, tuple[str, float]] = {}
        """Replica -> what is being done to it, and since when (monotonic seconds)."""

    @property
    def commands(self) -> dict[str, Callable[[], None]]:
        """By action."""
        return {
            **{name: partial(self.replicas, BY_ID[name]) for name in _DOING},
            "scale_up": partial(self.scale, BY_ID["scale_up"]),
            "scale_down": partial(self.scale, BY_ID["scale_down"]),
            "quarantine": partial(self.gpu, BY_ID["quarantine"]),
            "release": partial(self.gpu, BY_ID["release"]),
            "apply": self.apply,
        }

    def replicas(self, action: Action, targets: tuple[ReplicaView, ...] | None = None) -> None:
        """Start, stop, restart, drain, undrain the marked rows, or the selected one."""
        status = self._app.board.status
        if status is None:
            return
        asked = wish(action, status, self._app.situation.targets if targets is None else targets)
        if not asked.targets:
            return
        self._ask(asked, question(asked, status))

    def scale(self, action: Action) -> None:
        """One more, or one less."""
        status, profile = self._app.board.status, self._app.situation.profile
        if status is None or profile is None:
            return
        asked = scale_wish(action, status, profile)
        self._ask(asked, question(asked, status))

    def gpu(self, action: Action, gpu: GpuView | None = None) -> None:
        """Set a GPU aside, or let it be used again: the given one, or the selected one."""
        status, chosen = self._app.board.status, gpu or self._app.situation.gpu
        if status is None or chosen is None:
            return
        asked = Wish(action, status.generation, gpu=chosen.uuid)
        self._ask(asked, about_gpu(action, chosen, status))

    def apply(self) -> None:
        """Fetch what it would do first. The generation is the one that was seen at the key press."""
        app = self._app
        profile, status = app.profiles.selected, app.board.status
        if profile is None or status is None:
            return
        asked = Wish(BY_ID["apply"], status.generation, profile=profile.name)
        app.call(partial(app.source.profile_diff, profile.name), partial(self._ask_apply, asked, profile))

    def _ask_apply(self, asked: Wish, profile: ProfileView, plan: ApplyResult) -> None:
        self._ask(asked, about_apply(profile, plan))

    def _ask(self, asked: Wish, about: Question | None) -> None:
        if about is None:
            self.carry_out(asked)
            return

        def answered(answer: str | None) -> None:
            if answer == "accept":
                self.carry_out(asked)
            elif answer == "drain":
                self.carry_out(Wish(BY_ID["drain"], asked.generation, asked.targets))

        self._app.push_screen(Confirm(about), answered)

    def carry_out(self, asked: Wish) -> None:
        """Tell the daemon, unless that has become impossible while the dialog stood there."""
        app = self._app
        now = app.situation
        problem = unavailable(asked.action, now) if not now.live or now.read_only else ""
        busy = [name for name, _ in asked.targets if name in self.busy]
        if problem or busy:
            app.say(problem or f"{busy[0]} is being acted on", "warning")
            return
        for name, _ in asked.targets:
            self.busy[name] = (_DOING.get(asked.action.id, asked.action.id), app.monotonic())
        app.draw()
        if asked.action.id == "apply":
            request = ApplyProfileRequest(generation=asked.generation)
            app.call(partial(app.source.apply_profile, asked.profile or "", request), self._applied)
        elif asked.gpu is not None:
            about = GpusRequest(gpus=[asked.gpu], generation=asked.generation)
            change = app.source.quarantine if asked.action.id == "quarantine" else app.source.release
            app.call(partial(change, about), self._gpu_done)
        elif asked.action.verb is None:
            scale = ScaleRequest(
                profile=asked.profile or "", replicas=asked.replicas or 0, generation=asked.generation
            )
            app.call(partial(app.source.scale, scale), partial(self._done, asked))
        else:
            act = ReplicasRequest(
                replicas=[name for name, _ in asked.targets],
                generation=asked.generation,
                replica_generations=dict(asked.targets),
            )
            app.call(
                partial(app.source.act, asked.action.verb, act),
                partial(self._done, asked),
                partial(self._release, asked),
            )

    def _release(self, asked: Wish) -> None:
        for name, _ in asked.targets:
            self.busy.pop(name, None)

    def _done(self, asked: Wish, result: ActionResult) -> None:
        self._release(asked)
        app = self._app
        app.board.moved_to(result.generation)
        states = ", ".join(f"{name} {state}" for name, state in sorted(result.replicas.items())[:4])
        more = f" and {len(result.replicas) - 4} more" if len(result.replicas) > 4 else ""
        app.say(f"{asked.action.label}: {states or asked.profile or 'nothing to do'}{more}")
        for name, why in result.refused.items():
            app.say(f"{name}: {why}", "error")
        app.clear_marks()

    def _gpu_done(self, result: GpusResult) -> None:
        app = self._app
        app.board.moved_to(result.generation)
        told = [f"GPU {gpu.index} {gpu.state}" for gpu in result.gpus]
        told += [f"{name} {what}" for name, what in sorted(result.replicas.items())]
        app.say("; ".join([*told, *result.notes]))

    def _applied(self, result: ApplyResult) -> None:
        app = self._app
        app.board.moved_to(result.generation)
        changed = [
            f"{change.action} {change.replica}" for change in result.changes if change.action != "keep"
        ]
        app.say(f"Apply: {', '.join(changed[:4]) or 'nothing changed'}")
        app.fetch_profiles()

    def doing(self) -> dict[str, str]:
        """What stands in the state column of replicas that are being acted on."""
        now = self._app.monotonic()
        return {name: f"{what} {now - since:.0f}s" for name, (what, since) in self.busy.items()}
