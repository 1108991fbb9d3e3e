"""`vllm bench serve`, vLLM's own load test, against our URL."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuserved.api.errors import Refused
from gpuserved.bench.plan import Shape


@dataclass(frozen=True)
class Where:
    """What vLLM's client needs to know of the service."""

    url: str
    """Without `/v1`."""
    model: str
    tokenizer: str
    """Folder or hub id: prompts of a given length need the model's own tokenizer."""


def find_vllm(command: Sequence[str]) -> Path:
    """VLLM's program: beside a running replica's own, or on PATH.

    :param command: a replica's command line; empty: none is known.
    :raises Refused: there is none.
    """
    if command:
        beside = Path(command[0]).parent / "vllm"
        if os.access(beside, os.X_OK):
            return beside
    found = shutil.which("vllm")
    if found is None:
        raise Refused(
            "--vllm: vLLM is installed neither in the profile's environment nor on PATH",
            "leave --vllm out: gpuserve bench has a load of its own; or pip install vllm",
        )
    return Path(found)


def command_line(program: Path, where: Where, shape: Shape, percentiles: Sequence[int]) -> list[str]:
    """The same load in vLLM's words. Its lengths vary by a ratio around the middle of ours."""
    middle = (shape.prompt.low + shape.prompt.high) // 2 - shape.prefix_tokens
    ratio = (shape.prompt.high - shape.prompt.low) / max(1, shape.prompt.high + shape.prompt.low)
    return [
        str(program), "bench", "serve", "--backend", "openai-chat", "--base-url", where.url, "--endpoint", "/v1/chat/completions",
        "--model", where.model, "--served-model-name", where.model, "--tokenizer", where.tokenizer, "--dataset-name", "random",
        "--random-input-len", str(max(1, middle)), "--random-output-len", str((shape.output.low + shape.output.high) // 2),
        "--random-prefix-len", str(shape.prefix_tokens), "--random-range-ratio", f"{ratio:.3f}",
        "--num-prompts", str(shape.requests), "--request-rate", f"{shape.rate_per_s:g}",
        "--burstiness", "1.0" if shape.poisson else "1000000", "--seed", str(shape.seed), "--ignore-eos",
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", ",".join(map(str, percentiles)),
    ]  # fmt: skip
