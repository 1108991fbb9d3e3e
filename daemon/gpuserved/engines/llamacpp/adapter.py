"""The `llamacpp` engine: a real model without a GPU, through the `xllamacpp` wheel. The default of the demo."""

from __future__ import annotations

import difflib
import os
import re
import sys
from pathlib import Path
from types import MappingProxyType

from gpuserved.api.errors import Invalid
from gpuserved.core.cause import Cause, CauseKind, ExitInfo, from_exit
from gpuserved.core.profile import FlagValue, Profile
from gpuserved.engines.base import Engine, Launch, LaunchContext
from gpuserved.engines.environment import child_environment, finish
from gpuserved.engines.installed import expand, has_module
from gpuserved.engines.llamacpp.model import PACKAGED

INSTALL_HINT = "pip install 'gpuserve[demo]'"
_PLAIN_TEMPLATE = Path(__file__).with_name("templates") / "plain.jinja"
_PLAIN_STOPS = ("\n\nUser:", "\nUser:")
"""Where a base model would go on with the user's next turn."""
_NUMBERS = ("parallel", "threads", "batch_size", "ubatch_size", "gpu_layers", "cache_ram_mib", "max_tokens")
_LEAST = {
    "parallel": 1,
    "threads": 1,
    "batch_size": 1,
    "ubatch_size": 1,
    "gpu_layers": -1,
    "cache_ram_mib": 0,
    "max_tokens": 1,
}
_KEYS = (*_NUMBERS, "template", "stop")
_PHASES = tuple(
    (re.compile(pattern), phase)
    for pattern, phase in (
        (r"^gpuserve: assembling model", "assembling model"),
        (r"^gpuserve: loading weights|load_model: loading model", "loading weights"),
        (r"load_model: initializing|warming up the model", "starting server"),
        (r"init: model loaded|^gpuserve: serving on", "starting server"),
    )
)


class LlamacppEngine(Engine):
    """Adapter for llama.cpp's own HTTP server, run by `server.py`."""

    name = "llamacpp"
    metrics = MappingProxyType({
        "running": "llamacpp:requests_processing",
        "waiting": "llamacpp:requests_deferred",
        "steps": "llamacpp:n_decode_total",
        "prompt_tokens": "llamacpp:prompt_tokens_total",
        "generation_tokens": "llamacpp:tokens_predicted_total",
    })  # fmt: skip

    def metrics_path(self, profile: Profile) -> str | None:
        del profile
        return "/metrics"

    def check(self, profile: Profile) -> list[str]:
        self._check_installed(profile)
        self._check_model(profile)
        for key, value in profile.flags.items():
            _check_flag(profile, key.replace("-", "_"), value)
        if profile.gpus_per_replica > 1:
            raise Invalid(
                f"{profile.name}: the llamacpp engine does not split a model by tensor_parallel_size",
                hint="remove tensor_parallel_size, or use the vllm engine",
            )
        return []

    def _check_installed(self, profile: Profile) -> None:
        python = _python(profile)
        if not os.access(python, os.X_OK):
            raise Invalid(
                f"{profile.name}: python = {python!r} is not an interpreter that can be run",
                hint=INSTALL_HINT,
            )
        if not has_module(python, "xllamacpp"):
            raise Invalid(
                f"{profile.name}: xllamacpp is not installed in the environment of {python}",
                hint=INSTALL_HINT,
            )
        packaged = PACKAGED.get(profile.model)
        for package in packaged.packages if packaged else ():
            if not has_module(python, package):
                raise Invalid(
                    f"{profile.name}: the model {profile.model} is not installed: no {package}",
                    hint=INSTALL_HINT,
                )

    def _check_model(self, profile: Profile) -> None:
        if profile.model in PACKAGED:
            return
        file = Path(expand(profile.model))
        if file.suffix != ".gguf":
            raise Invalid(
                f"{profile.name}: the llamacpp engine cannot serve {profile.model!r}",
                hint=f"give the path of a .gguf file, or one of the packaged models: {', '.join(PACKAGED)}",
            )
        if not file.is_file():
            raise Invalid(
                f"{profile.name}: there is no model file {file}", hint="correct model in the profile"
            )

    def launch(self, context: LaunchContext) -> Launch:
        """A packaged model is put together by the replica itself, below `cache_dir`/models."""
        profile = context.profile
        python = _python(profile)
        socket = context.run_dir / "engine.sock"
        model = profile.model if profile.model in PACKAGED else os.path.abspath(expand(profile.model))
        argv = [
            python, "-m", "gpuserved.engines.llamacpp.server", "--uds", str(socket), "--model", model,
            "--models-dir", str(self._cache_dir / "models"), "--alias", profile.served_name,
        ]  # fmt: skip
        if profile.max_model_len:
            argv += ["--ctx-per-slot", str(profile.max_model_len)]
        flags = {key.replace("-", "_"): value for key, value in profile.flags.items()}
        if profile.model in PACKAGED:
            flags = {"template": str(_PLAIN_TEMPLATE), "stop": list(_PLAIN_STOPS), **flags}
        for key in _NUMBERS:
            if key in flags:
                argv.append(f"--{key.replace('_', '-')}={flags[key]}")
        if "template" in flags:
            argv.append(f"--template={os.path.abspath(expand(str(flags['template'])))}")
        stops = flags.get("stop", [])
        argv += [f"--stop={stop}" for stop in (stops if isinstance(stops, list) else [stops])]
        env = child_environment(context, self._environ, bin_dir=os.path.dirname(python))
        # The server program is ours: it must be found by an interpreter that has xllamacpp and perhaps not gpuserve.
        env["PYTHONPATH"] = str(Path(__file__).parents[3])
        return Launch(tuple(argv), finish(env, context), f"unix:{socket}")

    def phase(self, line: str) -> str | None:
        return next((name for pattern, name in _PHASES if pattern.search(line)), None)

    def cause(self, info: ExitInfo | None, tail: list[str]) -> Cause:
        errors = [line for line in tail if " E " in line[:24] or "error:" in line]
        said = next(
            (line.split("gpuserve: error: ", 1)[1] for line in tail if line.startswith("gpuserve: error: ")),
            None,
        )
        ended = info.describe() if info else "exit status unknown"
        if said is not None and said.startswith(("model missing: ", "not installed: ")):
            return Cause(CauseKind.MODEL_MISSING, said.split(": ", 1)[1])
        memory = next(
            (line for line in errors if re.search(r"(?i)out of memory|failed to allocate|bad_alloc", line)),
            None,
        )
        if memory is not None and info is not None and (info.code or info.signal):
            return Cause(CauseKind.OUT_OF_MEMORY, f"{memory.strip()}; {ended}")
        if any("couldn't bind" in line for line in errors):
            return Cause(CauseKind.PORT_IN_USE, f"the server could not bind its socket; {ended}")
        if said is not None:
            first = next((line.strip() for line in errors if "gpuserve:" not in line), said)
            return Cause(CauseKind.MODEL_MISSING, f"the model cannot be loaded: {first}")
        usage = next(
            (line for line in tail if line.startswith("gpuserved.engines.llamacpp.server: error:")), None
        )
        if usage is not None:
            return Cause(CauseKind.BAD_FLAG, usage.split("error: ", 1)[1])
        return from_exit(info) if info else Cause(CauseKind.EXITED, f"the server ended ({ended})")


def _python(profile: Profile) -> str:
    return expand(profile.python) if profile.python else sys.executable


def _check_flag(profile: Profile, key: str, value: FlagValue) -> None:
    where = f"{profile.name}: [llamacpp] {key}"
    if key not in _KEYS:
        near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
        raise Invalid(
            f"{where} is no setting of the llamacpp engine" + (f"; did you mean {near[0]}?" if near else ""),
            hint=f"it takes {', '.join(_KEYS)}",
        )
    if key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int) or value < _LEAST[key]):
        raise Invalid(f"{where} must be a whole number of at least {_LEAST[key]}, not {value!r}")
    if key == "template" and not (isinstance(value, str) and os.path.isfile(expand(value))):
        raise Invalid(
            f"{where}: there is no template file {value!r}", hint="give the path of a Jinja chat template"
        )
    if key == "stop" and not (
        isinstance(value, list) and all(isinstance(stop, str) and stop for stop in value)
    ):
        raise Invalid(f"{where} must be a list of strings, not {value!r}")
