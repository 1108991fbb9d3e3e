"""The share of a card that vLLM is given (`gpu_memory_utilization`), so that it starts, and what it takes beside that.

VLLM takes its share of what CUDA sees of the card, and first looks whether as much is free (`request_memory`): by then its own CUDA
context is there, and NCCL's buffers. It measures one profiling run, makes the KV cache of everything that is left of its share, and
goes on: it captures CUDA graphs and warms its sampler up with `max_num_seqs` requests that use every sampling feature
(`warmup_kernels`), and takes that again whenever so many requests ask for it. On a card of its own the rest of the card has room for
it; on a part of one it must be left free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gpuserved.core.placement import Gpu, NoFit
from gpuserved.core.planner.memory import DEFAULT_UTILIZATION, visible_bytes
from gpuserved.core.planner.model import ModelFacts
from gpuserved.core.planner.peak import default_batch
from gpuserved.core.planner.releases import GIB, LATEST, UNKNOWN, release_of
from gpuserved.core.profile import Profile

CONTEXT_BYTES = int(0.55 * GIB)
"""A process's CUDA context with torch's kernels: 0.52 GiB measured on an H100 when vLLM looks; 0.4 are reported of a card of 24 GB."""
PARALLEL_BYTES = int(0.41 * GIB)
"""NCCL's buffers where several GPUs are one replica: llm-d-planner's table, as in `releases`."""
GRAPH_BYTES, GRAPH_SMALL_BYTES = int(1.1 * GIB), int(0.5 * GIB)
"""CUDA graphs that the second runner of 0.26 captures from what is left over, up to 1.04 GiB measured, and with at most 256
sequences. Later releases count them, and not all of cuBLAS' workspaces: no less is kept for those."""
LATE_SAMPLER_BYTES = 23
"""Per sequence and vocabulary entry, beside what the second runner's profiling run counts: an engine of 1024 sequences and 128,256
entries held 40.88 GiB of an H100, 2.75 more than its own figures add up to (0.26.0). The first runner profiles what it warms up."""
ASSUMED_VOCABULARY = 152_000
"""Where the model is not known."""
_FIRST_RUNNER_FLAGS = frozenset({
    "enable_dbo", "enable_elastic_ep", "enable_return_routed_experts", "logits_processors", "prefill_context_parallel_size",
    "speculative_config",
})  # fmt: skip
"""What the second model runner does not know, or not in every form (`_get_v2_model_runner_unsupported_features`)."""


@dataclass(frozen=True)
class Runs:
    """Which model a replica runs, on which vLLM; None: nobody knows."""

    facts: ModelFacts | None = None
    version: str | None = None


ANYTHING = Runs()


def first_runner(profile: Profile) -> bool:
    """True where vLLM may fall back to its first model runner, or is told to."""
    return profile.env.get("VLLM_USE_V2_MODEL_RUNNER") == "0" or not _FIRST_RUNNER_FLAGS.isdisjoint(
        profile.flags
    )


def before_bytes(size: int) -> int:
    """What vLLM's own process holds of each card before it looks at what is free there.

    :param size: GPUs of the replica.
    """
    return CONTEXT_BYTES + (PARALLEL_BYTES if size > 1 else 0)


def late_bytes(profile: Profile, gpu: Gpu, runs: Runs) -> int:
    """What vLLM takes of a card after it has made its KV cache."""
    asked = profile.flags.get("max_num_seqs")
    default = default_batch(gpu.memory_total_bytes or 0, gpu.name).sequences
    sequences = asked if isinstance(asked, int) else default
    graphs = GRAPH_BYTES if sequences > 256 else GRAPH_SMALL_BYTES
    eager = profile.flags.get("enforce_eager") is True
    return (0 if eager else graphs) + _sampler(profile, sequences, runs)


def _sampler(profile: Profile, sequences: int, runs: Runs) -> int:
    release = release_of(runs.version)
    release = LATEST if release is UNKNOWN else release
    vocabulary = ASSUMED_VOCABULARY
    if runs.facts is not None:
        vocabulary = runs.facts.vocab_size
        _, second = release.runners(runs.facts, first_runner=first_runner(profile))
        if not second:
            return 0
    return LATE_SAMPLER_BYTES * sequences * vocabulary


def asked_utilization(profile: Profile) -> float | None:
    """What the profile sets; None: the planner chooses."""
    value = profile.flags.get("gpu_memory_utilization")
    return float(value) if profile.engine.planning.by_memory and isinstance(value, (int, float)) else None


def wanted_utilization(profile: Profile, gpu: Gpu, size: int, runs: Runs = ANYTHING) -> float | None:
    """What a replica of `size` GPUs is given whatever others hold: what is asked for, else its share; None: neither is set."""
    asked = asked_utilization(profile)
    return asked if asked is not None else _shared(profile, gpu, size, runs)


def chosen_utilization(profile: Profile, gpu: Gpu, size: int, runs: Runs = ANYTHING) -> float | None:
    """What a card is computed with; None: the default, which keeps room for the estimate's error."""
    wanted = wanted_utilization(profile, gpu, size, runs)
    if wanted is not None:
        return wanted
    late = late_bytes(profile, gpu, runs)
    cap, alone = (utilization_cap(one, size, late) for one in (gpu, replace(gpu, memory_used_bytes=None)))
    # Alone on a card vLLM's own default is left as it is.
    undisturbed = cap >= min(DEFAULT_UTILIZATION, alone) and utilization_cap(gpu, size) >= DEFAULT_UTILIZATION
    return None if undisturbed else cap


def utilization_cap(gpu: Gpu, size: int, spared_bytes: int = 0) -> float:
    """The largest that vLLM accepts for a replica of `size` GPUs beside what others hold; 1 where nobody knows the card's size.

    :param spared_bytes: what is to stay free beside it.
    """
    if not gpu.memory_total_bytes:
        return 1.0
    visible = _visible_bytes(gpu)
    # NVML's figure holds the driver's reserve.
    used = max(gpu.memory_used_bytes or 0, gpu.memory_total_bytes - visible)
    return _floor((gpu.memory_total_bytes - used - before_bytes(size) - spared_bytes) / visible)


def utilization_limit(profile: Profile, gpu: Gpu, size: int, runs: Runs = ANYTHING) -> float:
    """The largest that a profile may ask for on this card when nobody else is there but who has the other shares."""
    shared = _shared(profile, gpu, size, runs)
    return shared if shared is not None else utilization_cap(replace(gpu, memory_used_bytes=None), size)


def too_high(profile: Profile, gpus: list[Gpu], runs: Runs = ANYTHING) -> NoFit | None:
    """What the profile asks for is more than vLLM, or its share, can have on any of these cards."""
    asked = asked_utilization(profile)
    known = [gpu for gpu in gpus if gpu.memory_total_bytes]
    limit = max(
        (utilization_limit(profile, gpu, profile.gpus_per_replica, runs) for gpu in known), default=1.0
    )
    if asked is None or asked <= limit:
        return None
    whole = profile.gpu_share is None or profile.gpu_share >= 1
    why = (
        "the CUDA context needs some of the card, and vLLM wants all of its share to be free"
        if whole
        else f"gpu_share = {profile.gpu_share:g} holds what vLLM does not count, too: its CUDA context, its graphs, its sampler"
    )
    return NoFit(
        "does_not_fit",
        f"{profile.name}: gpu_memory_utilization = {asked:g} is more than the {limit:g} that can be had: {why}",
        f"gpu_memory_utilization = {limit:g}, or leave it out" if limit > 0 else "a larger gpu_share",
    )


def free_bytes(gpu: Gpu) -> int:
    """What others leave of it; 0 where nobody knows."""
    return (gpu.memory_total_bytes or 0) - (gpu.memory_used_bytes or 0)


def _shared(profile: Profile, gpu: Gpu, size: int, runs: Runs) -> float | None:
    """With `gpu_share` everything that a replica takes lies inside its share: the next one finds its own part free."""
    share = profile.gpu_share
    if not profile.engine.planning.by_memory or share is None or share >= 1:
        return None
    if not gpu.memory_total_bytes:
        return share
    beside = before_bytes(size) + late_bytes(profile, gpu, runs)
    return _floor(share - beside / _visible_bytes(gpu))


def _visible_bytes(gpu: Gpu) -> int:
    return visible_bytes(gpu.memory_total_bytes or 0, gpu.memory_reserved_bytes)


def _floor(share: float) -> float:
    return max(0.0, math.floor(100 * share + 1e-9) / 100)
