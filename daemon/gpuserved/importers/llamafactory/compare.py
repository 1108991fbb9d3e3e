"""What LlamaFactory itself would have run from the same file."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from gpuserved.importers.llamafactory import server
from gpuserved.importers.llamafactory.convert import DEFAULT_GPU_UTIL, DEFAULT_MAX_LEN
from gpuserved.importers.llamafactory.draft import Draft
from gpuserved.importers.llamafactory.keys import FOREIGN, KEYS


class WouldRun(msgspec.Struct, frozen=True, kw_only=True):
    """LlamaFactory's `api` for this file on this machine."""

    replicas: int
    tensor_parallel_size: int | None
    """None: the number of GPUs is not known."""
    max_model_len: int | str
    gpu_memory_utilization: float
    endpoint: str
    problems: list[str]
    """Why it would not have started, or not served as meant."""


def would_run(draft: Draft, gpus: int | None) -> WouldRun:
    """One process with one vLLM over every visible GPU.

    :param gpus: GPUs that are visible; None: not known.
    """
    values = draft.request.values
    config = values.get("vllm_config")
    asked = config.get("tensor_parallel_size") if isinstance(config, dict) else None
    # Its own: vllm_tensor_parallel_size is no key of LlamaFactory's, so it has no say here.
    size = asked if type(asked) is int else (gpus or 1 if gpus is not None else None)
    utilization = draft.flags.get("gpu_memory_utilization", DEFAULT_GPU_UTIL)
    length = draft.top.get("max_model_len", DEFAULT_MAX_LEN)
    return WouldRun(
        replicas=1,
        tensor_parallel_size=size,
        max_model_len=length if isinstance(length, int) else str(length),
        gpu_memory_utilization=float(utilization)
        if isinstance(utilization, (int, float))
        else DEFAULT_GPU_UTIL,
        endpoint=f"http://{server.address(draft.request.env)}",
        problems=_problems(draft, size, gpus),
    )


def _problems(draft: Draft, size: int | None, gpus: int | None) -> list[str]:
    values = draft.request.values
    found = []
    unknown = sorted(
        key for key in values if key in FOREIGN or key not in KEYS or key == "vllm_tensor_parallel_size"
    )
    if unknown:
        found.append(f"it rejects the file: unknown keys {', '.join(unknown)}")
    backend = values.get("infer_backend", "huggingface")
    if backend != "vllm":
        found.append(f"infer_backend is {backend}: it would not have used vLLM at all")
    if size is not None and gpus is not None and size > max(gpus, 1):
        found.append(f"vLLM refuses: a world size of {size} with {gpus} GPUs")
    heads = _heads(draft)
    if size and heads and heads % size:
        found.append(f"vLLM refuses: {heads} attention heads do not divide by {size}")
    return found


def _heads(draft: Draft) -> int | None:
    try:
        config = json.loads((Path(str(draft.top["model"])) / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    text = config.get("text_config")
    heads = config.get("num_attention_heads") or (
        text.get("num_attention_heads") if isinstance(text, dict) else None
    )
    return heads if type(heads) is int else None
