from __future__ import annotations

import pytest

from gpuserved.engines.base import MemoryReport
from gpuserved.engines.vllm.memory_report import GIB, read

PREFIX = "(EngineCore pid=23) INFO 11-24 02:03:23 [gpu_worker.py:760] "
WORKER = "(Worker_TP1 pid=24) INFO 11-24 02:03:23 [gpu_worker.py:760] "


def test_the_figures_of_one_start() -> None:
    found = read([
        PREFIX + "Model loading took 14.99 GiB memory and 5.123456 seconds",
        PREFIX + "Estimated CUDA graph memory: 0.45 GiB total",
        PREFIX + "Available KV cache memory: 51.38 GiB",
        PREFIX + "GPU KV cache size: 420,900 tokens, Maximum concurrency for 8,192 tokens per request: 51.38x",
        PREFIX + "Graph capturing finished in 21 secs, took 0.61 GiB",
        PREFIX + "Free memory on device (78.66/79.18 GiB) on startup. Desired GPU memory utilization is (0.92, 72.85 GiB). "
        "Actual usage is 15.12 GiB for consumed memory (weights + non-torch), 5.21 GiB for peak activation, and 0.61 GiB "
        "for CUDAGraph memory.",
    ])  # fmt: skip
    assert found == MemoryReport(
        kv_cache_bytes=int(51.38 * GIB),
        kv_cache_tokens=420_900,
        weights_bytes=int(14.99 * GIB),
        activation_bytes=int(5.21 * GIB),
        graph_bytes=int(0.61 * GIB),
    )


def test_of_several_workers_the_tightest_counts() -> None:
    found = read([
        PREFIX + "Available KV cache memory: 30.10 GiB", WORKER + "Available KV cache memory: 29.95 GiB",
        PREFIX + "Model loading took 33.80 GiB memory and 1.0 seconds", WORKER + "Model loading took 33.90 GiB memory and 1.0 seconds",
    ])  # fmt: skip
    assert found is not None
    assert (found.kv_cache_bytes, found.weights_bytes) == (int(29.95 * GIB), int(33.90 * GIB))


@pytest.mark.parametrize(
    "line",
    [
        "GPU KV cache size: 420,900 tokens",
        "CPU KV cache size: 1,048,576 tokens, Maximum concurrency for 512 tokens per request: 2048.00x",
        "",
    ],
)
def test_without_the_size_of_the_cache_there_is_nothing_to_keep(line: str) -> None:
    assert read([line]) is None


def test_graph_memory_that_was_freed_is_none() -> None:
    found = read(
        ["Available KV cache memory: 4.45 GiB", "Graph capturing finished in 9 secs, took -0.88 GiB"]
    )
    assert found is not None
    assert found.graph_bytes == 0
