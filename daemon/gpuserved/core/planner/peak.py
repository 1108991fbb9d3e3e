"""The transient peak of vLLM's profiling run: one step of `max_num_batched_tokens` tokens, then the sampler on `max_num_seqs` rows.

What a step holds at its widest follows from shapes; measured on an H100 with 0.26.0 the sums below are met to 0.13 GiB, those with experts to 0.6, and never exceeded.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuserved.core.planner.model import ModelFacts
from gpuserved.core.planner.releases import GIB, LATEST, MIB, Release

LARGE_CARD_BYTES = 70 * GIB
HUGE_CARD_BYTES = 160 * GIB
"""Where vLLM raises its batch defaults (`arg_utils`): 8192 tokens and 1024 sequences, from 160 GiB on 16384 tokens."""
BASE_BYTES = 96 * MIB
"""cuBLAS' workspace (32 MiB) and small buffers: 32 to 71 MiB measured."""
MOE_BASE_BYTES = 128 * MIB
"""The same with experts: 52 to 102 MiB measured."""
STATE_BYTES = 4.25
"""Per sequence and vocabulary entry, held by the second runner: counts of sampled tokens (4 B), two bit masks."""
SECOND_SAMPLER_BYTES = 2
"""Per sequence and vocabulary entry: the second runner samples from the 16-bit logits themselves."""
MLA_BYTES = 128 * MIB
"""Of MLA's buffer for long prompts (`chunked_prefill_workspace`): 65536 compressed vectors, 72 MiB measured."""
MULTIMODAL_BYTES = GIB
"""Kept for an encoder's peak and outputs, which depend on the model and its largest image; not measured."""
_DENSE_FLOOR_BYTES = 5 * GIB
"""Peak of a dense model with a large card's defaults: 4.84 GiB is the highest measured at 128k vocabulary."""
_MOE_FLOOR_BYTES = int(7.6 * GIB)
"""The same for experts: 7.38 GiB is the highest measured (gpt-oss)."""
_SMALL_FLOOR_BYTES = 2 * GIB
"""Peak on a smaller card (2048 tokens, 256 sequences): 1.2 GiB by the sampler's formula; nobody published a measurement."""
_MEASURED_PEAK_BYTES = {"Mistral3ForConditionalGeneration": int(2.5 * GIB)}
"""Architectures whose measured peak is far from the formula: 2.12 GiB at 131k vocabulary (llm-d-planner, vLLM 0.11)."""
_UNPACKED = frozenset({"awq", "gptq", "bitsandbytes"})
"""Quantisations whose kernels may unpack a whole matrix for a large batch."""


@dataclass(frozen=True)
class Batch:
    """vLLM's limits of one engine step."""

    sequences: int
    tokens: int


SMALL_BATCH = Batch(256, 2048)
"""Of every card that is not a large one."""


@dataclass(frozen=True)
class Split:
    """How one engine is spread over GPUs, and whether it compiles its graph."""

    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    compiled: bool = True
    first_runner: bool = False
    """True where a flag may keep the engine on the first model runner."""


def default_batch(memory_total_bytes: int, gpu_name: str) -> Batch:
    """What the API server of vLLM 0.26 to 0.33 takes where nothing is set (`arg_utils._get_default_batch...`)."""
    if memory_total_bytes >= HUGE_CARD_BYTES:
        return Batch(1024, 16384)
    if memory_total_bytes >= LARGE_CARD_BYTES and "a100" not in gpu_name.lower():
        return Batch(1024, 8192)
    return SMALL_BATCH


def activation_peak(facts: ModelFacts, batch: Batch, split: Split, release: Release, *, large: bool) -> int:
    """The peak in bytes of one GPU, CUDA graphs left out.

    :param large: the card has a large card's batch defaults; only the floors of an unknown release look at it.
    """
    more = MULTIMODAL_BYTES if facts.multimodal else 0
    if release.reserve_apart:
        return _by_runner(facts, batch, split, release) + more
    known = _MEASURED_PEAK_BYTES.get(facts.architecture)
    if known is not None:
        return known
    if release.exact:
        return max(_sampler(facts, batch, split, release), _step(facts, batch, split)) + more
    floors = (_MOE_FLOOR_BYTES if facts.experts else _DENSE_FLOOR_BYTES) if large else _SMALL_FLOOR_BYTES
    latest = _by_runner(facts, batch, split, LATEST)
    return max(_sampler(facts, batch, split, release), floors, latest) + more


def _by_runner(facts: ModelFacts, batch: Batch, split: Split, release: Release) -> int:
    """What the model's runner takes; the larger figure where either may run it."""
    first, second = release.runners(facts, first_runner=split.first_runner)
    step, entries = _step(facts, batch, split), batch.sequences * facts.vocab_size
    peaks = []
    if first:
        capped = (facts.logits_held - 1) * SECOND_SAMPLER_BYTES * entries
        peaks.append(max(_sampler(facts, batch, split, release), step) + capped)
    if second:
        sampler = facts.logits_held * SECOND_SAMPLER_BYTES * entries + _gathered(entries, split)
        state = int(STATE_BYTES * entries) + (MLA_BYTES if facts.mla else 0) if release.counts_state else 0
        peaks.append(max(sampler, step) + state)
    base = MOE_BASE_BYTES if facts.experts else BASE_BYTES
    return base + _workspace(facts, batch, split) + max(peaks)


def _sampler(facts: ModelFacts, batch: Batch, split: Split, release: Release) -> int:
    """The first runner's."""
    entries = batch.sequences * facts.vocab_size
    return int(release.sampler_bytes * entries) + release.sampler_fixed_bytes + _gathered(entries, split)


def _gathered(entries: int, split: Split) -> int:
    """Each GPU's part of the 16-bit logits, beside all of them."""
    return 2 * entries // split.tensor_parallel_size if split.tensor_parallel_size > 1 else 0


def _step(facts: ModelFacts, batch: Batch, split: Split) -> int:
    """One step's states at their widest: gate and up-projection with their product, beside the hidden states that are kept.

    A graph that is compiled for the first time is also tuned: the embedding's kernel runs on a copy of its table, beside two
    hidden states (measured: 1.10 GiB for an 8B model, 0.88 without compiling). With experts both are there at once.
    """
    size, tokens, hidden = facts.dtype_bytes, batch.tokens, facts.hidden_size
    attention = max(
        (
            2 * facts.attention_heads * g.head_dim + g.kv_heads * (g.head_dim + g.value_dim)
            for g in facts.layers
        ),
        default=0,
    )
    wide = max(3 * facts.intermediate_size, attention) // split.tensor_parallel_size
    step = tokens * size * (wide + facts.hidden_held * hidden)
    if facts.quantization in _UNPACKED:
        step += 2 * hidden * facts.intermediate_size * size // split.tensor_parallel_size
    if not split.compiled:
        return step
    tuned = facts.vocab_size * hidden * size // split.tensor_parallel_size
    return step + tuned if facts.experts else max(step, tuned + 2 * tokens * hidden * size)


def _workspace(facts: ModelFacts, batch: Batch, split: Split) -> int:
    """Buffers that the experts' kernels keep (`TritonExperts.workspace_shapes`): of each token's experts, the widest input of
    either matrix, and the output. The mxfp4 kernels keep four hidden states of a token.
    """
    if not facts.experts or not facts.experts_per_token:
        return 0
    tokens = batch.tokens * split.data_parallel_size
    hidden, width = facts.hidden_size, facts.expert_width // split.tensor_parallel_size
    if facts.quantization in {"mxfp4", "gpt_oss_mxfp4"}:
        return tokens * facts.dtype_bytes * 4 * hidden
    each = max(width, hidden) + max(2 * width, hidden)
    return tokens * facts.dtype_bytes * (facts.experts_per_token * each + 2 * hidden)
