"""Fleets in the straits that an operator meets."""

from __future__ import annotations

from typing import Any

import msgspec

from gpuserved.api.types import (
    GpuOwner,
    GpuView,
    LoadView,
    ModelView,
    ReplicaView,
    RolloutView,
    RouterView,
    Status,
    SupervisorView,
)

GIB = 1024**3
NOW = 1_800_000_000.0
LOAD = LoadView(
    prompt_tokens_per_s=8123.4, generation_tokens_per_s=2811.0, ttft_p50_s=0.18, ttft_p95_s=0.64, itl_p50_s=0.018,
    itl_p95_s=0.024, prefix_hit_pct=44.0, preemptions_per_min=0.0,
)  # fmt: skip


def gpu(index: int, used: float, replica: str | None, **more: Any) -> GpuView:
    owners = [
        GpuOwner(
            replica=replica,
            pid=4000 + index,
            memory_bytes=int(used * GIB),
            command="VLLM::Worker",
            user="gpuserve",
        )
    ]
    values: dict[str, Any] = {
        "index": index, "uuid": f"GPU-{index}", "name": "NVIDIA H200", "memory_used_bytes": int(used * GIB) + GIB // 2,
        "memory_total_bytes": int(140.4 * GIB), "utilization_pct": 70.0 + index, "temperature_c": 60.0 + index,
        "power_w": 540.0 + index, "owners": owners if replica else [], "unattributed_bytes": GIB // 2,
    }  # fmt: skip
    return GpuView(**(values | more))


def replica(index: int, **more: Any) -> ReplicaView:
    values: dict[str, Any] = {
        "id": f"qwen-{index}", "profile": "qwen", "model": "qwen3-8b", "engine": "vllm", "state": "READY", "rotation": "in",
        "pid": 4000 + index, "shim_pid": 3000 + index, "generation": 3, "gpus": [index], "in_flight": 50 - index,
        "running": 48 - index, "waiting": max(0, 3 - index), "kv_cache_pct": 70.0 - index * 5, "restarts": 0,
        "started_at": NOW - 273_600, "state_since": NOW - 200, "load": LOAD,
    }  # fmt: skip
    return ReplicaView(**(values | more))


def status(gpus: list[GpuView], replicas: list[ReplicaView]) -> Status:
    ready = sum(r.state == "READY" for r in replicas)
    model = ModelView(
        name="qwen3-8b", replicas=len(replicas), ready=ready, queued=0, in_flight=341, load=LOAD
    )
    return Status(
        generation=4,
        version="0.1.0",
        endpoint="http://127.0.0.1:8000",
        supervisor=SupervisorView(pid=1, version="0.1.0", uptime_s=10.0),
        router=RouterView(pids=[2], in_flight=341, queued=0, requests_total=100),
        gpus=gpus,
        replicas=replicas,
        models=[model],
        load=LOAD if replicas else None,
    )


def normal() -> Status:
    """Eight GPUs at work, with what a day brings: a foreign process, a full cache, a start, a drain, a failure."""
    gpus = [gpu(i, 129.6, f"qwen-{i}") for i in range(8)]
    stranger = GpuOwner(replica=None, pid=88123, memory_bytes=int(9.8 * GIB), command="python", user="alice")
    gpus[6] = msgspec.structs.replace(
        gpus[6], owners=[*gpus[6].owners, stranger], memory_used_bytes=int(139.4 * GIB)
    )
    gpus[4] = gpu(4, 22.1, "qwen-4", utilization_pct=5.0)
    replicas = [replica(i) for i in range(8)]
    pressed = msgspec.structs.replace(LOAD, preemptions_per_min=14.0, ttft_p95_s=2.9)
    replicas[5] = replica(5, in_flight=130, running=64, waiting=14, kv_cache_pct=97.1, load=pressed)
    replicas[4] = replica(4, state="STARTING", rotation="out", phase="loading weights 38%", state_since=NOW - 41, load=None,
                          running=None, waiting=None, kv_cache_pct=None, in_flight=0, restarts=2)  # fmt: skip
    replicas[6] = replica(
        6, state="DRAINING", rotation="out", running=3, waiting=0, in_flight=3, kv_cache_pct=9.0
    )
    replicas[7] = replica(7, state="FAILED", rotation="out", reason="exit 1: [/] CUDA error [red]out of memory", pid=None,
                          load=None, running=None, waiting=None, kv_cache_pct=None, in_flight=0, restarts=5)  # fmt: skip
    return status(gpus, replicas)


def empty() -> Status:
    """A daemon that has just begun, on a host without GPUs."""
    return status([], [])


def all_failed() -> Status:
    """A bad flag: nothing serves."""
    down = {"state": "FAILED", "rotation": "out", "pid": None, "in_flight": 0, "running": None, "waiting": None,
            "kv_cache_pct": None, "load": None, "reason": "vllm: error: unrecognized arguments: --max-model-length (will not heal by itself)"}  # fmt: skip
    gpus = [gpu(i, 0.0, None) for i in range(8)]
    return status(gpus, [replica(i, **down) for i in range(8)])


def gpu_lost() -> Status:
    """GPU 7 fell off the bus."""
    fine = normal()
    gone = GpuView(index=7, uuid="GPU-7", name="NVIDIA H200", state="LOST")
    return msgspec.structs.replace(fine, gpus=[*fine.gpus[:7], gone])


def long_names() -> Status:
    """Names as people give them."""
    name = "mixtral-8x22b-instruct-v0.3-finetuned-support-2026-10-awq"
    replicas = [replica(i, id=f"{name}-{i}", profile=name, model=f"org/{name}") for i in range(4)]
    return status([gpu(i, 120.0, f"{name}-{i}") for i in range(4)], replicas)


def wide_characters() -> Status:
    """Names that take two cells a character, and marks that take none."""
    names = ["通义千问-大模型-0", "モデル-1", "한국어-모델-2", "e\u0301te\u0301-3"]
    replicas = [
        replica(i, id=names[i], profile="中文", model="千问", state="FAILED" if i == 2 else "READY", reason="显存不足, 需要 80 GiB")
        for i in range(4)
    ]  # fmt: skip
    return status([gpu(i, 120.0, names[i]) for i in range(4)], replicas)


def many(count: int) -> Status:
    """`count` GPUs with a replica each."""
    return status([gpu(i, 100.0 + i % 30, f"qwen-{i}") for i in range(count)], [replica(i, gpus=[i]) for i in range(count)])  # fmt: skip


def rolling() -> Status:
    """Two models: the requests of one queue, the other is in the middle of a rolling change; an earlier change was turned back."""
    names = [f"qwen-{i}" for i in range(4)] + ["llama-0", "llama-0", "llama-1", "llama-1"]
    qwen = [replica(i, waiting=9 + i) for i in range(4)]
    big = {"profile": "llama", "model": "llama-70b"}
    llama = [
        replica(0, id="llama-0", gpus=[4, 5], **big),
        replica(1, id="llama-1", gpus=[6, 7], state="STARTING", rotation="out", phase="canary", state_since=NOW - 97, load=None,
                running=None, waiting=None, kv_cache_pct=None, in_flight=0, **big),
    ]  # fmt: skip
    models = [
        ModelView(
            name="llama-70b", replicas=2, ready=1, queued=0, in_flight=50, running=48, waiting=3, load=LOAD
        ),
        ModelView(
            name="qwen3-8b", replicas=4, ready=4, queued=37, in_flight=194, running=186, waiting=42, load=LOAD
        ),
    ]
    rollouts = [
        RolloutView(profile="llama", direction="forward", current="llama-1", done=0, total=2, began_at=NOW - 212),
        RolloutView(profile="qwen", direction="back", outcome="rolled_back", done=4, total=4, began_at=NOW - 4000,
                    reason="qwen-0: canary: /v1/chat/completions answered 500"),
    ]  # fmt: skip
    found = status([gpu(i, 120.0, name) for i, name in enumerate(names)], [*qwen, *llama])
    router = msgspec.structs.replace(found.router, queued=37)
    return msgspec.structs.replace(found, models=models, rollouts=rollouts, router=router)


SCENES = {
    "normal": normal,
    "empty": empty,
    "all-failed": all_failed,
    "gpu-lost": gpu_lost,
    "disconnected": normal,
    "long-names": long_names,
    "rolling": rolling,
    "wide-characters": wide_characters,
}
