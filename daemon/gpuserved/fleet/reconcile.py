"""Changing what the fleet is to be: apply, scale, GPUs that go and come back, a replica's verbs, and the end of everything.

Each is planned beside everything else, which may take minutes, and decided in one go on the event loop: only where the state is still
the one that the plan was made for. Else it is planned again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from gpuserved.api.errors import Conflict, GpuserveError, Invalid, NotFound
from gpuserved.api.types import (
    ActionResult,
    ApplyRequest,
    ApplyResult,
    Change,
    PlanWarning,
    ReplicasRequest,
    ScaleRequest,
)
from gpuserved.core.assignment import Assignment
from gpuserved.core.cause import Cause
from gpuserved.core.events import EventKind
from gpuserved.core.state import NotAllowed
from gpuserved.fleet.arranger import Arranger, one_model_per_name
from gpuserved.fleet.events import Bus
from gpuserved.fleet.gpu_inventory import GpuInventory
from gpuserved.fleet.observers import Routes
from gpuserved.fleet.orders import Executor, Order, to_come_back, to_end, to_move_off, to_reach
from gpuserved.fleet.quarantine import Quarantine
from gpuserved.fleet.rollout import Rollouts, RollPlans
from gpuserved.fleet.settings import CurrentSettings, Settings
from gpuserved.fleet.state import FleetState
from gpuserved.fleet.views import order
from gpuserved.host.failpoint import reach
from gpuserved.planning.arrange import Arranged, Wanted, changes
from gpuserved.replica.controller import ReplicaController

log = logging.getLogger(__name__)

T = TypeVar("T")
TRIES = 5
"""Of planning one mutation while others are decided. Each but the first finds what took long already prepared."""


@dataclass(frozen=True)
class _Plan:
    """A target, and the state it was planned on."""

    wanted: Mapping[str, Wanted]
    arranged: Arranged
    warnings: list[PlanWarning]


@dataclass(frozen=True)
class _Steps:
    """From what there is at this moment to a target. Nothing has changed yet."""

    found: list[Change]
    rolls: RollPlans


class Reconciler:
    """Brings one fleet to what is wanted of it."""

    def __init__(
        self,
        state: FleetState,
        settings: CurrentSettings,
        arranger: Arranger,
        rollouts: Rollouts,
        executor: Executor,
        quarantine: Quarantine,
        inventory: GpuInventory,
        routes: Routes,
        bus: Bus,
        save: Callable[[], Awaitable[None]],
    ) -> None:
        """:param save: has the state on disk before it returns, or says elsewhere that the disk refuses."""
        self._state = state
        self._settings = settings
        self._arranger = arranger
        self._rollouts = rollouts
        self._executor = executor
        self._quarantine = quarantine
        self._inventory = inventory
        self._routes = routes
        self._bus = bus
        self._save = save

    async def _planned(self, make: Callable[[], Awaitable[T]], expected: int | None) -> T:
        """A plan for the state as it is when this returns. Decide on it before anything else is awaited.

        :param expected: the generation that the caller has decided on; None: it goes on whatever happens meanwhile.
        :raises Conflict: the state has moved from that, or does not rest.
        """
        for _ in range(TRIES):
            self._state.expect(expected)
            generation = self._state.generation
            plan = await make()
            if self._state.generation == generation:
                return plan
        self._state.expect(expected)
        raise Conflict("the fleet changes faster than this can be planned", "try again in a moment")

    # --- what is wanted

    async def apply(self, request: ApplyRequest, settings: Settings | None = None) -> ApplyResult:
        """Carry out one apply, or with `dry_run` only say what it would do.

        :param settings: these count from then on, where all of it can be done; None: those that count now stay.
        :raises GpuserveError: nothing has changed then.
        """
        plan = await self._planned(lambda: self._plan_apply(request, settings), request.generation)
        steps = self._steps(plan)
        result = ApplyResult(
            generation=self._state.generation, changes=steps.found, warnings=[*plan.warnings, *steps.rolls.warnings]
        )  # fmt: skip
        if request.dry_run:
            return result
        generation, _ = await self._carry_out(plan, steps, settings)
        return ApplyResult(generation=generation, changes=result.changes, warnings=result.warnings)

    async def _plan_apply(self, request: ApplyRequest, settings: Settings | None) -> _Plan:
        fresh = {
            name: self._arranger.fresh(name, text, request.sources.get(name, name), settings)
            for name, text in request.profiles.items()
        }
        wanted = fresh if request.prune else {**self._state.desired, **fresh}
        one_model_per_name(wanted)
        warnings = await self._arranger.check(fresh.values())
        arranged = await self._arranger.arrange(wanted, fresh, settings)
        return _Plan(wanted, arranged, [*warnings, *arranged.warnings])

    def reading_sources(self) -> ApplyRequest:
        """An apply of the same profiles as their files are now; one whose file is gone stays as it is.

        :raises Invalid: naming a file that cannot be read.
        """
        texts: dict[str, str] = {}
        for name, each in self._state.desired.items():
            path = Path(each.source)
            try:
                texts[name] = path.read_text("utf-8") if path.is_absolute() else each.text
            except FileNotFoundError:
                texts[name] = each.text
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid(f"{path}: cannot be read: {error}", "fix the file, or remove it") from None
        sources = {name: each.source for name, each in self._state.desired.items()}
        return ApplyRequest(profiles=texts, sources=sources)

    async def scale(self, request: ScaleRequest) -> ActionResult:
        """Change a profile's number of replicas until it is applied again.

        :raises NotFound: no such profile.
        """
        plan = await self._planned(lambda: self._plan_scale(request), request.generation)
        steps = self._steps(plan, keep=False)
        generation, states = await self._carry_out(plan, steps)
        return ActionResult(generation=generation, replicas=states)

    async def _plan_scale(self, request: ScaleRequest) -> _Plan:
        desired = self._state.desired
        if request.profile not in desired:
            known = ", ".join(sorted(desired)) or "none"
            raise NotFound(f"no profile is called {request.profile!r}", f"profiles: {known}")
        if request.replicas < 0:
            raise Invalid(f"{request.replicas} replicas are not possible", "use 0 or more")
        scaled = replace(desired[request.profile], scaled=request.replicas)
        wanted = {**desired, request.profile: scaled}
        return _Plan(wanted, await self._arranger.arrange(wanted), [])

    def _steps(self, plan: _Plan, *, keep: bool = True) -> _Steps:
        before = self._state.targets()
        found = changes(before, plan.arranged.assignments, self._state.removals)
        if not keep:
            found = [change for change in found if change.action != "keep"]
        return _Steps(found, self._rollouts.plan_for(plan.wanted, plan.arranged.assignments, before, found))

    async def _carry_out(
        self, plan: _Plan, steps: _Steps, settings: Settings | None = None
    ) -> tuple[int, dict[str, str]]:
        """Decide, and have it on disk.

        :returns: the generation of the decision, and the state of each replica that it touches, once all had been told.
        """
        generation = self._decide(plan, steps, settings)
        reach("apply.assigned")
        replicas = self._state.replicas
        states = {c.replica: replicas[c.replica].r.state.value for c in steps.found if c.replica in replicas}
        await self._save()
        reach("apply.saved")
        return generation, states

    def _decide(self, plan: _Plan, steps: _Steps, settings: Settings | None = None) -> int:
        """Make it so, all of it or nothing: assignments first, then one event per replica; what rolling changes do comes last.

        :returns: the generation of the decision.
        """
        before, solutions = dict(self._state.desired), plan.arranged.solutions()
        generation = self._state.commit(
            {
                name: each if each.solved else replace(each, solved=solutions.get(name))
                for name, each in plan.wanted.items()
            }
        )
        if settings is not None:
            self._settings.replace(settings)
        self._inventory.simulate([each.profile for each in plan.wanted.values()])
        gone = [name for name in self._rollouts.profiles() if name not in plan.wanted]
        for profile in [*steps.rolls.superseded, *gone]:
            self._rollouts.drop(profile)
        target = {each.replica: each for each in plan.arranged.assignments}
        present, removals = self._state.snapshots(), self._state.removals
        self._executor.carry_out(
            to_reach(target, steps.found, present, removals, steps.rolls.handles), before
        )
        for change in steps.found:
            log.info("apply: %s %s (%s)", change.action, change.replica, change.why)
        for roll in steps.rolls.rolls:
            self._rollouts.begin(roll)
        self._routes.publish(force=True)
        return generation

    # --- GPUs that go and come back

    async def move_off(
        self, uuids: Collection[str], *, kill: Cause | None = None, spare_last: bool = False
    ) -> dict[str, str]:
        """Take replicas off GPUs that have just been set aside: to others where there are any, else they wait for the release.

        :param kill: why their processes are ended at once; None: they are drained.
        :param spare_last: the last ready replica of a model goes on where it is.
        :returns: replica -> what becomes of it, in words.
        """
        target = await self._places()
        orders = to_move_off(
            uuids, target, self._state.snapshots(),
            blocked=self._quarantine.of.keys(), kill=kill, spare_last=spare_last,
        )  # fmt: skip
        return await self._move(orders, "warning")

    async def come_back(self) -> dict[str, str]:
        """After a release: start what waited for it, and replicas that there was no GPU for. What runs stays where it is.

        :returns: replica -> what becomes of it, in words.
        """
        target = await self._places()
        blocked = self._quarantine.of.keys()
        orders = to_come_back(target, self._state.snapshots(), self._state.removals, blocked=blocked)
        return await self._move(orders, "info")

    async def _places(self) -> dict[str, Assignment]:
        """Every replica's place with the GPUs that there are now; empty where there is none for a profile. Where the state does not rest,
        the newest plan counts: a GPU that is set aside must be left.
        """
        found: dict[str, Assignment] = {}
        for _ in range(TRIES):
            generation = self._state.generation
            try:
                arranged = await self._arranger.arrange(self._state.desired)
                found = {each.replica: each for each in arranged.assignments}
            except GpuserveError as error:
                log.warning("replicas cannot be placed anew: %s", error.message)
                found = {}
            if self._state.generation == generation:
                break
        return found

    async def _move(self, orders: Sequence[Order], severity: str) -> dict[str, str]:
        self._executor.carry_out(orders, self._state.desired)
        self._rollouts.wake()
        await self._save()
        for each in orders:
            self._bus.publish("notice", message=f"{each.replica} {each.why}", severity=severity)
        return {each.replica: each.why for each in orders}

    # --- verbs, and the end of everything

    def named(self, name: str) -> list[ReplicaController]:
        """One replica by id, or all of a profile.

        :raises NotFound: there is neither.
        """
        replicas = self._state.replicas
        if name in replicas:
            return [replicas[name]]
        found = [c for c in replicas.values() if c.assignment.profile.name == name]
        if not found:
            known = ", ".join(sorted(replicas, key=order)) or "none"
            raise NotFound(f"no replica or profile is called {name!r}", f"replicas: {known}")
        return sorted(found, key=lambda c: order(c.id))

    async def act(self, verb: str, request: ReplicasRequest) -> ActionResult:
        """Carry out what an operator asks of replicas: start, stop, restart, drain or undrain. `restart PROFILE` becomes a rolling change.

        :raises NotFound: or Conflict: nothing was touched.
        """
        self._state.expect(request.generation)
        concerned = [controller for name in request.replicas for controller in self.named(name)]
        self._expect_starts(request.replica_generations)
        rolls = self._rollouts.plan_restart(request.replicas) if verb == EventKind.RESTART.value else []
        rolled = {name for roll in rolls for name in roll.plan.pending}
        generation = self._state.commit()
        for roll in rolls:
            self._rollouts.begin(roll)
        states = {name: self._state.replicas[name].r.state.value for name in rolled}
        refused: dict[str, str] = {}
        for controller in dict.fromkeys(each for each in concerned if each.id not in rolled):
            try:
                states[controller.id] = (await controller.ask(EventKind(verb))).value
            except NotAllowed as error:
                refused[controller.id] = str(error)
        if refused and not states:
            name, why = next(iter(refused.items()))
            raise Conflict(f"{name}: {why}", "see `gpuserve status`")
        reach("act.done")
        # Before the answer: what an operator was told is done outlives this daemon.
        await self._save()
        reach("act.saved")
        return ActionResult(generation=generation, replicas=states, refused=refused)

    def _expect_starts(self, seen: dict[str, int]) -> None:
        """Refuse an action on replicas that are not what the operator saw.

        :raises Conflict: one of them has been started anew since; none was touched.
        """
        for name, generation in seen.items():
            controller = self._state.replicas.get(name)
            now = controller.r.generation if controller is not None else None
            if now != generation:
                what = "is gone" if now is None else f"was started again (start {now}, seen was {generation})"
                raise Conflict(f"{name} {what} since; nothing was done", "look again, then repeat")

    def end(self, *, drain: bool, forget: bool) -> None:
        """Tell every replica to stop. Each leaves the fleet once its tree is gone.

        :param forget: the next daemon starts empty; else with what is wanted now.
        """
        before = dict(self._state.desired)
        self._state.shut_down(forget=forget)
        for profile in self._rollouts.profiles():
            self._rollouts.drop(profile)
        orders = to_end(self._state.snapshots(), self._state.removals, drain=drain)
        self._executor.carry_out(orders, before)
