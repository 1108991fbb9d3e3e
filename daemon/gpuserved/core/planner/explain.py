"""What an operator is told of a plan: why it is as it is, what to know, and for a refusal what is short and by how much, with the
smallest change that would make it fit.
"""

from __future__ import annotations

from gpuserved.core.placement import NoFit, Warned
from gpuserved.core.planner import kv
from gpuserved.core.planner.levers import levers, smallest_change
from gpuserved.core.planner.memory import Card
from gpuserved.core.planner.options import VLLM_DEFAULT_LENGTH, Asked, Option, option, sizes
from gpuserved.core.planner.releases import GIB
from gpuserved.core.planner.room import Room
from gpuserved.core.profile import Profile


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
        found.append(degraded(profile, space))
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


_STRETCHING = frozenset({"hf_overrides", "rope_scaling", "rope_theta"})


def gib(value: int) -> str:
    """`12.34 GiB`."""
    return f"{value / GIB:.2f} GiB"


def too_few(profile: Profile, count: int, size: int, there: int) -> NoFit:
    """More GPUs are asked for than the profile may use."""
    plural = "s" if there != 1 else ""
    if there >= size:
        hint = f"replicas = {there // size}" + (
            f", or tensor_parallel_size = {there // count}" if there >= count else ""
        )
    else:
        hint = f"tensor_parallel_size = {there}" + ("" if count == 1 else " and replicas = 1")
    return NoFit(
        "does_not_fit",
        f"{profile.name}: {count} x {size} GPUs are asked for (replicas x tensor_parallel_size), "
        f"and this profile has {there} GPU{plural} to use",
        hint,
    )


def overlap(profile: Profile, needed: int, space: Room) -> NoFit:
    """The GPUs are there, and something holds them."""
    size = profile.gpus_per_replica
    owners = "; ".join(f"GPU {gpu.index} {who}" for gpu, who in space.taken)
    fits = len(space.free) // size
    hint = f"replicas = {fits}, or " if fits else ""
    share = "" if profile.gpu_share else "; profiles share a card where each sets gpu_share"
    return NoFit(
        "gpu_overlap",
        f"{profile.name}: {needed} GPUs are needed and {len(space.free)} are free; held: {owners}",
        f"{hint}stop what holds them, or name other GPUs in gpus{share}",
    )


def degraded(profile: Profile, space: Room) -> Warned:
    """Fewer replicas, because GPUs are blocked."""
    names = "; ".join(f"GPU {gpu.index}: {gpu.blocked}" for gpu in space.allowed if gpu.blocked)
    return Warned("gpu_quarantined", f"{profile.name}: placed on fewer GPUs than it may use. {names}")


def not_divisible(asked: Asked, size: int, why: str, there: int) -> NoFit:
    """VLLM refuses this tensor-parallel size."""
    possible = sizes(asked.facts, max(there, size))
    near = sorted(possible, key=lambda n: (abs(n - size), n))[:2]
    return NoFit(
        "heads_not_divisible",
        f"{asked.profile.name}: tensor_parallel_size = {size}: {why}",
        "tensor_parallel_size = " + ", or ".join(str(n) for n in sorted(near)),
    )


def too_long(asked: Asked) -> NoFit | None:
    """A length beyond the model's own: vLLM refuses it."""
    wanted, longest = asked.profile.max_model_len, asked.facts.max_length
    stretched = (
        _STRETCHING & asked.profile.flags.keys() or "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in asked.profile.env
    )
    if wanted is None or longest is None or wanted <= longest or stretched:
        return None
    return NoFit(
        "does_not_fit",
        f"{asked.profile.name}: max_model_len = {wanted} is {wanted - longest} tokens more than the model's {longest}",
        f"max_model_len = {longest}, or stretch it with rope scaling in hf_overrides",
    )


def none_feasible(asked: Asked, options: list[Option], space: Room) -> NoFit:
    """No size fits: explained by the one that comes nearest."""
    profile = asked.profile
    there = [each for each in options if each.best is not None]
    if not there:
        size = options[0].tensor_parallel_size * options[0].data_parallel_size if options else 1
        if len(space.allowed) >= size * (profile.replicas or 1):
            return overlap(profile, size * (profile.replicas or 1), space)
        return too_few(profile, profile.replicas or 1, size, len(space.allowed))
    some = [each for each in there if each.places]
    if some:
        most = max(some, key=lambda each: len(each.places))
        return _fewer(asked, most, space)
    nearest = max(
        there, key=lambda each: (each.best.longest, each.best.card.kv_cache_bytes) if each.best else (0, 0)
    )
    best = nearest.best
    assert best is not None
    size = nearest.tensor_parallel_size
    found = levers(asked, best.group.gpus[0], size, len(space.allowed))
    hint = smallest_change(asked, best.card, found, size)
    beside = [gpu for gpu in best.group.gpus if gpu.memory_used_bytes and gpu.memory_used_bytes > GIB]
    foreign = "".join(
        f"; GPU {gpu.index} is short of {gib(gpu.memory_used_bytes or 0)} that others hold" for gpu in beside
    )
    taken = "".join(f"; GPU {gpu.index} is held {who}" for gpu, who in space.taken)
    message = f"{profile.name}: {_short(asked, best.card, size)}{foreign}{taken}"
    code = "gpu_overlap" if space.taken and not beside and _would_fit(asked, space) else "does_not_fit"
    return NoFit(code, message, hint, found, best.card)


def _would_fit(asked: Asked, space: Room) -> bool:
    """True where it is only others' leases that are in the way."""
    most = max(sizes(asked.facts, len(space.allowed)), default=0)
    return most > len(space.free)


def _fewer(asked: Asked, most: Option, space: Room) -> NoFit:
    profile, wanted = asked.profile, asked.profile.replicas or 1
    span = most.tensor_parallel_size * most.data_parallel_size
    missing = (wanted - len(most.places)) * span
    held = "; ".join(f"GPU {gpu.index} {who}" for gpu, who in space.taken)
    return NoFit(
        "gpu_overlap" if held else "does_not_fit",
        f"{profile.name}: {wanted} replicas of {span} GPU{'s' if span > 1 else ''} are asked for, and {len(most.places)} fit: "
        f"{missing} GPU{'s are' if missing > 1 else ' is'} missing" + (f"; held: {held}" if held else ""),
        f"replicas = {len(most.places)}",
    )


def _short(asked: Asked, card: Card, size: int) -> str:
    """What is missing on each GPU."""
    facts, limit = asked.facts, asked.limit
    each = f"on each of {size} GPUs" if size > 1 else "on one GPU"
    budget = int(card.total_bytes * card.utilization)
    parts = (
        f"weights {gib(card.weights_bytes)}, activations {gib(card.activation_bytes)}, CUDA graphs {gib(card.graph_bytes)}, "
        f"other {gib(card.non_torch_bytes)} {each}, of {gib(budget)} (gpu_memory_utilization {card.utilization:g} of {gib(card.total_bytes)})"
    )
    room = card.kv_cache_bytes - card.margin_bytes
    if card.kv_cache_bytes <= 0:
        return f"short of {gib(-card.kv_cache_bytes)} before the first token: {parts}"
    wanted = asked.profile.max_model_len or min(limit, VLLM_DEFAULT_LENGTH)
    missing = kv.request_bytes(facts, card.shape, wanted) + kv.reserved_bytes(facts, card.shape) - room
    unsure = f", less {gib(card.margin_bytes)} that the estimate may be wrong by" if card.margin_bytes else ""
    return (
        f"the KV cache is short of {gib(missing)} for one request of {wanted} tokens: {gib(card.kv_cache_bytes)} "
        f"({card.kv_cache_tokens} tokens) are left {each}{unsure}; {parts}"
    )
