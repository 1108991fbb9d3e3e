"""How the releases of vLLM spend and count memory: what differs between them is data here, and nowhere else.

Sources: vLLM's own code (`gpu_worker.determine_available_memory`, both model runners) of 0.26.0 and 0.32.0; figures of 0.26.0
measured on an H100 (tests/planner/measured_rows.json); figures of 0.11 published by llm-d-planner.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from gpuserved.core.planner.model import LayerKind, ModelFacts

GIB = 1024**3
MIB = 1024**2


class SecondRunner(Enum):
    """Which models are run by vLLM's second model runner ("V2")."""

    NONE = "none"
    DENSE = "dense"
    """Models without experts and states, and a few with experts."""
    ANY = "any"
    """All that it can run; with experts or states the larger figure of both runners is taken."""


@dataclass(frozen=True)
class Release:
    """One way of spending and counting. Bytes of one GPU."""

    name: str
    second_runner: SecondRunner
    sampler_bytes: float
    """Per sequence and vocabulary entry, at the peak of the first runner's dummy sampling."""
    sampler_fixed_bytes: int
    exact: bool
    """True where the peak is computed from the model's shapes; False: no less than what was measured for its kind."""
    counts_state: bool
    """True where memory that the runner holds beside the weights (`total_consumed`) is taken from the KV cache."""
    counts_second_graphs: bool
    """True where the second runner's CUDA graphs are taken from the KV cache; 0.26 captures them from what is left over."""
    graph_bytes: int
    """CUDA graphs at a large card's batch defaults."""
    graph_small_bytes: int
    non_torch_bytes: int
    """CUDA context's growth and libraries of one GPU alone."""
    non_torch_parallel_bytes: int
    """The same with NCCL's buffers."""
    error_share: float
    """Of a card, kept for what the estimate cannot know."""
    reserve_apart: bool = True
    """True where the driver's reserve and what lies beside the checkpoint are counted by themselves, not held by the error."""

    def runners(self, facts: ModelFacts, *, first_runner: bool = False) -> tuple[bool, bool]:
        """Whether the first, and the second, may run this model (`VllmConfig.use_v2_model_runner`).

        :param first_runner: a flag asks for what the second may not know.
        """
        plain = not facts.experts and all(group.kind is not LayerKind.STATE for group in facts.layers)
        if self.second_runner is SecondRunner.NONE:
            return True, False
        if self.second_runner is SecondRunner.ANY:
            return first_runner or not plain, True
        second = plain or facts.architecture in _SECOND_WITH_EXPERTS
        return first_runner or not second, second


_SECOND_WITH_EXPERTS = frozenset({"DeepseekV2ForCausalLM", "GraniteMoeForCausalLM", "Qwen2MoeForCausalLM"})
"""`DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES` of 0.26 (those that the planner knows)."""

UNKNOWN = Release(
    name="unknown", second_runner=SecondRunner.NONE, sampler_bytes=39.6, sampler_fixed_bytes=0, exact=False,
    counts_state=False, counts_second_graphs=True, graph_bytes=int(0.6 * GIB), graph_small_bytes=int(0.3 * GIB),
    non_torch_bytes=int(0.15 * GIB), non_torch_parallel_bytes=int(0.55 * GIB), error_share=0.02,
    reserve_apart=False,
)  # fmt: skip
"""No vLLM to ask: no less than any release takes. The peak is 39.6 B per sequence and vocabulary entry, or a floor; CUDA graphs
0.39 to 1.03 GiB measured, of which the error holds the rest; non-torch 0.13 to 0.14, and 0.54 to 0.55 with NCCL."""

_SORTING = Release(
    name="before 0.26", second_runner=SecondRunner.NONE, sampler_bytes=38.0, sampler_fixed_bytes=int(0.14 * GIB), exact=True,
    counts_state=False, counts_second_graphs=True, graph_bytes=int(0.6 * GIB), graph_small_bytes=int(0.3 * GIB),
    non_torch_bytes=int(0.15 * GIB), non_torch_parallel_bytes=int(0.55 * GIB), error_share=0.02,
    reserve_apart=False,
)  # fmt: skip
"""The sampler sorts: 16-bit and 32-bit logits (2 + 4 B), sorted values and 64-bit indexes (4 + 8), probabilities, cumulated
sums, masks and noise (20). What the published text models measure above 38 B is the same 0.05 to 0.13 GiB for all."""

_V0_26 = Release(
    name="0.26", second_runner=SecondRunner.DENSE, sampler_bytes=14.0, sampler_fixed_bytes=0, exact=True,
    counts_state=False, counts_second_graphs=False, graph_bytes=int(0.8 * GIB), graph_small_bytes=int(0.5 * GIB),
    non_torch_bytes=int(0.24 * GIB), non_torch_parallel_bytes=int(0.65 * GIB), error_share=0.003,
)  # fmt: skip
"""Kernels filter in place: logits (2 + 4 B), probabilities and noise (4 + 4). CUDA graphs with experts are estimated at 0.58
and 0.64 GiB; non-torch 0.225 to 0.240; with NCCL 0.41 more, as the published rows say (not measured here)."""

_V0_27 = Release(
    name="0.27 and later", second_runner=SecondRunner.ANY, sampler_bytes=14.0, sampler_fixed_bytes=0, exact=True,
    counts_state=True, counts_second_graphs=True, graph_bytes=int(1.1 * GIB), graph_small_bytes=int(0.5 * GIB),
    non_torch_bytes=int(0.24 * GIB), non_torch_parallel_bytes=int(0.65 * GIB), error_share=0.005,
)  # fmt: skip
"""By the code of 0.32: all memory that is gone counts, and graphs as they are captured (0.26 captures 0.37 to 1.04 GiB).
Whether a release runs experts on the first runner or the second, the larger figure is taken."""

LATEST = _V0_27
_SINCE: tuple[tuple[tuple[int, int], Release], ...] = (
    ((0, 27), _V0_27),
    ((0, 26), _V0_26),
    ((0, 0), _SORTING),
)
_VERSION = re.compile(r"(\d+)\.(\d+)")


def release_of(version: str | None) -> Release:
    """The release of an installed version, such as 0.26.0 or 0.32.0+cu130; None, or not a number: `UNKNOWN`."""
    found = _VERSION.match(version or "")
    if found is None:
        return UNKNOWN
    number = (int(found[1]), int(found[2]))
    return next(release for since, release in _SINCE if number >= since)
