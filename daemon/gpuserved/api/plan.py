"""Wire types of a plan: `gpuserve plan --json` and `POST /v1/plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gpuserved.api.types import PlanWarning


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where one replica goes. Bytes are per GPU; None: not estimated."""

    replica: str
    gpus: Sequence[int]
    tensor_parallel_size: int
    max_model_len: int | None = None
    data_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    weights_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_tokens: int | None = None
    """Of the replica."""
    max_concurrency: float | None = None
    """Requests of `max_model_len` at once."""
    activation_bytes: int | None = None
    cuda_graph_bytes: int | None = None
    non_torch_bytes: int | None = None
    headroom_bytes: int | None = None
    """Left to nobody; with the other five it makes up the card."""
    memory_source: str | None = None
    """estimated, or measured: vLLM's own figures of an earlier start."""
    memory_release: str | None = None
    """The releases of vLLM by whose rules it is estimated; None: measured, or no version is known and the most is taken."""
    command: Sequence[str] = []
    environment: Mapping[str, str] = {}


class LeverView(msgspec.Struct, frozen=True, kw_only=True):
    """A change that makes room."""

    change: str
    kv_cache_tokens: int
    max_model_len: int
    """The longest request that fits then, up to what is asked for."""
    fits: bool


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a plan does not fit, and the smallest change that would make it."""

    code: str
    message: str
    hint: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`gpuserve plan --json`."""

    fits: bool
    placements: Sequence[Placement] = []
    warnings: Sequence[PlanWarning] = []
    refusal: Refusal | None = None
    why: Sequence[str] = []
    """Why these sizes, a sentence each."""
    levers: Sequence[LeverView] = []
    """Where room is short: what makes more of it, the largest first."""
    sampling: Mapping[str, float] = {}
    """What a request gets that sets none of these: the model's generation_config.json with the profile's flags."""
    answer_cap_tokens: int | None = None
    """No answer is longer, whatever a request asks for."""


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One profile to plan; `inventory` as in `--inventory FILE`, else the daemon's own."""

    name: str
    text: str
    source: str | None = None
    inventory: dict[str, Any] | None = None
