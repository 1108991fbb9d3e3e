"""What the planner knows of a model: a value, made by `architecture.read` from its config.json and by `models` from its files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class LayerKind(str, Enum):
    """What one layer keeps of a request."""

    FULL = "full"
    """Keys and values of every token."""
    SLIDING = "sliding"
    """Keys and values of the last `window` tokens; chunked local attention counts as this."""
    MLA = "mla"
    """One compressed vector a token, the same on every GPU of a tensor-parallel group."""
    STATE = "state"
    """A state of constant size: Mamba, and linear attention."""


@dataclass(frozen=True)
class Layers:
    """Layers of one kind and shape."""

    kind: LayerKind
    count: int
    kv_heads: int = 0
    head_dim: int = 0
    """Of a key; MLA: `kv_lora_rank + qk_rope_head_dim`."""
    value_dim: int = 0
    """Of a value; MLA has none of its own."""
    window: int = 0
    state_bytes: int = 0
    """Of one request in one layer, over all GPUs of a tensor-parallel group."""


@dataclass(frozen=True)
class Weights:
    """Bytes of the checkpoint as vLLM loads it."""

    total_bytes: int
    replicated_bytes: int = 0
    """Part of the total that every GPU of a tensor-parallel group holds whole: norms, routers, MLA's down-projections."""
    expert_bytes: int = 0
    """Part of the total that vLLM's own data parallelism splits over all its GPUs too."""
    loading_bytes: int = 0
    """What must be there for a moment while it is quantised; 0: no more than in the end."""
    padding_bytes: int = 0
    """Part of `expert_bytes` that some kernels pad; the ones that a Hopper card gets since 0.26 do not."""
    beside_bytes: int = 0
    """What every GPU holds beside the checkpoint: rotary tables."""
    copied_bytes: int = 0
    """What a tensor-parallel group holds twice: MLA's up-projections, once more as decoding wants them."""
    matrices: tuple[tuple[int, int], ...] = ()
    """(bytes, how many) of the large matrices, each of which the allocator rounds up."""
    offloaded_bytes: int = 0
    """Of each GPU's part, that `cpu_offload_gb` keeps in host memory."""
    source: str = "index"
    """index, headers, hub (real bytes), or config (counted from the configuration's shapes)."""


@dataclass(frozen=True)
class ModelFacts:
    """Architecture and size of one model."""

    identity: str
    """The same for the same files: what measurements are stored under."""
    architecture: str
    """First of `architectures`, else the model type."""
    layers: tuple[Layers, ...]
    attention_heads: int
    kv_heads: int
    hidden_size: int
    vocab_size: int
    weights: Weights
    divisible: tuple[tuple[str, int], ...] = ()
    """Sizes beside the heads that a tensor-parallel size must divide, with their names in the configuration."""
    intermediate_size: int = 0
    hidden_held: int = 7
    """Hidden states of a step that are kept beside its widest intermediate: residual, input and output; more with more norms."""
    logits_held: int = 1
    """Copies of the logits at once: two where they are capped."""
    experts: int = 0
    experts_per_token: int = 0
    """0: the configuration does not say."""
    expert_width: int = 0
    """Intermediate size of one expert."""
    max_length: int | None = None
    """Longest context by the configuration; None: it names none."""
    dtype_bytes: int = 2
    quantization: str | None = None
    multimodal: bool = False
    notes: tuple[str, ...] = ()
    """What was taken the safe way because the configuration does not say."""
    uncounted: tuple[str, ...] = ()
    """Memory that flags ask for and no formula here covers."""

    @property
    def mla(self) -> bool:
        """True where keys and values are compressed to one vector."""
        return any(group.kind is LayerKind.MLA for group in self.layers)


@dataclass(frozen=True)
class Unknown:
    """A model that cannot be planned for, and why."""

    code: str
    """unknown_architecture, or model_not_here."""
    message: str
    hint: str
