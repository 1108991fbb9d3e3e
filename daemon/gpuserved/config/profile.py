"""`profiles/NAME.toml` to a `Profile`. What is accepted here starts, or fails for a reason only the host can know."""

from __future__ import annotations

import math
import os
import re
from typing import Any

from gpuserved.api.errors import Invalid
from gpuserved.config.document import Document, parse
from gpuserved.config.fields import Integer, Number, Read, Text, Words, read_table
from gpuserved.core.profile import (
    CommandSpec,
    EngineName,
    FlagValue,
    HealthPolicy,
    Limits,
    Policy,
    Profile,
    RestartPolicy,
    Routing,
)

NAME_MAX_CHARS = 63
"""A profile's name is part of file names and of replica ids."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_DAY_S = 86_400.0
_WEEK_S = 7 * _DAY_S
TOP: dict[str, Read] = {
    "model": Text(),
    "served_name": Text(needs=("a name without blanks or control characters", lambda v: v.isprintable() and " " not in v)),
    "engine": Text(choices=tuple(engine.value for engine in EngineName)),
    "python": Text(),
    "replicas": Integer(0, 1024, auto=True),
    "tensor_parallel_size": Integer(1, 64, auto=True),
    "data_parallel": Text(choices=("replicas", "internal")),
    "max_model_len": Integer(1, 100_000_000, auto=True),
    "target_concurrency": Integer(1, 1_000_000),
    "gpu_share": Number(0.01, 1),
    "policy": Text(choices=tuple(policy.value for policy in Policy)),
}  # fmt: skip
ROUTING: dict[str, Read] = {
    "weight": Number(0.01, 100),
    "slow_start_s": Number(0, 3600),
    "session_header": Text(
        needs=('the name of a header, as in "x-session-id"', lambda v: bool(_HEADER.fullmatch(v)))
    ),
    "load_factor": Number(1, 100),
}
LIMITS: dict[str, Read] = {
    "queue": Integer(0, 1_000_000),
    "queue_timeout_s": Number(0, _DAY_S),
    "drain_s": Number(0, _DAY_S),
    "rolling_drain_s": Number(0, _DAY_S),
    "term_grace_s": Number(0, 3600),
}
RESTART: dict[str, Read] = {
    "budget": Integer(1, 1000),
    "stable_s": Number(0, _WEEK_S),
    "backoff_s": Number(0.01, 3600),
    "backoff_max_s": Number(0.01, _DAY_S),
    "jitter": Number(0, 1),
    "retry_s": Number(1, _WEEK_S),
}
HEALTH: dict[str, Read] = {
    "interval_s": Number(0.1, 3600),
    "timeout_s": Number(0.1, 3600),
    "failure_threshold": Integer(1, 1000),
    "startup_stall_s": Number(1, _WEEK_S),
    "hang_rotation_s": Number(1, _DAY_S),
    "hang_timeout_s": Number(1, _DAY_S),
}
_path_of_url = Text(needs=('a path that begins with "/"', lambda v: v.startswith("/")))
COMMAND: dict[str, Read] = {"argv": Words(), "health_path": _path_of_url, "metrics_path": _path_of_url}
_ENGINE_TABLES = tuple(engine.value for engine in EngineName)
_TABLES = ("routing", "limits", "restart", "health", "env", *_ENGINE_TABLES)
HOISTED = {
    "served_model_name": "served_name",
    "tensor_parallel_size": "tensor_parallel_size",
    "max_model_len": "max_model_len",
    "model": "model",
}
"""vLLM's flag -> the profile's own key. Written in [vllm] alone it counts as the profile's key; in both it is an error."""


def check_name(name: str, source: str | None = None) -> str:
    """The name of a profile.

    :raises Invalid: where it could not be part of a file name and of a replica's id.
    """
    if not _NAME.fullmatch(name) or len(name) > NAME_MAX_CHARS:
        where = f"{source}: " if source else ""
        raise Invalid(
            f"{where}{name!r} cannot be a profile's name: small letters, digits, '.', '_' and '-', "
            f"the first a letter or digit, at most {NAME_MAX_CHARS} characters",
            "rename the file: the name of the profile is the file's name without .toml",
        )
    return name


def load_profile(text: str, source: str, name: str) -> Profile:
    """Read one profile.

    :param source: the file, as errors show it; where it is an absolute path, a model written `./X` is beside it.
    :raises Invalid: naming file, line, key and what was expected.
    """
    check_name(name, source)
    document = parse(text, source)
    top = read_table(document, (), TOP, also=("gpus", *_TABLES))
    engine = EngineName(top.pop("engine", EngineName.VLLM.value))
    _only_own_table(document, engine)
    flags = _flags(document, engine)
    if engine is EngineName.VLLM:
        _hoist(document, top, flags)
    if "model" not in top:
        document.refuse(
            (), "model is missing", 'add model = "org/name", or the path of a folder that holds the model'
        )
    for key in ("model", "python"):
        if key in top:
            top[key] = _beside(top[key], source)
    policy = Policy(top.pop("policy", Policy.LEAST_INFLIGHT.value))
    served_name = top.pop("served_name", None) or default_served_name(top["model"], name)
    profile = Profile(
        name=name,
        served_name=served_name,
        engine=engine,
        policy=policy,
        gpus=_gpus(document),
        flags=flags,
        env=_env(document),
        command=_command(document) if engine is EngineName.COMMAND else None,
        routing=_routing(document),
        limits=Limits(**read_table(document, ("limits",), LIMITS)),
        restart=RestartPolicy(**read_table(document, ("restart",), RESTART)),
        health=HealthPolicy(**read_table(document, ("health",), HEALTH)),
        max_model_len_auto="max_model_len" in top and top["max_model_len"] is None,
        **top,
    )
    _agree(document, profile)
    return profile


def default_served_name(model: str, name: str) -> str:
    """The name requests use where the profile gives none: as in vLLM the hub id, but never a path of this host."""
    return name if model.startswith(("/", "~", ".")) else model


def _only_own_table(document: Document, engine: EngineName) -> None:
    for other in _ENGINE_TABLES:
        if other in document.data and other != engine.value:
            document.refuse(
                (other,),
                f'this table is for engine = "{other}", and the engine here is "{engine.value}"',
                f'remove the table, or set engine = "{other}"',
            )


def _flags(document: Document, engine: EngineName) -> dict[str, FlagValue]:
    """The engine's own table, with `-` in names as `_`. The engine's adapter knows which names exist."""
    if engine is EngineName.COMMAND:
        return {}
    table = document.data.get(engine.value, {})
    if not isinstance(table, dict):
        document.refuse_value((engine.value,), f"a table, as in [{engine.value}]", table)
    flags: dict[str, FlagValue] = {}
    for key, value in table.items():
        path = (engine.value, key)
        name = key.replace("-", "_")
        if name in flags:
            document.refuse(path, f"{name} is set twice, with - and with _", "keep one of them")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.]*", name):
            document.refuse(path, "expected the name of a flag without its leading dashes")
        flags[name] = _flag_value(document, path, value)
    return flags


def _flag_value(document: Document, path: tuple[str, ...], value: Any) -> FlagValue:
    if isinstance(value, dict):
        return {str(key): _flag_value(document, path, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_flag_value(document, path, inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        document.refuse_value(path, "a finite number", value)
    if not isinstance(value, (str, int, float, bool)) or (isinstance(value, str) and "\0" in value):
        document.refuse_value(path, "a string, number, boolean, list or table", value)
    return value


def _hoist(document: Document, top: dict[str, Any], flags: dict[str, FlagValue]) -> None:
    """Move what the profile has a key for out of [vllm], so that the planner and vLLM see one value."""
    for flag, key in HOISTED.items():
        if flag not in flags:
            continue
        written = next(k for k in document.data["vllm"] if k.replace("-", "_") == flag)
        if key in document.data:
            document.refuse(
                ("vllm", written),
                f"set twice: {key} is also set at the top of the profile, in line {document.line(key)}",
                "keep the one at the top",
            )
        top[key] = TOP[key](document, ("vllm", written), flags.pop(flag))


def _beside(value: str, source: str) -> str:
    if value.startswith(("./", "../")) and os.path.isabs(source):
        return os.path.normpath(os.path.join(os.path.dirname(source), value))
    return value


def _gpus(document: Document) -> tuple[str, ...] | None:
    given = document.data.get("gpus", "all")
    if given == "all":
        return None
    whole = 'expected "all" or a list of indexes and UUIDs, as in [0, 1]'
    if not isinstance(given, list):
        document.refuse(("gpus",), whole)
    names: list[str] = []
    for one in given:
        index = type(one) is int and one >= 0
        if not index and not (isinstance(one, str) and one):
            document.refuse(("gpus",), f"{whole}; {one!r} is neither")
        if str(one) in names:
            document.refuse(("gpus",), f"{one!r} is named twice")
        names.append(str(one))
    return tuple(names)


def _env(document: Document) -> dict[str, str]:
    table = document.data.get("env", {})
    if not isinstance(table, dict):
        document.refuse(("env",), "expected a table, as in [env]")
    for key, value in table.items():
        if not VARIABLE.fullmatch(key):
            document.refuse(("env", key), "cannot be the name of an environment variable")
        if not isinstance(value, str) or "\0" in value:
            document.refuse(("env", key), 'expected a string: environment variables are text, as in "4"')
    return dict(table)


def _routing(document: Document) -> Routing:
    found = read_table(document, ("routing",), ROUTING)
    if "session_header" in found:
        found["session_header"] = found["session_header"].lower()
    return Routing(**found)


def _command(document: Document) -> CommandSpec:
    if "command" not in document.data:
        document.refuse(
            (), 'engine = "command" needs a [command] table', 'add [command] with argv = ["server", "--uds", "{socket}"]'
        )  # fmt: skip
    found = read_table(document, ("command",), COMMAND)
    if "argv" not in found:
        document.refuse(("command",), "argv is missing", 'add argv = ["server", "--uds", "{socket}"]')
    return CommandSpec(**found)


def _agree(document: Document, profile: Profile) -> None:
    """Settings that are fine alone and wrong together."""
    share, used = profile.gpu_share, profile.flags.get("gpu_memory_utilization")
    if share is not None and isinstance(used, (int, float)) and used > share:
        document.refuse((profile.engine.value, "gpu_memory_utilization"), f"is above gpu_share = {share:g}", "lower it, or raise gpu_share: the rest of the card is another profile's")  # fmt: skip
    if profile.data_parallel == "internal" and profile.engine is not EngineName.VLLM:
        document.refuse(
            ("data_parallel",), '"internal" is vLLM\'s own, and this is another engine', "leave it out"
        )
    if profile.restart.backoff_max_s < profile.restart.backoff_s:
        document.refuse(("restart", "backoff_max_s"), "is below backoff_s", "raise it, or lower backoff_s")
    if profile.health.hang_timeout_s < profile.health.hang_rotation_s:
        document.refuse(("health", "hang_timeout_s"), "is below hang_rotation_s", "a replica leaves rotation before it is killed")  # fmt: skip
