"""The `sim` engine: our look-alike of vLLM, for tests, benchmarks and GPUs on paper."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.core.profile import EngineName, FlagValue, Profile
from gpuserved.engines.base import Launch, LaunchContext
from gpuserved.engines.environment import DEFAULT_PATH, finish
from gpuserved.engines.sim.flags import known_flags
from gpuserved.engines.vllm.like import VllmLike

PROFILE_KEYS = frozenset({"gpus", "gpu_memory_gib"})
"""Keys of `[sim]` that describe the simulated GPUs: for the inventory, not for the command line."""
_OURS = frozenset({"uds", "host", "port", "served_model_name", "tensor_parallel_size", "max_model_len"})
"""Set from the profile's own keys and the replica's folder."""
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])


class SimEngine(VllmLike):
    """Adapter for `python -m gpuserved.engines.sim`."""

    name = EngineName.SIM.value

    def check(self, profile: Profile) -> list[str]:
        """Every key of `[sim]` must be a flag of the look-alike, and a model path must exist."""
        allowed = (known_flags() | PROFILE_KEYS) - _OURS
        for key, value in profile.flags.items():
            name = key.replace("-", "_")
            if name in _OURS:
                raise Invalid(
                    f"{profile.name}: `[sim] {key}` is set by gpuserve",
                    hint="use the profile's own keys (served_name, tensor_parallel_size, max_model_len)",
                )
            if name not in allowed:
                raise Invalid(f"{profile.name}: unknown key `[sim] {key}`", hint=_nearest(name, allowed))
            if not isinstance(value, (str, int, float, bool)):
                raise Invalid(
                    f"{profile.name}: `[sim] {key}` must be a text, a number or a boolean",
                    hint="python -m gpuserved.engines.sim serve --help describes every flag",
                )
        if profile.model.startswith("/") and not Path(profile.model).exists():
            raise Invalid(
                f"{profile.name}: there is no model folder {profile.model}",
                hint="the look-alike reads no model, but a path must exist; any name without a leading slash will do",
            )
        return []

    def launch(self, context: LaunchContext) -> Launch:
        profile = context.profile
        socket = context.run_dir / "engine.sock"
        argv = [
            sys.executable, "-m", "gpuserved.engines.sim", "serve", profile.model, "--uds", str(socket),
            "--served-model-name", profile.served_name,
        ]  # fmt: skip
        if profile.max_model_len is not None:
            argv += ["--max-model-len", str(profile.max_model_len)]
        if profile.gpus_per_replica > 1:
            argv += ["--tensor-parallel-size", str(profile.gpus_per_replica)]
        argv += _arguments(profile.flags)
        return Launch(tuple(argv), _environment(context, self._environ), f"unix:{socket}")


def _nearest(name: str, allowed: frozenset[str]) -> str:
    close = difflib.get_close_matches(name, sorted(allowed), n=1)
    if close:
        return f"did you mean `[sim] {close[0]}`?"
    return "python -m gpuserved.engines.sim serve --help describes every flag"


def _arguments(flags: Mapping[str, FlagValue]) -> list[str]:
    argv: list[str] = []
    for key, value in flags.items():
        name = key.replace("-", "_")
        if name in PROFILE_KEYS or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        argv.append(flag if value is True else f"{flag}={value}")
    return argv


def _environment(context: LaunchContext, environ: Mapping[str, str]) -> dict[str, str]:
    """Only what the look-alike reads: it starts in a tenth of a second and stays small."""
    env = {
        "PATH": environ.get("PATH", DEFAULT_PATH),
        "HOME": environ.get("HOME", str(context.cache_dir)),
        "PYTHONPATH": _PACKAGE_ROOT,  # works from a source tree too
    }
    return finish(env, context)
