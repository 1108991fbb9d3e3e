"""The profiles of the suite, for the look-alike engine and for the real one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.box import REPOSITORY, Box

VLLM_PYTHON = os.environ.get("GPUSERVE_TEST_VLLM")
"""Interpreter of an environment that holds the real vLLM; `make test-vllm` sets it."""

Scalar = str | int | float | bool


def toml(tables: Mapping[str, Mapping[str, object]], **top: object) -> str:
    """A profile. JSON's scalars and lists are TOML's too."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def sim(
    served: str,
    replicas: int = 2,
    flags: Mapping[str, Scalar] | None = None,
    tables: Mapping[str, Mapping[str, object]] | None = None,
    **top: object,
) -> str:
    """A profile of the look-alike; `flags` are its switches."""
    own = {"step_ms": 20} | dict(flags or {})
    return toml(
        {"sim": own, **(tables or {})},
        model="sim/tiny", served_name=served, engine="sim", replicas=replicas, max_model_len=8192, **({"gpus": []} | top),
    )  # fmt: skip


@dataclass(frozen=True)
class Flavour:
    """One engine under the suite, and what differs between the two by its nature."""

    engine: str
    profile: str
    stream_tokens: int
    """Tokens of a stream that lasts for several seconds."""
    start_s: float
    """Deadline for both replicas, and for one that comes back."""
    hang_rotation_s: float
    """One that makes no step for so long leaves rotation."""


class Fleet(Box):
    """A running box with one profile of two replicas, `tiny-0` and `tiny-1`."""

    flavour: Flavour


SERVED = "tiny"
HEALTH = {"interval_s": 0.5, "timeout_s": 2, "hang_rotation_s": 2, "hang_timeout_s": 8}
"""The minute-long defaults, shortened so that the suite can wait for them."""
RESTART = {"backoff_s": 0.2, "budget": 20}


def sim_flavour() -> Flavour:
    """Two look-alikes with a load phase."""
    tables: dict[str, Mapping[str, object]] = {"health": HEALTH, "restart": RESTART}
    # It maps shared memory and starts a process that escapes, as the worst engines do.
    flags: dict[str, Scalar] = {"load_s": 0.5, "shm_leak": True, "escape_child": True}
    return Flavour(
        "sim", sim(SERVED, flags=flags, tables=tables), stream_tokens=300, start_s=60, hang_rotation_s=2
    )


IN_VLLM = Path(__file__).resolve().parent / "in_vllm"
"""What runs inside the real engines of the tests: all begin with its `sitecustomize`."""
VLLM_ENV = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONPATH": str(IN_VLLM)}
VLLM_TABLES: Mapping[str, Mapping[str, object]] = {
    "health": HEALTH | {"timeout_s": 4, "hang_rotation_s": 4, "hang_timeout_s": 10},
    "restart": RESTART,
}


def vllm_profile(
    model: Path,
    served: str,
    flags: Mapping[str, Scalar],
    env: Mapping[str, str] | None = None,
    tables: Mapping[str, Mapping[str, object]] = VLLM_TABLES,
    **top: object,
) -> str:
    """A profile of the real vLLM in its CPU build."""
    own = {"load_format": "dummy", "enforce_eager": True, "kv_cache_memory_bytes": 67108864} | dict(flags)
    return toml(
        {"vllm": own, "env": VLLM_ENV | dict(env or {}), **tables},
        model=str(model), served_name=served, engine="vllm", python=VLLM_PYTHON, max_model_len=2048, gpus=[],
        **({"replicas": 2} | top),
    )  # fmt: skip


def make_model(folder: Path) -> Path:
    """A tiny model folder, made by the vLLM environment's own libraries."""
    assert VLLM_PYTHON
    script = REPOSITORY / "scripts" / "make_tiny_model.py"
    subprocess.run([VLLM_PYTHON, str(script), str(folder)], check=True, timeout=120, capture_output=True)
    return folder
