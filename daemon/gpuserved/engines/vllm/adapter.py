"""The `vllm` engine: `vllm serve` on a Unix socket, in its own environment. The daemon never imports vLLM."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Launch, LaunchContext, MemoryReport, Sampling
from gpuserved.engines.environment import child_environment, finish
from gpuserved.engines.installed import (
    Installed,
    Program,
    expand,
    find_program,
    installed,
    looks_like_path,
    version_of,
)
from gpuserved.engines.vllm import flags as vllm_flags
from gpuserved.engines.vllm import memory_report
from gpuserved.engines.vllm.like import VllmLike
from gpuserved.engines.vllm.sampling import sampling

SUPPORTED = ((0, 26), (0, 33))
"""Lowest and highest minor version that the adapter was made for."""
NO_MEDIA_DOMAIN = "media.invalid"
"""`.invalid` never resolves (RFC 2606): with this allow-list vLLM fetches no media URL unless a profile names domains."""
_TERM_MARGIN_S = 2.0
"""vLLM's own shutdown limit ends this much before the supervisor's SIGKILL."""
_NEVER_PASSED = frozenset({
    "VLLM_SERVER_DEV_MODE",  # opens routes that pause and reset the engine
    "VLLM_CPU_KVCACHE_SPACE",  # silently beats --kv-cache-memory-bytes
    "VLLM_API_KEY",  # replicas would refuse the router; keys are the router's
    "VLLM_PORT",  # every replica would try the same port
    "VLLM_CACHE_ROOT",
    "VLLM_RPC_BASE_PATH",
})  # fmt: skip
_PASSED = (
    "VLLM_", "HF_HOME", "HF_HUB_", "HF_ENDPOINT", "HF_DATASETS_OFFLINE", "HF_XET_", "TRANSFORMERS_", "NCCL_", "CUDA_HOME", "OMP_",
)  # fmt: skip


class VllmEngine(VllmLike):
    """Adapter for vLLM 0.26 to 0.33, on GPUs or in its CPU build."""

    name = "vllm"
    reports_memory = True

    def program(self, profile: Profile) -> Program:
        """The command of this profile's vLLM and its interpreter.

        :raises Invalid: there is none.
        """
        if profile.python:
            python = expand(profile.python)
            if not os.access(python, os.X_OK) or os.path.isdir(python):
                raise Invalid(
                    f"{profile.name}: python = {profile.python!r} is not an interpreter that can be run",
                    hint="give the bin/python of the environment that vLLM is installed in",
                )
            return Program("", python)
        found = find_program("vllm", self._environ, beside=sys.executable)
        if found is None:
            raise Invalid(
                f"{profile.name}: vLLM is not installed: no `vllm` in PATH",
                hint="pip install vllm in an environment of its own and set python = '.../bin/python' in the profile, "
                "or choose another engine",
            )
        return found

    async def prepare(self, profile: Profile) -> None:
        """Learn the installed version's flags, so that `check` and `launch` know them. Some ten seconds the first time."""
        await vllm_flags.ensure_flag_table(self.program(profile).python, self._cache_dir)

    def check(self, profile: Profile) -> list[str]:
        """Flags are compared with the installed version's own once `prepare` has run."""
        python = self.program(profile).python
        version = version_of(python, *vllm_flags.DISTRIBUTIONS)
        if version is None:
            raise Invalid(
                f"{profile.name}: vLLM is not installed in the environment of {python}",
                hint=f"{python} -m pip install vllm, or set python in the profile to the right environment",
            )
        table = vllm_flags.cached(python, self._cache_dir)
        warnings = [*_version_warnings(version), *vllm_flags.check(profile.flags, table, profile.name)]
        self._check_model(profile)
        if profile.flags.get("disable_log_stats") is True:
            warnings.append(
                "disable_log_stats hides vLLM's figures: a hung engine cannot be told from a busy one"
            )
        return warnings

    def _check_model(self, profile: Profile) -> None:
        if not looks_like_path(profile.model):
            return
        folder = Path(expand(profile.model))
        if not folder.is_dir():
            raise Invalid(
                f"{profile.name}: there is no model folder {folder}",
                hint="correct model in the profile; a hub id has the form owner/name",
            )
        if not any((folder / name).is_file() for name in ("config.json", "params.json")):
            raise Invalid(
                f"{profile.name}: {folder} holds no config.json",
                hint="point model at the folder of a Hugging Face model, the one with config.json and the weights",
            )

    def launch(self, context: LaunchContext) -> Launch:
        profile = context.profile
        program = self.program(profile)
        socket = context.run_dir / "engine.sock"
        start = [program.path] if program.path else [program.python, "-m", "vllm.entrypoints.cli.main"]
        model = expand(profile.model) if profile.model.startswith("~") else profile.model
        if looks_like_path(model):
            model = os.path.abspath(model)
        argv = [
            *start, "serve", model, "--uds", str(socket), "--served-model-name", profile.base_name,
            "--max-model-len", str(profile.max_model_len or "auto"),
        ]  # fmt: skip
        if (profile.tensor_parallel_size or 1) > 1:
            argv += ["--tensor-parallel-size", str(profile.tensor_parallel_size)]
        if (profile.data_parallel_size or 1) > 1:
            argv += ["--data-parallel-size", str(profile.data_parallel_size)]
        defaults: dict[str, str] = {
            "shutdown_timeout": str(int(max(1.0, profile.limits.term_grace_s - _TERM_MARGIN_S))),
            "allowed_media_domains": NO_MEDIA_DOMAIN,
        }
        given = {key.replace("-", "_") for key in profile.flags}
        for key, value in defaults.items():
            if key not in given:
                argv += ["--" + key.replace("_", "-"), value]
        if "disable_uvicorn_access_log" not in given:
            argv.append("--disable-uvicorn-access-log")
        argv += vllm_flags.arguments(profile.flags, vllm_flags.cached(program.python, self._cache_dir))
        return Launch(tuple(argv), self._environment(context, program), f"unix:{socket}")

    def _environment(self, context: LaunchContext, program: Program) -> dict[str, str]:
        env = child_environment(
            context,
            self._environ,
            pass_prefixes=_PASSED,
            never=_NEVER_PASSED,
            bin_dir=os.path.dirname(program.python),
        )
        env["VLLM_NO_USAGE_STATS"] = "1"
        env["VLLM_CACHE_ROOT"] = str(self._cache_dir / "vllm")
        env.setdefault("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")  # a redirect would lead around the allow-list
        env["NO_COLOR"] = "1"
        if context.hf_token:
            env["HF_TOKEN"] = context.hf_token
        return finish(env, context)

    def installed(self, profile: Profile) -> Installed | None:
        python = self.python(profile)
        return None if python is None else installed(python, *vllm_flags.DISTRIBUTIONS)

    def python(self, profile: Profile) -> str | None:
        try:
            return self.program(profile).python
        except Invalid:
            return None

    def memory_report(self, log_lines: Iterable[str]) -> MemoryReport | None:
        return memory_report.read(log_lines)

    def sampling(self, profile: Profile, folder: Path | None) -> Sampling:
        return sampling(profile, folder)


def _version_warnings(version: str) -> list[str]:
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        return []
    minor = (int(found[1]), int(found[2]))
    low, high = SUPPORTED
    if low <= minor <= high:
        return []
    return [f"vLLM {version} is outside {low[0]}.{low[1]} to {high[0]}.{high[1]}, which are supported"]
