"""The memory of one GPU under vLLM, item by item.

vLLM (`gpu_worker.determine_available_memory`, 0.21 and later): KV cache = utilisation x total - weights - activation peak -
non-torch - CUDA graphs. What it measures at start-up is estimated here: by the release's own rules where the release is known
(`releases`), else never below the highest figure measured for its kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpuserved.core.planner import kv
from gpuserved.core.planner.kv import KvShape
from gpuserved.core.planner.model import ModelFacts
from gpuserved.core.planner.peak import SMALL_BATCH, Batch, Split, activation_peak, default_batch
from gpuserved.core.planner.releases import MIB, UNKNOWN, Release, release_of
from gpuserved.core.planner.weights import rounding

DEFAULT_UTILIZATION = 0.92
"""vLLM's own since it counts CUDA graphs; 0.90 before, which left graphs out."""
RESERVED_SHARE, RESERVED_LEAST_BYTES = 0.011, 640 * MIB
"""Of a card, that the driver keeps from CUDA where NVML does not say how much: 479 MiB of an H100's 81559 are measured, and
others report 350 to 870 MiB of cards of 24 to 80 GB."""
LOADING_SHARE = 0.95
"""Of a card, that weights may take before they are quantised: then there is neither cache nor activation."""
BATCHES_IN_FLIGHT = 2
"""With asynchronous scheduling (`VllmConfig.max_concurrent_batches`): a window keeps the tokens of both."""
BYTE_CACHE_BYTES = 32 * MIB
"""What an 8-bit cache holds beside the weights, whatever its size: measured once (8B, 0.26.0), cause not found."""
_HOPPER = ("h100", "h800", "h20")
"""H20, H200 and GH200 all have the last of them in their names."""


@dataclass(frozen=True)
class Setting:
    """What a card is computed for."""

    memory_total_bytes: int
    gpu_name: str = ""
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    """Of vLLM's own data parallelism: experts are split over it."""
    utilization: float | None = None
    """`gpu_memory_utilization`; None: the planner's choice, 0.92 less the release's `error_share`."""
    kv_value_bytes: int | None = None
    """None: the model's own type."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    graphs: bool = True
    """False with `enforce_eager`, or for a vLLM before 0.21, which did not count them."""
    first_runner: bool = False
    """True where a flag may keep the engine on vLLM's first model runner."""
    async_scheduling: bool = True
    """False with `async_scheduling = false`; on by default since 0.14."""
    version: str | None = None
    """Of the vLLM that will run; None: unknown, and no less is planned than any release takes."""
    memory_reserved_bytes: int | None = None
    """Part of the total that the driver keeps from CUDA; None: NVML does not say."""
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
    release: str | None = None
    """The releases of vLLM by whose rules it is estimated; None: it is measured, or no version is known."""

    def longest(self, facts: ModelFacts, limit: int) -> int:
        """The longest request up to `limit` that surely fits; 0: none."""
        room = self.kv_cache_bytes - self.margin_bytes
        return kv.longest(facts, self.shape, room, limit)

    def concurrency(self, facts: ModelFacts, length: int) -> float:
        """Requests of `length` tokens at once."""
        return kv.concurrency(facts, self.shape, self.kv_cache_bytes, length)


def weights_per_gpu(facts: ModelFacts, tensor_parallel_size: int, data_parallel_size: int = 1) -> int:
    """Replicated parts whole, experts over all GPUs of the engine, the rest over the tensor-parallel group."""
    weights = facts.weights
    experts = weights.expert_bytes
    shared = weights.total_bytes - weights.replicated_bytes - experts
    world = tensor_parallel_size * data_parallel_size
    whole = weights.replicated_bytes + -(-shared // tensor_parallel_size) + -(-experts // world)
    return max(0, whole - weights.offloaded_bytes)


def _weights(facts: ModelFacts, setting: Setting, release: Release) -> int:
    found = weights_per_gpu(facts, setting.tensor_parallel_size, setting.data_parallel_size)
    if not release.reserve_apart:
        return found
    weights, tp = facts.weights, setting.tensor_parallel_size
    unpadded = any(name in setting.gpu_name.lower() for name in _HOPPER)
    padding = weights.padding_bytes // (tp * setting.data_parallel_size) if unpadded else 0
    scales = BYTE_CACHE_BYTES if setting.kv_value_bytes == 1 else 0
    return (
        found - padding + scales + weights.beside_bytes + weights.copied_bytes // tp + rounding(weights, tp)
    )


def cuda_bytes(setting: Setting, release: Release) -> int:
    """What CUDA sees of the card: `gpu_memory_utilization` is a share of this."""
    if not release.reserve_apart:
        return setting.memory_total_bytes  # the release's error holds the reserve
    return visible_bytes(setting.memory_total_bytes, setting.memory_reserved_bytes)


def visible_bytes(total_bytes: int, reserved_bytes: int | None) -> int:
    """A card without what the driver keeps from CUDA; None: NVML does not say how much that is."""
    if reserved_bytes is None:
        reserved_bytes = max(RESERVED_LEAST_BYTES, int(RESERVED_SHARE * total_bytes))
    return total_bytes - reserved_bytes


def card(facts: ModelFacts, setting: Setting) -> Card:
    """The memory card of one GPU."""
    release = release_of(setting.version)
    default = default_batch(setting.memory_total_bytes, setting.gpu_name)
    batch = Batch(setting.max_num_seqs or default.sequences, setting.max_num_batched_tokens or default.tokens)
    tp = setting.tensor_parallel_size
    in_flight = batch.tokens * (BATCHES_IN_FLIGHT if setting.async_scheduling else 1)
    shape = KvShape(tp, setting.kv_value_bytes or facts.dtype_bytes, in_flight)
    chosen = setting.utilization is None  # then the error has room of its own; else the verdict must keep it
    utilization = DEFAULT_UTILIZATION if setting.utilization is None else setting.utilization
    if setting.measured is not None:
        return _measured_card(facts, setting, shape, utilization, setting.measured)
    large = default != SMALL_BATCH
    split = Split(tp, setting.data_parallel_size, setting.graphs, setting.first_runner)
    items = Items(
        weights=_weights(facts, setting, release),
        activation=activation_peak(facts, batch, split, release, large=large),
        graphs=_graphs(facts, batch, split, release, large=large) if setting.graphs else 0,
        non_torch=release.non_torch_bytes if tp * setting.data_parallel_size == 1 else release.non_torch_parallel_bytes,
    )  # fmt: skip
    if setting.kv_cache_bytes is not None:
        return _fixed_card(facts, setting, shape, items, setting.kv_cache_bytes)
    total, budget = setting.memory_total_bytes, int(cuda_bytes(setting, release) * utilization)
    held = 0 if release.reserve_apart else items.graphs
    error = max(0, int(release.error_share * total) - held)
    room = budget - items.sum - (error if chosen else 0)
    # It is all there before it shrinks.
    before = int(total * LOADING_SHARE) - facts.weights.loading_bytes // tp
    room = min(room, before) if before < 0 else room
    return Card(
        total_bytes=total, utilization=utilization, weights_bytes=items.weights, activation_bytes=items.activation,
        graph_bytes=items.graphs, non_torch_bytes=items.non_torch, kv_cache_bytes=room,
        headroom_bytes=total - items.sum - room, margin_bytes=0 if chosen else error,
        kv_cache_tokens=kv.tokens(facts, shape, room), shape=shape, source="estimated",
        release=None if release is UNKNOWN else release.name,
    )  # fmt: skip


@dataclass(frozen=True)
class Items:
    """What is not KV cache, in bytes."""

    weights: int
    activation: int
    graphs: int
    non_torch: int

    @property
    def sum(self) -> int:
        """All of it."""
        return self.weights + self.activation + self.graphs + self.non_torch


def _graphs(facts: ModelFacts, batch: Batch, split: Split, release: Release, *, large: bool) -> int:
    """CUDA graphs, where they are taken from the KV cache. Their number follows `max_num_seqs`, up to 512 tokens."""
    first, _ = release.runners(facts, first_runner=split.first_runner)
    if not first and not release.counts_second_graphs:
        return 0
    many = batch.sequences > 256 if release.reserve_apart else large
    return release.graph_bytes if many else release.graph_small_bytes


def _fixed_card(facts: ModelFacts, setting: Setting, shape: KvShape, items: Items, room: int) -> Card:
    """A cache of a fixed size: it fits where everything together leaves the estimate's error free."""
    release, total = release_of(setting.version), setting.memory_total_bytes
    share = setting.utilization if setting.utilization is not None else 1.0
    over = int(cuda_bytes(setting, release) * share) - items.sum - room - int(release.error_share * total)
    room = over if over < 0 else room  # what is missing
    return Card(
        total_bytes=total, utilization=share, weights_bytes=items.weights, activation_bytes=items.activation,
        graph_bytes=items.graphs, non_torch_bytes=items.non_torch, kv_cache_bytes=room,
        headroom_bytes=total - items.sum - room, margin_bytes=0,
        kv_cache_tokens=kv.tokens(facts, shape, room), shape=shape, source="estimated",
        release=None if release is UNKNOWN else release.name,
    )  # fmt: skip


def _measured_card(
    facts: ModelFacts, setting: Setting, shape: KvShape, utilization: float, found: Measured
) -> Card:
    """VLLM's own figures, moved to this utilisation: everything but the KV cache stays as it was."""
    total = setting.memory_total_bytes
    budget = int(total * utilization)
    # CUDA's total is a little below NVML's, so a larger utilisation brings less than its share; a smaller one costs its share.
    moved = budget - int(total * found.utilization)
    room = found.kv_cache_bytes + min(moved, int(moved * 0.99))
    weights = found.weights_bytes or weights_per_gpu(
        facts, setting.tensor_parallel_size, setting.data_parallel_size
    )
    release = release_of(found.version)
    first, _ = release.runners(facts, first_runner=setting.first_runner)
    apart = not first and not release.counts_second_graphs  # captured from what is left over
    graphs = 0 if apart else found.graph_bytes or 0
    rest = budget - room - weights - graphs
    non_torch = (
        release.non_torch_bytes if setting.tensor_parallel_size == 1 else release.non_torch_parallel_bytes
    )
    if found.activation_bytes is not None:
        non_torch = rest - max(0, found.activation_bytes - graphs)
    return Card(
        total_bytes=total, utilization=utilization, weights_bytes=weights, activation_bytes=rest - non_torch,
        graph_bytes=graphs, non_torch_bytes=non_torch, kv_cache_bytes=room, headroom_bytes=total - budget, margin_bytes=0,
        kv_cache_tokens=kv.tokens(facts, shape, room), shape=shape, source="measured",
    )  # fmt: skip
