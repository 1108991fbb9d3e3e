"""What could be changed so that a model fits, or fits better, and what each change brings. Every one is computed, not guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gpuserved.core.placement import Gpu, Lever
from gpuserved.core.planner import memory
from gpuserved.core.planner.memory import Card, Setting
from gpuserved.core.planner.model import ModelFacts
from gpuserved.core.planner.options import VLLM_DEFAULT_LENGTH, Asked, divides
from gpuserved.core.planner.peak import default_batch
from gpuserved.core.planner.utilization import late_bytes, utilization_cap, utilization_limit
from gpuserved.core.planner.weights import quantised

HIGHEST_UTILIZATION = 0.95
"""Above it too little is left for what vLLM does not count: cuBLAS workspaces, fragmentation."""
FEWER_SEQUENCES = 256


def levers(asked: Asked, gpu: Gpu, size: int, there: int) -> tuple[Lever, ...]:
    """Changes for a replica of `size` GPUs like this one, those that bring most first.

    :param there: GPUs the profile may use.
    """
    facts, setting = asked.facts, asked.setting(gpu, size)
    now = memory.card(facts, setting).kv_cache_tokens
    found = []
    for change, fresh, other in _changes(asked, setting, size, there, _highest(asked, gpu, size)):
        card = memory.card(other, fresh)
        longest = card.longest(other, asked.limit)
        wanted = asked.profile.max_model_len or min(asked.limit, VLLM_DEFAULT_LENGTH)
        if card.kv_cache_tokens > now:
            found.append(Lever(change, card.kv_cache_tokens, longest, fits=longest >= wanted))
    return tuple(sorted(found, key=lambda lever: (-lever.kv_cache_tokens, lever.change)))


def _changes(
    asked: Asked, setting: Setting, size: int, there: int, highest: float
) -> Iterator[tuple[str, Setting, ModelFacts]]:
    facts, base = asked.facts, replace(setting, measured=None)
    wider = next((n for n in range(size + 1, there + 1) if divides(facts, n) is None), None)
    if wider is not None and setting.data_parallel_size == 1:
        yield f"tensor_parallel_size = {wider}", replace(base, tensor_parallel_size=wider), facts
    if setting.utilization is not None and setting.utilization < highest:
        yield f"gpu_memory_utilization = {highest:g}", replace(base, utilization=highest), facts
    if (setting.kv_value_bytes or facts.dtype_bytes) > 1:
        yield 'kv_cache_dtype = "fp8"', replace(base, kv_value_bytes=1), facts
    if facts.quantization is None:
        yield 'quantization = "fp8"', base, quantised(facts, 0.5)
        small = replace(quantised(facts, 0.5).weights, loading_bytes=0)
        yield "a checkpoint in fp8", base, replace(facts, weights=small)
    default = default_batch(setting.memory_total_bytes, setting.gpu_name)
    if (setting.max_num_seqs or default.sequences) > FEWER_SEQUENCES:
        yield (
            f"max_num_seqs = {FEWER_SEQUENCES} and max_num_batched_tokens = 2048",
            replace(base, max_num_seqs=FEWER_SEQUENCES, max_num_batched_tokens=2048),
            facts,
        )


def _highest(asked: Asked, gpu: Gpu, size: int) -> float:
    """The utilisation that may be advised: nothing that would be refused then."""
    span = size * (asked.profile.data_parallel_size or 1)
    limit = utilization_limit(asked.profile, gpu, span, asked.runs)
    cap, alone = (utilization_cap(one, span) for one in (gpu, replace(gpu, memory_used_bytes=None)))
    if cap < alone:  # beside others nothing is left over for what vLLM does not count
        cap = utilization_cap(gpu, span, late_bytes(asked.profile, gpu, asked.runs))
    return min(HIGHEST_UTILIZATION, limit, cap)


def smallest_change(asked: Asked, card: Card | None, found: tuple[Lever, ...], size: int) -> str:
    """The hint of a refusal: the change that costs least, among those that make it fit."""
    facts, wanted = asked.facts, asked.profile.max_model_len
    if card is not None and wanted is not None:
        longest = card.longest(facts, wanted)
        if longest >= min(VLLM_DEFAULT_LENGTH, wanted):
            return f"max_model_len = {longest}"
    order = (
        "gpu_memory_utilization",
        "tensor_parallel_size",
        "kv_cache_dtype",
        "quantization",
        "a checkpoint",
        "max_num_seqs",
    )
    for name in order:
        lever = next((each for each in found if each.fits and each.change.startswith(name)), None)
        if lever is not None:
            return lever.change
    if card is None:
        return "use GPUs with more memory"
    for more in range(size + 1, 65):
        if divides(facts, more) is None:
            setting = Setting(
                card.total_bytes,
                tensor_parallel_size=more,
                kv_value_bytes=card.shape.value_bytes,
                version=asked.version,
            )
            length = min(asked.limit, wanted or VLLM_DEFAULT_LENGTH)
            if memory.card(facts, setting).longest(facts, length) >= length:
                return f"tensor_parallel_size = {more} on {more} GPUs of this size, or a quantised checkpoint"
    return "use a quantised checkpoint, or GPUs with more memory"
