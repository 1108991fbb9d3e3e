"""Why a placement is as it is, and what its operator should know."""

from __future__ import annotations

from gpuserved.core.placement import Warned
from gpuserved.core.planner import refusals
from gpuserved.core.planner.options import Asked, Option, option, sizes
from gpuserved.core.planner.room import Room


def _size(each: Option) -> str:
    replicas = len(each.places)
    return f"{replicas} replica{'s' if replicas != 1 else ''} of {each.tensor_parallel_size} GPU{'s' if each.tensor_parallel_size > 1 else ''}"


def _tokens(each: Option) -> int:
    return min((place.card.kv_cache_tokens for place in each.places), default=0)


def why(asked: Asked, chosen: Option, feasible: list[Option]) -> tuple[str, ...]:
    """The reasons, a sentence each."""
    found = []
    profile, size = asked.profile, chosen.tensor_parallel_size
    if profile.tensor_parallel_size is None:
        if size == feasible[0].tensor_parallel_size and size == 1:
            found.append("the model fits on one GPU, so each replica gets one")
        elif size == feasible[0].tensor_parallel_size:
            found.append(f"{size} is the smallest tensor-parallel size that fits")
        other = _alternative(chosen, feasible)
        if other is not None:
            found.append(_compared(chosen, other))
    if profile.data_parallel == "internal":
        found.append(
            f"vLLM's own data parallelism over {chosen.data_parallel_size} engines: one server, and one dead engine ends all; "
            + ("experts are split over all of them" if asked.facts.experts else "the model has no experts to split, so "
               'data_parallel = "replicas" loses nothing and keeps the others alive')
        )  # fmt: skip
    elif asked.facts.experts and asked.facts.mla and size > 1:
        found.append(
            "the compressed KV cache (MLA) is the same on every GPU of a group; "
            f'data_parallel = "internal" would give each engine its own and split the {asked.facts.experts} experts'
        )
    if any(place.card.source == "measured" for place in chosen.places):
        found.append("memory as vLLM measured it at an earlier start")
    return tuple(found + list(asked.facts.notes))


def _alternative(chosen: Option, feasible: list[Option]) -> Option | None:
    """The one that was nearest to being chosen: the smallest size, else the next wider one."""
    if chosen is not feasible[0]:
        return feasible[0]
    return next((each for each in feasible if each.tensor_parallel_size > chosen.tensor_parallel_size), None)


def _compared(chosen: Option, other: Option) -> str:
    mine, theirs = _tokens(chosen), _tokens(other)
    if chosen.tensor_parallel_size > other.tensor_parallel_size:
        more = f"{mine / theirs:.1f} times" if theirs else "more than"
        reason = (
            f"and takes {chosen.length} tokens a request instead of {other.length}"
            if chosen.length > other.length
            else f"and all together carry {chosen.carried:.0f} requests of {chosen.length} tokens at once instead of {other.carried:.0f}"
        )
        return f"{_size(chosen)} and not {_size(other)}: one holds {more} the tokens ({mine} against {theirs}), {reason}"
    more = f"{theirs / mine:.1f} times" if mine else "more than"
    return (
        f"{_size(other)} would hold {theirs} tokens each, {more} the {mine} here; "
        "set target_concurrency, or tensor_parallel_size, if requests are long or many"
    )


def warnings(asked: Asked, chosen: Option, space: Room) -> tuple[Warned, ...]:
    """The traps, and what was cut."""
    profile, name = asked.profile, asked.profile.name
    found: list[Warned] = []
    longest = asked.limit
    if profile.max_model_len is None and not profile.max_model_len_auto:
        found.append(
            Warned(
                "max_model_len_unset",
                f"{name}: max_model_len is not set; the model's longest is {longest} tokens, and {chosen.length} are planned. "
                "Set what your requests need: fewer tokens a request are more requests at once",
            )
        )
    if chosen.length < longest:
        found.append(
            Warned(
                "max_model_len_reduced",
                f"{name}: one request of the model's {longest} tokens does not fit; max_model_len is {chosen.length}",
            )
        )
    if wider := _wider(asked, chosen):
        found.append(wider)
    target = profile.target_concurrency
    if target and chosen.concurrency < target:
        found.append(
            Warned(
                "target_concurrency_missed",
                f"{name}: a replica holds {chosen.concurrency:.1f} requests of {chosen.length} tokens at once, "
                f"and target_concurrency is {target}; more wait in the engine's queue, or are preempted",
            )
        )
    if asked.facts.uncounted:
        found.append(
            Warned(
                "memory_not_counted",
                f"{name}: not in these figures: {'; '.join(asked.facts.uncounted)}. Set gpu_memory_utilization, and leave it room",
            )
        )
    if any(place.group.spans for place in chosen.places):
        found.append(
            Warned(
                "tp_spans_islands",
                f"{name}: {chosen.tensor_parallel_size} GPUs are not all joined by NVLink or one NUMA node; all-reduces are slow there",
            )
        )
    if any(gpu.blocked for gpu in space.allowed):
        found.append(refusals.degraded(profile, space))
    return tuple(found)


def _wider(asked: Asked, chosen: Option) -> Warned | None:
    """A fixed size where fewer GPUs a replica would serve the same."""
    fixed = asked.profile.tensor_parallel_size
    if fixed is None or fixed == 1:
        return None
    load = (asked.profile.target_concurrency or 1) * len(chosen.places)
    for size in sizes(asked.facts, fixed - 1):
        each = option(asked, size)
        if each.places and each.length >= chosen.length and each.carried >= load:
            return Warned(
                "tp_wider_than_needed",
                f"{asked.profile.name}: tensor_parallel_size = {fixed}, and {size} is enough: {_size(each)} instead of "
                f"{_size(chosen)}, {each.carried:.0f} requests of {chosen.length} tokens at once instead of {chosen.carried:.0f}",
            )
    return None
