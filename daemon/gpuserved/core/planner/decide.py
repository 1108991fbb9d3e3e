"""Profile and inventory to placements, or a refusal that names what is short. Pure and deterministic.

Without facts of the model (other engines, unknown architectures) sizes are taken as they are asked for, and memory is left to
the engine. With them the smallest tensor-parallel size that fits is taken, unless a wider one carries more of the load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gpuserved.core.placement import Gpu, Lease, Lever, NoFit, Placed, Placements
from gpuserved.core.planner import explain, plain, topology
from gpuserved.core.planner.levers import levers
from gpuserved.core.planner.memory import Measured, Setting
from gpuserved.core.planner.model import ModelFacts, Unknown
from gpuserved.core.planner.options import (
    Asked,
    Lookup,
    Option,
    divides,
    option,
    sizes,
)
from gpuserved.core.planner.room import Room, allowed, room
from gpuserved.core.planner.utilization import Runs, too_high
from gpuserved.core.planner.weights import as_started
from gpuserved.core.profile import Profile


def unmeasured(setting: Setting) -> Measured | None:
    """Nothing was ever started here."""
    del setting
    return None


def place(
    profile: Profile,
    inventory: Iterable[Gpu],
    leases: Iterable[Lease] = (),
    *,
    keep: Mapping[str, Sequence[str]] | None = None,
    facts: ModelFacts | Unknown | None = None,
    lookup: Lookup = unmeasured,
    version: str | None = None,
    settled: bool = False,
) -> Placements | NoFit:
    """Place all replicas of a profile.

    :param leases: what others hold; the profile's own replicas are not among them.
    :param keep: GPU UUIDs that replicas of this profile hold now; one that can stay there does.
    :param facts: None: an engine whose memory is not planned.
    :param lookup: what earlier starts measured.
    :param version: of the vLLM that will run; None: unknown.
    :param settled: it was decided before, and may run: its memory is not weighed again, whatever is known now.
    """
    gpus = allowed(profile, inventory)
    if isinstance(gpus, NoFit):
        return gpus
    facts = as_started(facts, profile.flags) if isinstance(facts, ModelFacts) else facts
    runs = Runs(facts if isinstance(facts, ModelFacts) else None, version)
    if not settled and (refused := too_high(profile, gpus, runs)):
        return refused
    space = room(profile, gpus, leases, None if settled else runs)
    own = {name: uuids for name, uuids in (keep or {}).items() if name.rpartition("-")[0] == profile.name}
    if not isinstance(facts, ModelFacts) or not gpus or any(gpu.memory_total_bytes is None for gpu in gpus):
        unknown = facts if isinstance(facts, Unknown) and profile.engine.planning.by_memory else None
        return plain.place(profile, space, own, unknown)
    asked = Asked(profile, facts, space.free, own, lookup, version)
    return _planned(asked, space)


def _planned(asked: Asked, space: Room) -> Placements | NoFit:
    profile, facts = asked.profile, asked.facts
    if too_long := explain.too_long(asked):
        return too_long
    if not space.free and profile.replicas != 0:
        return explain.overlap(profile, profile.gpus_per_replica, space)
    fixed = profile.tensor_parallel_size
    if fixed is not None:
        why = divides(facts, fixed)
        if why is not None:
            return explain.not_divisible(asked, fixed, why, len(space.allowed))
        candidates = [fixed]
    else:
        candidates = sizes(facts, len(space.allowed))
    if profile.replicas == 0:
        return Placements(())
    options, feasible = _weighed(asked, candidates, space)
    if not feasible:
        return explain.none_feasible(asked, options, space)
    chosen = _choose(asked, feasible)
    return _answer(asked, chosen, feasible, space)


def _weighed(asked: Asked, candidates: list[int], space: Room) -> tuple[list[Option], list[Option]]:
    """The options looked at, and those that fit. Beyond one that carries everything only the next is looked at, to compare."""
    options: list[Option] = []
    feasible: list[Option] = []
    enough = False
    for size in candidates:
        each = option(asked, size)
        options.append(each)
        if not _enough(each, asked.profile.replicas or 1, space):
            continue
        feasible.append(each)
        if enough:
            break
        enough = each.length == asked.limit and each.carried >= load_of(asked, feasible)
    return options, feasible


def _enough(each: Option, needed: int, space: Room) -> bool:
    """True where the replicas asked for have places; where GPUs are blocked (quarantined), fewer will do."""
    blocked = any(gpu.blocked for gpu in space.allowed)
    return len(each.places) >= (1 if blocked else needed)


def _choose(asked: Asked, feasible: list[Option]) -> Option:
    """The length first where all of it was asked for, then the load that is carried, then the smallest size."""
    load = load_of(asked, feasible)

    def rank(each: Option) -> tuple[float, float, int]:
        length = each.length
        if not asked.profile.max_model_len_auto and asked.profile.max_model_len is None:
            length = min(length, USEFUL_LENGTH)  # nobody asked for the longest: replicas before length
        carried = min(each.carried, load) * each.efficiency() if load else 0.0
        return (length, carried, -each.tensor_parallel_size)

    return max(feasible, key=rank)


USEFUL_LENGTH = 8192
"""Where the profile sets no length: what a replica should hold before more replicas count more."""


def load_of(asked: Asked, feasible: list[Option]) -> float:
    """Requests at once that the whole profile should carry; 0: it does not say."""
    target = asked.profile.target_concurrency
    return float(target * len(feasible[0].places)) if target else 0.0


def _answer(asked: Asked, chosen: Option, feasible: list[Option], space: Room) -> Placements:
    profile, facts = asked.profile, asked.facts
    by_uuids = {tuple(gpu.uuid for gpu in place.group.gpus): place for place in chosen.places}
    held = [name for name, uuids in asked.keep.items() if tuple(uuids) in by_uuids]
    fewer = profile.replicas is None or len(chosen.places) < profile.replicas
    blocked = fewer and any(gpu.blocked for gpu in space.allowed)
    names = topology.names(profile.name, len(chosen.places), held, blocked=blocked)
    given = {
        name: by_uuids.pop(there) for name in names if (there := tuple(asked.keep.get(name, ()))) in by_uuids
    }
    rest = sorted(by_uuids.values(), key=lambda place: place.group.gpus[0].index)
    placed = []
    for name in names:
        where = given.get(name) or rest.pop(0)
        placed.append(
            Placed(
                name, where.group.gpus, chosen.tensor_parallel_size, chosen.data_parallel_size, chosen.length,
                where.card.utilization, where.card, where.card.concurrency(facts, chosen.length) * chosen.data_parallel_size,
            )
        )  # fmt: skip
    tightest = min(chosen.places, key=lambda place: place.card.kv_cache_bytes)
    warnings = explain.warnings(asked, chosen, space)
    found: tuple[Lever, ...] = ()
    reduced = any(each.code == "max_model_len_reduced" for each in warnings)
    if reduced or (profile.target_concurrency or 0) > chosen.concurrency:
        found = levers(asked, tightest.group.gpus[0], chosen.tensor_parallel_size, len(space.allowed))
    return Placements(tuple(placed), warnings, explain.why(asked, chosen, feasible), found)
