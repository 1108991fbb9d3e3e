"""Changing the desired state: everything is checked before anything is touched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpuserved.api.errors import Invalid, NotFound
from gpuserved.api.types import ActionResult, ApplyRequest, ApplyResult, Change, PlanWarning, ScaleRequest
from gpuserved.config.document import placed
from gpuserved.config.profile import load_profile
from gpuserved.core.events import EventKind
from gpuserved.core.placement import Gpu, with_simulated
from gpuserved.core.profile import HealthPolicy, Profile
from gpuserved.fleet import letting_go, rollplan, store
from gpuserved.fleet.rollplan import RollPlans
from gpuserved.host.failpoint import reach
from gpuserved.planning.arrange import Arranged, Wanted, arrange, changes, lacks_gpu
from gpuserved.planning.inventory import leases_of_others

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

log = logging.getLogger(__name__)


async def apply(fleet: Fleet, request: ApplyRequest) -> ApplyResult:
    """Carry out one apply, or with `dry_run` only say what it would do.

    :raises GpuserveError: nothing has changed then.
    """
    fresh = {
        name: _fresh(fleet, name, text, request.sources.get(name, name))
        for name, text in request.profiles.items()
    }
    wanted = fresh if request.prune else {**fleet.wanted, **fresh}
    _one_engine_config_per_name(wanted)
    warnings = await check(fleet, list(fresh.values()))
    arranged = await arranged_for(fleet, wanted, fresh)
    before = {name: owner.next_assignment or owner.assignment for name, owner in fleet.owners.items()}
    found = changes(before, arranged.assignments, fleet.let_go)
    plans = rollplan.for_apply(fleet, wanted, arranged.assignments, before, found)
    warnings += [*arranged.warnings, *plans.warnings]
    if not request.dry_run:
        carry_out(fleet, wanted, arranged, found, plans)
    return ApplyResult(generation=fleet.generation, changes=found, warnings=warnings)


def _fresh(fleet: Fleet, name: str, text: str, source: str) -> Wanted:
    """What is wanted now; a profile that did not change keeps what the planner decided for it."""
    before = fleet.wanted.get(name)
    profile = read(fleet, name, text, source)
    same = before is not None and before.profile.plans_like(profile)
    return Wanted(text, source, profile, solved=before.solved if before is not None and same else None)


def read(fleet: Fleet, name: str, text: str, source: str) -> Profile:
    """One profile with the daemon's defaults.

    :raises Invalid: naming file, line and key.
    """
    profile = load_profile(text, source, name)
    default = HealthPolicy()
    if fleet.hang_timeout_s is not None and profile.health.hang_timeout_s == default.hang_timeout_s:
        health = replace(profile.health, hang_timeout_s=fleet.hang_timeout_s)
        return replace(profile, health=health)
    return profile


def wanted_of(fleet: Fleet, each: store.WantedRecord) -> Wanted:
    """A profile as it was saved.

    :raises Invalid: it is not valid any more.
    """
    profile = read(fleet, each.name, each.text, each.source)
    return Wanted(each.text, each.source, profile, each.scaled, each.solved)


async def check(fleet: Fleet, wanted: list[Wanted]) -> list[PlanWarning]:
    """Ask each profile's adapter what would make every start fail.

    :raises Invalid: something would.
    """
    found: list[PlanWarning] = []
    for each in wanted:
        profile = each.profile
        engine = fleet.engine(profile)
        await engine.prepare(profile)
        try:
            said = engine.check(profile)
        except Invalid as error:
            raise placed(error, each.text, each.source) from None
        found += [PlanWarning(code="engine", message=f"{profile.name}: {text}") for text in said]
    return found


async def arranged_for(fleet: Fleet, wanted: dict[str, Wanted], fresh: Collection[str] = ()) -> Arranged:
    """Place `wanted`; replicas stay where they are where they can.

    :param fresh: the profiles that are planned now; what was decided for the others, or never could be, is left alone.
    """
    held = {name: (o.next_assignment or o.assignment).gpu_uuids for name, o in fleet.owners.items()}
    names = [name for name in fresh if wanted[name].solved is None]
    known = await asyncio.to_thread(
        lambda: {name: fleet.inputs.of(wanted[name].profile, fleet.hf_token) for name in names}
    )
    inventory = await inventory_of(fleet, wanted)
    leases = leases_of_others(fleet.gpu_locks, inventory)
    waiting = [name for name, owner in fleet.owners.items() if lacks_gpu(owner.r)]
    return arrange(wanted, inventory, held, known, leases, fleet.quarantine.blocked(), waiting)


async def inventory_of(fleet: Fleet, wanted: dict[str, Wanted]) -> list[Gpu]:
    """The GPUs that these profiles may be placed on, with those that are set aside and gone."""
    real = await fleet.gpus.real_inventory(fleet.owners)
    return fleet.quarantine.with_missing(with_simulated(real, [each.profile for each in wanted.values()]))


def carry_out(
    fleet: Fleet, wanted: dict[str, Wanted], arranged: Arranged, found: list[Change], plans: RollPlans
) -> None:
    """Make it so: assignments first, then one event per replica; what rolling changes do comes last."""
    fleet.generation += 1
    before = fleet.wanted
    solutions = arranged.solutions()
    fleet.wanted = {
        name: each if each.solved else replace(each, solved=solutions.get(name))
        for name, each in wanted.items()
    }
    fleet.gpus.simulate([each.profile for each in wanted.values()])
    for profile in [*plans.superseded, *(name for name in fleet.rolls.of if name not in wanted)]:
        fleet.rolls.drop(profile)
    by_name = {each.replica: each for each in arranged.assignments}
    for change in found:
        owner = fleet.owners.get(change.replica)
        if plans.handles(change):
            fleet.let_go.pop(change.replica, None)
            if owner is None:
                fleet.add_owner(by_name[change.replica], None)
        elif owner is None:
            fleet.add_owner(by_name[change.replica], EventKind.START)
        elif change.action == "stop":
            letting_go.let_go(fleet, owner, before)
        elif change.action == "replace":
            fleet.let_go.pop(change.replica, None)
            owner.assign(by_name[change.replica])
            owner.post(EventKind.RESTART)
        else:
            letting_go.take_back(fleet, owner, by_name[change.replica])
        log.info("apply: %s %s (%s)", change.action, change.replica, change.why)
    for roll in plans.rolls:
        fleet.rolls.begin(roll)
    reach("apply.assigned")
    fleet.publish_routes(force=True)
    fleet.save_quietly()
    reach("apply.saved")


def _one_engine_config_per_name(wanted: dict[str, Wanted]) -> None:
    """Two profiles may serve one name; their models must then be the same, or answers would depend on chance."""
    models: dict[str, tuple[str, str]] = {}
    for name, each in wanted.items():
        for served in each.profile.model_names:
            # One name may be an adapter here and a model there.
            model = (
                f"{each.profile.model}, adapter {served}"
                if served in each.profile.adapter_names
                else each.profile.model
            )
            other = models.setdefault(served, (name, model))
            if other[1] != model:
                raise Invalid(
                    f"profiles {other[0]} and {name} both serve {served!r}, with different models",
                    "give one of them another served_name",
                )


async def scale(fleet: Fleet, request: ScaleRequest) -> ActionResult:
    """Change a profile's number of replicas until it is applied again.

    :raises NotFound: no such profile.
    """
    if request.profile not in fleet.wanted:
        known = ", ".join(sorted(fleet.wanted)) or "none"
        raise NotFound(f"no profile is called {request.profile!r}", f"profiles: {known}")
    if request.replicas < 0:
        raise Invalid(f"{request.replicas} replicas are not possible", "use 0 or more")
    wanted = {
        **fleet.wanted,
        request.profile: replace(fleet.wanted[request.profile], scaled=request.replicas),
    }
    arranged = await arranged_for(fleet, wanted)
    before = {name: owner.next_assignment or owner.assignment for name, owner in fleet.owners.items()}
    found = [c for c in changes(before, arranged.assignments, fleet.let_go) if c.action != "keep"]
    plans = rollplan.for_apply(fleet, wanted, arranged.assignments, before, found)
    carry_out(fleet, wanted, arranged, found, plans)
    states = {c.replica: fleet.owners[c.replica].r.state.value for c in found if c.replica in fleet.owners}
    return ActionResult(generation=fleet.generation, replicas=states)


def from_sources(fleet: Fleet) -> ApplyRequest:
    """An apply of the same profiles as their files are now; one whose file is gone stays as it is."""
    texts: dict[str, str] = {}
    for name, each in fleet.wanted.items():
        path = Path(each.source)
        try:
            texts[name] = path.read_text("utf-8") if path.is_absolute() else each.text
        except FileNotFoundError:
            texts[name] = each.text
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"{path}: cannot be read: {error}", "fix the file, or remove it") from None
    return ApplyRequest(profiles=texts, sources={name: each.source for name, each in fleet.wanted.items()})
