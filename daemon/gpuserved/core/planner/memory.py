"""The memory of one GPU under vLLM, item by item.

vLLM (`gpu_worker.determine_available_memory`, 0.21 and later): KV cache = utilisation x total - weights - activation peak -
non-torch - CUDA graphs. What it measures at start-up is estimated here, never below the highest figure measured for its kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpuserved.core.planner import kv
from gpuserved.core.planner.kv import KvShape
from gpuserved.core.planner.model import ModelFacts

GIB = 1024**3
DEFAULT_UTILIZATION = 0.92
"""vLLM's own since it counts CUDA graphs; 0.90 before, which left graphs out."""
ERROR_SHARE = 0.02
"""Of a card, kept for what an estimate cannot know: CUDA sees 480 MiB less of an H100 than NVML (measured), CUDA graphs of
large models take up to 1.03 GiB of 80 (llm-d-planner's table). The step from 0.90 to 0.92 is the same 2 %."""
NON_TORCH_BYTES = int(0.15 * GIB)
"""CUDA context and libraries of one GPU alone; measured 0.13 to 0.14 GiB (llm-d-planner)."""
NON_TORCH_PARALLEL_BYTES = int(0.55 * GIB)
"""The same with NCCL's buffers; measured 0.54 to 0.55 GiB at two GPUs (llm-d-planner)."""
SAMPLER_BYTES = 39.6
"""Per sequence and vocabulary entry of the sampler's dummy run, where the activation peak is. Seven text models of
llm-d-planner's table on an H100 measure 38.4 to 39.6 (for example 4.76 GiB / (1024 x 128,256))."""
LOADING_SHARE = 0.95
"""Of a card, that weights may take before they are quantised: then there is neither cache nor activation."""
MULTIMODAL_BYTES = GIB
"""Kept for an encoder's peak and outputs, which depend on the model and its largest image; not measured."""
LARGE_CARD_BYTES = 70 * GIB
HUGE_CARD_BYTES = 160 * GIB
"""Where vLLM raises its batch defaults (`arg_utils`): 8192 tokens and 1024 sequences, from 160 GiB on 16384 tokens."""
DENSE_FLOOR_BYTES = 5 * GIB
"""Peak of a dense model with a large card's defaults: 4.84 GiB is the highest measured at 128k vocabulary."""
MOE_FLOOR_BYTES = int(7.6 * GIB)
"""The same for experts: 7.38 GiB is the highest measured (gpt-oss)."""
SMALL_FLOOR_BYTES = 2 * GIB
"""Peak on a smaller card (2048 tokens, 256 sequences): 1.2 GiB by the sampler's formula; nobody published a measurement."""
GRAPH_BYTES = int(0.6 * GIB)
GRAPH_SMALL_BYTES = int(0.3 * GIB)
"""CUDA graphs: 0.39 to 0.6 GiB is usual on an H100; smaller batches capture fewer."""
MEASURED_PEAK_BYTES = {"Mistral3ForConditionalGeneration": int(2.5 * GIB)}
"""Architectures whose measured peak is far from the formula: 2.12 GiB at 131k vocabulary (llm-d-planner, vLLM 0.11)."""


@dataclass(frozen=True)
class Batch:
    """vLLM's limits of one engine step."""

    sequences: int
    tokens: int


def default_batch(memory_total_bytes: int, gpu_name: str) -> Batch:
    """What the API server of vLLM 0.26 to 0.33 takes where nothing is set (`arg_utils._get_default_batch...`)."""
    if memory_total_bytes >= HUGE_CARD_BYTES:
        return Batch(1024, 16384)
    if memory_total_bytes >= LARGE_CARD_BYTES and "a100" not in gpu_name.lower():
        return Batch(1024, 8192)
    return Batch(256, 2048)


@dataclass(frozen=True)
class Setting:
    """What a card is computed for."""

    memory_total_bytes: int
    gpu_name: str = ""
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    """Of vLLM's own data parallelism: experts are split over it."""
    utilization: float | None = None
    """`gpu_memory_utilization`; None: the planner's choice, 0.92 less `ERROR_SHARE` for the estimate's error."""
    kv_value_bytes: int | None = None
    """None: the model's own type."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    graphs: bool = True
    """False with `enforce_eager`, or for a vLLM before 0.21, which did not count them."""
    kv_cache_bytes: int | None = None
    """`kv_cache_memory_bytes`: vLLM then takes this and looks at no utilisation."""
    measured: Measured | None = None

    def with_measured(self, found: Measured | None) -> Setting:
        """The same, with what a start reported."""
        return self if found is None else replace(self, measured=found)


@dataclass(frozen=True)
class Measured:
    """What vLLM reported at a start with the same model, GPU, sizes and flags. Bytes of one GPU."""

    kv_cache_bytes: int
    utilization: float
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    """Peak, with the CUDA graphs' estimate inside, as vLLM logs it."""
    graph_bytes: int | None = None
    kv_cache_tokens: int | None = None
    version: str = ""


@dataclass(frozen=True)
class Card:
    """One GPU's memory. The items add up to the total: utilisation x total + headroom."""

    total_bytes: int
    utilization: float
    weights_bytes: int
    activation_bytes: int
    graph_bytes: int
    non_torch_bytes: int
    kv_cache_bytes: int
    """Negative: that much is missing before the first token."""
    headroom_bytes: int
    margin_bytes: int
    """Of the KV cache, that must stay over for a verdict of "fits": the estimate's error."""
    kv_cache_tokens: int
    shape: KvShape
    source: str
    """measured or estimated."""

    def longest(self, facts: ModelFacts, limit: int) -> int:
        """The longest request up to `limit` that surely fits; 0: none."""
        room = self.kv_cache_bytes - self.margin_bytes
        return kv.longest(facts, self.shape, room, limit) if room > 0 else 0

    def concurrency(self, facts: ModelFacts, length: int) -> float:
        """Requests of `length` tokens at once."""
        return kv.concurrency(facts, self.shape, max(0, self.kv_cache_bytes), length)


def weights_per_gpu(facts: ModelFacts, tensor_parallel_size: int, data_parallel_size: int = 1) -> int:
    """Replicated parts whole, experts over all GPUs of the engine, the rest over the tensor-parallel group."""
    weights = facts.weights
    experts = weights.expert_bytes
    shared = weights.total_bytes - weights.replicated_bytes - experts
    world = tensor_parallel_size * data_parallel_size
    whole = weights.replicated_bytes + -(-shared // tensor_parallel_size) + -(-experts // world)
    return max(0, whole - weights.offloaded_bytes)


def activation_peak(facts: ModelFacts, batch: Batch, memory_total_bytes: int, gpu_name: str) -> int:
    """The transient peak of vLLM's profiling run, CUDA graphs left out."""
    if facts.architecture in MEASURED_PEAK_BYTES:
        return MEASURED_PEAK_BYTES[facts.architecture]
    sampler = int(SAMPLER_BYTES * batch.sequences * facts.vocab_size)
    # Hidden states, their normed copy and residual, and the widest intermediate with its gate.
    forward = batch.tokens * facts.dtype_bytes * (4 * facts.hidden_size + 3 * facts.intermediate_size)
    large = default_batch(memory_total_bytes, gpu_name).tokens > 2048
    floor = (MOE_FLOOR_BYTES if facts.experts else DENSE_FLOOR_BYTES) if large else SMALL_FLOOR_BYTES
    return max(sampler, forward, floor) + (MULTIMODAL_BYTES if facts.multimodal else 0)


def card(facts: ModelFacts, setting: Setting) -> Card:
    """The memory card of one GPU."""
    default = default_batch(setting.memory_total_bytes, setting.gpu_name)
    batch = Batch(setting.max_num_seqs or default.sequences, setting.max_num_batched_tokens or default.tokens)
    total, tp = setting.memory_total_bytes, setting.tensor_parallel_size
    shape = KvShape(tp, setting.kv_value_bytes or facts.dtype_bytes, batch.tokens)
    utilization = DEFAULT_UTILIZATION if setting.utilization is None else setting.utilization
    budget = int(total * utilization)
    if setting.measured is not None:
        return _measured_card(facts, setting, shape, budget, setting.measured)
    weights = weights_per_gpu(facts, tp, setting.data_parallel_size)
    activation = activation_peak(facts, batch, total, setting.gpu_name)
    world = tp * setting.data_parallel_size
    non_torch = NON_TORCH_BYTES if world == 1 else NON_TORCH_PARALLEL_BYTES
    graphs = (GRAPH_BYTES if default.tokens > 2048 else GRAPH_SMALL_BYTES) if setting.graphs else 0
    error = max(0, int(ERROR_SHARE * total) - graphs)
    if setting.kv_cache_bytes is not None:
        return _fixed_card(facts, setting, shape, (weights, activation, graphs, non_torch))
    chosen = setting.utilization is None  # then the error has room of its own; else the verdict must keep it
    room = budget - weights - activation - non_torch - graphs - (error if chosen else 0)
    before = (
        int(total * LOADING_SHARE) - facts.weights.loading_bytes // tp
    )  # it is all there before it shrinks
    room = room if before >= 0 else min(room, before)
    return Card(
        total_bytes=total, utilization=utilization, weights_bytes=weights, activation_bytes=activation, graph_bytes=graphs,
        non_torch_bytes=non_torch, kv_cache_bytes=room, headroom_bytes=total - budget + (error if chosen else 0),
        margin_bytes=0 if chosen else error, kv_cache_tokens=kv.tokens(facts, shape, max(0, room)), shape=shape,
        source="estimated",
    )  # fmt: skip


def _fixed_card(
    facts: ModelFacts, setting: Setting, shape: KvShape, items: tuple[int, int, int, int]
) -> Card:
    """A cache of a fixed size: it fits where everything together leaves the estimate's error free."""
    weights, activation, graphs, non_torch = items
    total, room = setting.memory_total_bytes, setting.kv_cache_bytes or 0
    share = setting.utilization if setting.utilization is not None else 1.0
    over = int(total * share) - sum(items) - room - int(ERROR_SHARE * total)
    room = room if over >= 0 else over  # what is missing
    return Card(
        total_bytes=total, utilization=share, weights_bytes=weights, activation_bytes=activation, graph_bytes=graphs,
        non_torch_bytes=non_torch, kv_cache_bytes=room, headroom_bytes=total - sum(items) - room, margin_bytes=0,
        kv_cache_tokens=kv.tokens(facts, shape, max(0, room)), shape=shape, source="estimated",
    )  # fmt: skip


def _measured_card(facts: ModelFacts, setting: Setting, shape: KvShape, budget: int, found: Measured) -> Card:
    """VLLM's own figures, moved to this utilisation: everything but the KV cache stays as it was."""
    total = setting.memory_total_bytes
    # CUDA's total is a little below NVML's, so a larger utilisation brings less than its share; a smaller one costs its share.
    moved = budget - int(total * found.utilization)
    room = found.kv_cache_bytes + (int(moved * 0.99) if moved > 0 else moved)
    weights = found.weights_bytes or weights_per_gpu(
        facts, setting.tensor_parallel_size, setting.data_parallel_size
    )
    graphs = found.graph_bytes or 0
    rest = budget - room - weights - graphs
    non_torch = NON_TORCH_BYTES if setting.tensor_parallel_size == 1 else NON_TORCH_PARALLEL_BYTES
    if found.activation_bytes is not None:
        non_torch = rest - max(0, found.activation_bytes - graphs)
    return Card(
        total_bytes=total, utilization=round(budget / total, 6), weights_bytes=weights, activation_bytes=rest - non_torch,
        graph_bytes=graphs, non_torch_bytes=non_torch, kv_cache_bytes=room, headroom_bytes=total - budget, margin_bytes=0,
        kv_cache_tokens=kv.tokens(facts, shape, max(0, room)), shape=shape, source="measured",
    )  # fmt: skip
