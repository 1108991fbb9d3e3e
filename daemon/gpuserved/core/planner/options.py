"""Each tensor-parallel size that could serve a profile, with the groups, memory and requests it would have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpuserved.core.placement import Gpu
from gpuserved.core.planner import memory, topology
from gpuserved.core.planner.memory import Card, Measured, Setting
from gpuserved.core.planner.model import ModelFacts
from gpuserved.core.planner.utilization import Runs, chosen_utilization, first_runner, free_bytes
from gpuserved.core.profile import FlagValue, Profile

VLLM_DEFAULT_LENGTH = 2048
"""What vLLM takes for a model whose configuration names no longest context; a cache that holds less is useless."""
KEPT_OF_BEST = 0.5
"""Where no length is asked for, GPUs that hold less than this part of the best one's length are left out, not the length cut."""
LINKED_EFFICIENCY = 0.9
UNLINKED_EFFICIENCY = 0.75
"""Throughput that stays with each doubling of a tensor-parallel group, over NVLink and over PCIe: rough, and used only to
choose between sizes that both carry the load."""

Lookup = Callable[[Setting], "Measured | None"]
"""What an earlier start with these settings measured."""


@dataclass(frozen=True)
class Place:
    """One group of GPUs that a replica could have."""

    group: topology.Group
    card: Card
    longest: int
    """The longest request that surely fits, up to the limit; 0: the model does not fit."""


@dataclass(frozen=True)
class Option:
    """One tensor-parallel size."""

    tensor_parallel_size: int
    data_parallel_size: int
    places: tuple[Place, ...]
    """Where replicas would go."""
    best: Place | None
    """The roomiest group there is, whether it fits or not; None: too few GPUs."""
    length: int
    """`max_model_len` of every replica; 0: it does not fit."""
    concurrency: float
    """Requests of that length that one replica holds at once."""

    @property
    def carried(self) -> float:
        """Requests that all replicas hold at once."""
        return len(self.places) * self.concurrency

    def efficiency(self) -> float:
        """Against GPUs that need not talk to each other."""
        linked = all(not place.group.spans and place.group.gpus[0].nvlink for place in self.places)
        doublings = (self.tensor_parallel_size - 1).bit_length()
        return float((LINKED_EFFICIENCY if linked else UNLINKED_EFFICIENCY) ** doublings)


@dataclass(frozen=True)
class Asked:
    """What one plan is for: the same for every option."""

    profile: Profile
    facts: ModelFacts
    free: tuple[Gpu, ...]
    keep: Mapping[str, Sequence[str]]
    lookup: Lookup
    version: str | None = None
    """Of the vLLM that will run; None: unknown."""

    @property
    def runs(self) -> Runs:
        """What decides how much memory is taken beside a utilisation."""
        return Runs(self.facts, self.version)

    @property
    def limit(self) -> int:
        """The length asked for, else the model's longest."""
        return self.profile.max_model_len or self.facts.max_length or VLLM_DEFAULT_LENGTH

    def setting(self, gpu: Gpu, tensor_parallel_size: int, data_parallel_size: int = 1) -> Setting:
        """What a card of this GPU is computed for."""
        flags = self.profile.flags
        bare = Setting(
            memory_total_bytes=gpu.memory_total_bytes or 0, gpu_name=gpu.name,
            tensor_parallel_size=tensor_parallel_size, data_parallel_size=data_parallel_size,
            utilization=chosen_utilization(self.profile, gpu, tensor_parallel_size * data_parallel_size, self.runs), kv_value_bytes=kv_value_bytes(flags),
            max_num_seqs=_whole(flags.get("max_num_seqs")), max_num_batched_tokens=_whole(flags.get("max_num_batched_tokens")),
            kv_cache_bytes=_whole(flags.get("kv_cache_memory_bytes")), graphs=flags.get("enforce_eager") is not True,
            async_scheduling=flags.get("async_scheduling") is not False, version=self.version,
            first_runner=first_runner(self.profile), memory_reserved_bytes=gpu.memory_reserved_bytes,
        )  # fmt: skip
        return bare.with_measured(self.lookup(bare))


def kv_value_bytes(flags: Mapping[str, FlagValue]) -> int | None:
    """Bytes of one number of the KV cache; None: the model's type."""
    name = str(flags.get("kv_cache_dtype"))
    if name.startswith(("fp8", "int8")):
        return 1
    return 4 if name == "float32" else None


def divides(facts: ModelFacts, size: int) -> str | None:
    """What a tensor-parallel size does not divide, as a sentence; None: vLLM takes it."""
    if facts.attention_heads and facts.attention_heads % size:
        return f"{facts.attention_heads} attention heads cannot be divided by {size}"
    kv_heads = facts.kv_heads
    if kv_heads and not facts.mla and kv_heads % size and size % kv_heads:
        return f"{kv_heads} KV heads can be neither divided by {size} nor copied evenly"
    for name, value in facts.divisible:
        if value % size:
            return f"{name} {value} cannot be divided by {size}"
    return None


def sizes(facts: ModelFacts, most: int) -> list[int]:
    """The tensor-parallel sizes that the model allows."""
    return [size for size in range(1, most + 1) if divides(facts, size) is None]


def option(asked: Asked, size: int) -> Option:
    """What tensor parallel over `size` GPUs would give."""
    profile = asked.profile
    internal = profile.data_parallel == "internal"
    parallel = 1
    if internal:
        parallel = profile.data_parallel_size or max(1, len(asked.free) // (size * (profile.replicas or 1)))
    span = size * parallel
    kept = topology.kept_groups(asked.free, span, asked.keep)
    used = {gpu.uuid for group in kept.values() for gpu in group}
    fresh = topology.groups([gpu for gpu in asked.free if gpu.uuid not in used], span)
    whole = [topology.Group(group) for _, group in sorted(kept.items())]
    cards: dict[tuple[object, ...], tuple[Card, int]] = {}
    places = [_place(asked, group, size, parallel, cards) for group in (*whole, *fresh)]
    best = max(places, key=lambda place: place.card.kv_cache_bytes, default=None)
    fitting, length = _same_length(asked, places)
    if profile.replicas is not None:
        fitting = fitting[: profile.replicas]
    elif internal:
        fitting = fitting[:1]
    elif any(not place.group.spans for place in fitting):
        fitting = [place for place in fitting if not place.group.spans]
    worst = min((place.card.concurrency(asked.facts, length) for place in fitting), default=0.0)
    return Option(size, parallel, tuple(fitting), best, length, worst * parallel)


def _place(
    asked: Asked,
    group: topology.Group,
    size: int,
    parallel: int,
    cards: dict[tuple[object, ...], tuple[Card, int]],
) -> Place:
    """:param cards: those of equal GPUs, computed once."""
    tight = min(group.gpus, key=free_bytes)
    alike = (tight.memory_total_bytes, tight.memory_used_bytes, tight.memory_reserved_bytes, tight.name)
    if alike not in cards:
        card = memory.card(asked.facts, asked.setting(tight, size, parallel))
        cards[alike] = (card, card.longest(asked.facts, asked.limit))
    return Place(group, *cards[alike])


def _same_length(asked: Asked, places: list[Place]) -> tuple[list[Place], int]:
    """The places that hold one length for all replicas, and that length; 0: there are none."""
    if asked.profile.max_model_len is not None:
        wanted = asked.profile.max_model_len
        fitting = [place for place in places if place.longest >= wanted]
        return fitting, wanted if fitting else 0
    best = max((place.longest for place in places), default=0)
    if best < min(VLLM_DEFAULT_LENGTH, asked.limit):
        return [], 0
    fitting = [place for place in places if place.longest >= best * KEPT_OF_BEST]
    return fitting, min(place.longest for place in fitting)


def _whole(value: FlagValue | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
