"""`profiles/NAME.toml` to a `Profile`. What is accepted here starts, or fails for a reason only the host can know."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from gpuserved.api.errors import Invalid
from gpuserved.config.document import Document, parse
from gpuserved.config.fields import Integer, Json, Key, Number, Read, Table, Text, Words
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


@dataclass(frozen=True)
class BesideProfile(Read):
    """A text; `./X` is beside the profile where its file is known."""

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> str:
        text = str(Text()(document, path, value))
        if text.startswith(("./", "../")) and os.path.isabs(document.source):
            return os.path.normpath(os.path.join(os.path.dirname(document.source), text))
        return text

    def schema(self) -> Json:
        return Text().schema()


@dataclass(frozen=True)
class GpuNames(Read):
    """Indexes and UUIDs, or "all", which becomes None."""

    def __call__(self, document: Document, path: tuple[str, ...], value: Any) -> tuple[str, ...] | None:
        if value == "all":
            return None
        whole = 'expected "all" or a list of indexes and UUIDs, as in [0, 1]'
        if not isinstance(value, list):
            document.refuse(path, whole)
        names: list[str] = []
        for one in value:
            index = type(one) is int and one >= 0
            if not index and not (isinstance(one, str) and one):
                document.refuse(path, f"{whole}; {one!r} is neither")
            if str(one) in names:
                document.refuse(path, f"{one!r} is named twice")
            names.append(str(one))
        return tuple(names)

    def schema(self) -> Json:
        one = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}]}
        return {"anyOf": [{"const": "all"}, {"type": "array", "uniqueItems": True, "items": one}]}


_url_path = Text(needs=('a path that begins with "/"', lambda v: v.startswith("/")))
TOP = Table("", (
    Key("model", BesideProfile(), "a hub id, or a folder; `./X` is beside the file", "required", flags={"vllm": "model"}),
    Key("served_name", Text(needs=("a name without blanks or control characters", lambda v: v.isprintable() and " " not in v)),
        "what requests put into `model`; unique on a daemon", "the hub id, or the profile's name for a folder",
        flags={"vllm": "served_model_name"}),
    Key("engine", Text(choices=tuple(engine.value for engine in EngineName), convert=EngineName),
        f"{', '.join(f'`{engine.value}`' for engine in EngineName)}: [engines.md](engines.md)"),
    Key("python", BesideProfile(), "interpreter of the environment that holds the engine", "through PATH"),
    Key("replicas", Integer(0, 1024, auto=True),
        'how many; `"auto"`: one for each GPU, or group of GPUs, that the profile may use', '`"auto"`'),
    Key("tensor_parallel_size", Integer(1, 64, auto=True), "GPUs that one replica spans: [planner.md](planner.md)",
        '`"auto"`: by what fits', flags={"vllm": "tensor_parallel_size"}),
    Key("data_parallel", Text(choices=("replicas", "internal")),
        'each replica is a server of its own; `"internal"`: one server with vLLM\'s own data parallelism'),
    Key("max_model_len", Integer(1, 100_000_000, auto=True),
        'longest prompt plus answer, in tokens; `"auto"`: the model\'s longest, or what fits',
        "unset, which is warned of", flags={"vllm": "max_model_len"}),
    Key("target_concurrency", Integer(1, 1_000_000), "requests one replica should carry at once; for planning", "unset"),
    Key("gpu_share", Number(0.01, 1),
        "part of each GPU that a replica may have, with all that vLLM does not count, so that other profiles may have the rest; "
        "leave `gpu_memory_utilization` out, the planner computes it", "the whole GPU"),
    Key("gpus", GpuNames(), "`[0, 1]`, UUIDs, or `[]` for none", '`"all"`'),
    Key("policy", Text(choices=tuple(policy.value for policy in Policy), convert=Policy),
        'how the router chooses a replica: also `"prefix"`, `"session"`, `"round_robin"`; see [below](#routing)'),
), Profile)  # fmt: skip
ROUTING = Table("routing", (
    Key("weight", Number(0.01, 100),
        "share of each replica of this profile against those of other profiles with the same `served_name`: with 2 one of them "
        "holds twice the requests. For one model on unequal GPUs, or a new version that gets a tenth"),
    Key("slow_start_s", Number(0, 3600),
        "a replica that has just become ready, or come back into rotation, gets a first request like any other, then a tenth of "
        "its share, and all of it after this time; 0: at once"),
    Key("session_header",
        Text(needs=('the name of a header, as in "x-session-id"', lambda v: bool(_HEADER.fullmatch(v))), convert=str.lower),
        "policy `session`: the header that names the session. Without it the body's `session_id`, `prompt_cache_key` or `user` does"),
    Key("load_factor", Number(1, 100), "policy `session`: 1 is the strictest balance, more keeps sessions together"),
), Routing)  # fmt: skip
LIMITS = Table("limits", (
    Key("queue", Integer(0, 1_000_000), "requests that may wait while no replica is ready; the next one gets 429"),
    Key("queue_timeout_s", Number(0, _DAY_S), "how long one of them waits before 503"),
    Key("drain_s", Number(0, _DAY_S), "how long a stop waits for requests in flight"),
    Key("rolling_drain_s", Number(0, _DAY_S), "the same for each replica of a rolling change"),
    Key("term_grace_s", Number(0, 3600), "from SIGTERM to SIGKILL of the whole tree"),
), Limits)  # fmt: skip
RESTART = Table("restart", (
    Key("budget", Integer(1, 1000), "crashes in a row, without `stable_s` of READY between them, that end in FAILED"),
    Key("stable_s", Number(0, _WEEK_S), "seconds of READY after which past crashes are forgiven"),
    Key("backoff_s", Number(0.01, 3600), "first wait; it doubles with every crash in a row"),
    Key("backoff_max_s", Number(0.01, _DAY_S), "longest wait"),
    Key("jitter", Number(0, 1), "waits are spread by this fraction to either side"),
    Key("retry_s", Number(1, _WEEK_S), "from FAILED: transient causes, and the last replica of a model, are tried again after this"),
), RestartPolicy)  # fmt: skip
HEALTH = Table("health", (
    Key("interval_s", Number(0.1, 3600), "between two probes"),
    Key("timeout_s", Number(0.1, 3600), "of one probe"),
    Key("failure_threshold", Integer(1, 1000), "failed probes in a row that take a replica out of rotation"),
    Key("startup_stall_s", Number(1, _WEEK_S),
        "a start without any progress (log, CPU time) for this long has failed; a slow one has not"),
    Key("hang_rotation_s", Number(1, _DAY_S), "engine busy and no step for this long: out of rotation"),
    Key("hang_timeout_s", Number(1, _DAY_S), "the same for this long: killed and replaced"),
), HealthPolicy)  # fmt: skip
COMMAND = Table("command", (
    Key("argv", Words(),
        "the command as a list; `{socket}` or `{port}`, `{model}`, `{replica}` and `{served_name}` are filled in", "required"),
    Key("health_path", _url_path, "answers 200 when the server is ready"),
    Key("metrics_path", _url_path, "Prometheus text, if the server has it; what it names as vLLM does is shown and watched", "none"),
), CommandSpec)  # fmt: skip
OF_REPLICAS = (ROUTING, LIMITS, RESTART, HEALTH)
"""Each is a field of `Profile`, whatever the engine."""
TABLES = (TOP, *OF_REPLICAS, COMMAND)
_ENGINE_TABLES = tuple(engine.value for engine in EngineName)
_NAMES = (*(table.name for table in OF_REPLICAS), "env", *_ENGINE_TABLES)


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
    top = TOP.read(document, also=_NAMES)
    engine = top.setdefault("engine", EngineName.VLLM)
    _only_own_table(document, engine)
    flags = _flags(document, engine)
    _hoist(document, engine, top, flags)
    if "model" not in top:
        document.refuse(
            (), "model is missing", 'add model = "org/name", or the path of a folder that holds the model'
        )
    top.setdefault("served_name", default_served_name(top["model"], name))
    profile = Profile(
        name=name,
        flags=flags,
        env=_env(document),
        command=_command(document) if engine is EngineName.COMMAND else None,
        max_model_len_auto="max_model_len" in top and top["max_model_len"] is None,
        routing=Routing(**ROUTING.read(document)),
        limits=Limits(**LIMITS.read(document)),
        restart=RestartPolicy(**RESTART.read(document)),
        health=HealthPolicy(**HEALTH.read(document)),
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


def _hoist(document: Document, engine: EngineName, top: dict[str, Any], flags: dict[str, FlagValue]) -> None:
    """Move what the profile has a key for out of the engine's table, so that the planner and the engine see one value."""
    for flag, key in hoisted(engine).items():
        if flag not in flags:
            continue
        written = next(k for k in document.data[engine.value] if k.replace("-", "_") == flag)
        if key.name in document.data:
            document.refuse(
                (engine.value, written),
                f"set twice: {key.name} is also set at the top of the profile, in line {document.line(key.name)}",
                "keep the one at the top",
            )
        top[key.name] = key.read(document, (engine.value, written), flags.pop(flag))


def hoisted(engine: EngineName) -> dict[str, Key]:
    """The flags of an engine that say what a key of the profile does. In its table alone they count as that key; in both they
    are an error.
    """
    return {key.flags[engine.value]: key for key in TOP.keys if key.flags and engine.value in key.flags}


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


def _command(document: Document) -> CommandSpec:
    if "command" not in document.data:
        document.refuse(
            (), 'engine = "command" needs a [command] table', 'add [command] with argv = ["server", "--uds", "{socket}"]'
        )  # fmt: skip
    found = COMMAND.read(document)
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
