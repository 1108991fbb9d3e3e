"""What a replica takes of a card beside the `gpu_memory_utilization` that vLLM is given.

VLLM measures one profiling run, makes the KV cache of everything that is left of its share, and goes on: it captures CUDA graphs and
warms its sampler up with `max_num_seqs` requests that use every sampling feature (`warmup_kernels`), and takes that again whenever so
many requests ask for it. On a card of its own the rest of the card has room for it; on a part of one it must be left free.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuserved.core.placement import Gpu
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
