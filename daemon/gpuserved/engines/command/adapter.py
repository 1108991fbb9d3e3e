"""The `command` engine: any OpenAI-compatible server that an operator already knows how to start."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

from gpuserved.api.errors import Invalid
from gpuserved.api.routing import CacheMetrics
from gpuserved.core.cause import Cause, CauseKind, ExitInfo
from gpuserved.core.profile import CommandSpec, Profile
from gpuserved.engines.base import Engine, Launch, LaunchContext
from gpuserved.engines.environment import DEFAULT_PATH, child_environment, finish
from gpuserved.engines.installed import expand
from gpuserved.engines.tracebacks import first_tracebacks
from gpuserved.engines.vllm.levers import VLLM
from gpuserved.engines.vllm.like import VLLM_METRICS, vllm_cache_metrics
from gpuserved.engines.vllm.log import since_alive

_PLACEHOLDER = re.compile(r"\{(socket|port|model|replica|served_name)\}")
_PASSED = (
    "HF_HOME",
    "HF_HUB_",
    "HF_ENDPOINT",
    "TRANSFORMERS_",
    "NCCL_",
    "CUDA_HOME",
    "OMP_",
    "XDG_RUNTIME_DIR",
)
_MESSAGE_MAX_CHARS = 300


class CommandEngine(Engine):
    """Adapter for an argv with placeholders. The profile says where it answers."""

    name = "command"
    metrics = VLLM_METRICS
    levers = VLLM
    """For a vLLM in a container, say; what the text of `metrics_path` lacks, nobody knows."""

    def health_path(self, profile: Profile) -> str:
        return _spec(profile).health_path

    def metrics_path(self, profile: Profile) -> str | None:
        return _spec(profile).metrics_path

    def cache_metrics(self, profile: Profile) -> CacheMetrics | None:
        path = self.metrics_path(profile)
        return vllm_cache_metrics(path) if path else None

    def check(self, profile: Profile) -> list[str]:
        spec = _spec(profile)
        names = {name for word in spec.argv for name in _PLACEHOLDER.findall(word)}
        if not names & {"socket", "port"}:
            raise Invalid(
                f"{profile.name}: the command names neither {{socket}} nor {{port}}, so nobody knows where it listens",
                hint="put {socket} (preferred) or {port} where the server takes its address, as in --uds {socket}",
            )
        program = expand(spec.argv[0])
        path = self._environ.get("PATH", DEFAULT_PATH)
        if not _PLACEHOLDER.search(program) and shutil.which(program, path=path) is None:
            raise Invalid(
                f"{profile.name}: the command {spec.argv[0]!r} cannot be run",
                hint="give its full path in argv, and check that it is executable",
            )
        return []

    def wants_port(self, profile: Profile) -> bool:
        """True where the argv has `{port}` and no `{socket}`."""
        argv = _spec(profile).argv
        return any("{port}" in word for word in argv) and not any("{socket}" in word for word in argv)

    def launch(self, context: LaunchContext) -> Launch:
        profile = context.profile
        socket = context.run_dir / "engine.sock"
        values = {
            "socket": str(socket), "model": profile.model, "replica": context.replica, "served_name": profile.served_name,
        }  # fmt: skip
        address = f"unix:{socket}"
        if self.wants_port(profile):
            if context.port is None:
                raise Invalid(f"{profile.name}: no port was given for {{port}}")
            address = f"tcp:127.0.0.1:{context.port}"
        values["port"] = str(context.port or 0)
        argv = [_PLACEHOLDER.sub(lambda found: values[found[1]], word) for word in _spec(profile).argv]
        env = child_environment(context, self._environ, pass_prefixes=_PASSED)
        argv[0] = shutil.which(expand(argv[0]), path=env["PATH"]) or argv[0]
        if context.hf_token:
            env["HF_TOKEN"] = context.hf_token
        return Launch(tuple(argv), finish(env, context), address)

    def cause(self, info: ExitInfo | None, tail: list[str]) -> Cause:
        """The exit status, with the last line it wrote."""
        last = next((line.strip() for line in reversed(tail) if line.strip()), "")
        plain = super().cause(info, tail)
        if info is None or not last or info.signal is not None:
            return plain
        kind = CauseKind.PORT_IN_USE if re.search(r"(?i)address already in use", last) else plain.kind
        return Cause(kind, f"{plain.message}; its last line: {last}"[:_MESSAGE_MAX_CHARS])

    def tracebacks(self, log_lines: Sequence[str]) -> dict[str, list[str]]:
        return first_tracebacks(since_alive(log_lines))

    def upstream_model(self, profile: Profile) -> str | None:
        """The model's own name, unless the command line tells the server the served name."""
        name = re.compile(rf"(?:^|=){re.escape(profile.served_name)}$")
        told = any("{served_name}" in word or name.search(word) for word in _spec(profile).argv)
        return None if told or profile.model == profile.served_name else profile.model


def _spec(profile: Profile) -> CommandSpec:
    if profile.command is None or not profile.command.argv:
        raise Invalid(
            f"{profile.name}: the command engine needs a command",
            hint="add [command] with argv = ['server', '--uds', '{socket}', '--model', '{model}']",
        )
    return profile.command
