"""A validated profile: what one `profiles/NAME.toml` asks for, with every default made explicit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import Union

# A value of an engine flag as TOML can write it. Lists and tables become JSON on the command line.
FlagValue = Union[str, int, float, bool, Sequence["FlagValue"], Mapping[str, "FlagValue"]]  # noqa: UP007 - quoted names cannot be joined by | on 3.10


class RunsOn(Enum):
    """The GPUs that replicas of an engine are placed on."""

    HOST = "host"
    """The host's; on a host without any, on its CPU."""
    NAMED = "named"
    """Those that the profile names; without `gpus`, the CPU."""
    SIMULATED = "simulated"
    """Those that its profiles add to the inventory."""


@dataclass(frozen=True)
class Planning:
    """How an engine wants to be planned."""

    runs_on: RunsOn = RunsOn.HOST
    by_memory: bool = False
    """Its models are folders and ids of the hub, and it spends memory as `core.planner` computes; else sizes are taken as asked for."""
    length_matters: bool = False
    """Without `max_model_len` it takes the model's longest context."""


class EngineName(str, Enum):
    """The engines there are: a line for each, and a package `engines.NAME`."""

    planning: Planning

    def __new__(cls, name: str, planning: Planning = Planning()) -> EngineName:  # noqa: PYI034 - typing has Self since 3.11
        """:param name: of the package, the profile's `engine` and, but for a command's, the table of its flags."""
        made = str.__new__(cls, name)
        made._value_ = name
        made.planning = planning
        return made

    VLLM = "vllm", Planning(by_memory=True, length_matters=True)
    LLAMACPP = "llamacpp", Planning(RunsOn.NAMED)
    COMMAND = "command"
    SIM = "sim", Planning(RunsOn.SIMULATED, length_matters=True)


class Policy(str, Enum):
    """How the router chooses a replica."""

    LEAST_INFLIGHT = "least_inflight"
    PREFIX = "prefix"
    SESSION = "session"
    ROUND_ROBIN = "round_robin"


@dataclass(frozen=True)
class Limits:
    """Per-profile limits of the data plane."""

    queue: int = 512
    """Requests that may wait while no replica is ready; the next one gets 429."""
    queue_timeout_s: float = 600.0
    """How long one request waits for a ready replica before 503; covers one cold start of a large model."""
    drain_s: float = 60.0
    """How long a stop waits for requests in flight."""
    rolling_drain_s: float = 1800.0
    """The same for each replica of a rolling change, which is in no hurry: streams that last minutes end by themselves."""
    term_grace_s: float = 10.0
    """From SIGTERM to SIGKILL of the tree."""


@dataclass(frozen=True)
class Routing:
    """Settings of the choice of a replica."""

    weight: float = 1.0
    """Of each replica of this profile, against those of other profiles with the same served name."""
    slow_start_s: float = 10.0
    """A replica that has just come gets a tenth of its share, and all of it after this: vLLM compiles some kernels on first use."""
    session_header: str = "x-session-id"
    """Policy `session`: where the session's name is; without it in the body's session_id, prompt_cache_key or user."""
    load_factor: float = 1.25
    """Policy `session`: a replica takes at most this many times the mean in flight."""


@dataclass(frozen=True)
class RestartPolicy:
    """When a crashed replica is started again. Defaults are DESIGN.md's; kubelet caps at the same 300 s."""

    budget: int = 5
    """Crashes in a row, without `stable_s` of READY between them, that end in FAILED."""
    stable_s: float = 600.0
    backoff_s: float = 1.0
    """First delay; doubles with each crash in a row."""
    backoff_max_s: float = 300.0
    jitter: float = 0.2
    """The delay is spread by this fraction to either side."""
    retry_s: float = 300.0
    """From FAILED: transient causes, and the last replica of a model, are tried again after this."""


@dataclass(frozen=True)
class HealthPolicy:
    """Probes of one replica. All times in seconds."""

    interval_s: float = 1.0
    timeout_s: float = 5.0
    failure_threshold: int = 3
    """Failed liveness probes in a row that make a replica UNHEALTHY."""
    startup_stall_s: float = 600.0
    """A start without any progress (log, CPU time) for this long has failed; a slow one has not."""
    hang_rotation_s: float = 30.0
    """Engine busy and its step counter flat for this long: out of rotation."""
    hang_timeout_s: float = 120.0
    """The same for this long: killed and replaced."""


@dataclass(frozen=True)
class CommandSpec:
    """The `command` engine: any OpenAI-compatible server."""

    argv: tuple[str, ...]
    """May hold `{socket}` or `{port}`, `{model}` and `{replica}`."""
    health_path: str = "/health"
    metrics_path: str | None = None


class Takes(Enum):
    """What a changed setting takes until it counts."""

    PROCESS = "a new process"
    """It is a part of the engine's command line or environment, or of where it runs."""
    PLAN = "a new plan"
    """What was decided for the profile does not hold any more; a replica that is placed as before runs on."""
    NOTHING = "nothing"
    """The routers' and the daemon's own: running replicas obey it at once."""


_PROCESS: Mapping[str, Takes] = MappingProxyType({"takes": Takes.PROCESS})
_PLAN: Mapping[str, Takes] = MappingProxyType({"takes": Takes.PLAN})
_NOTHING: Mapping[str, Takes] = MappingProxyType({"takes": Takes.NOTHING})


@dataclass(frozen=True)
class Profile:
    """One model and how to serve it. Each field says what a change of it takes: there is no other list of them."""

    name: str = field(metadata=_NOTHING)
    model: str = field(metadata=_PROCESS)
    """Folder or hub id."""
    served_name: str = field(metadata=_PROCESS)
    engine: EngineName = field(default=EngineName.VLLM, metadata=_PROCESS)
    python: str | None = field(default=None, metadata=_PROCESS)
    """Interpreter whose environment holds the engine; None: found through PATH."""
    replicas: int | None = field(default=None, metadata=_PLAN)
    """None: automatic, one per GPU (or per group of `tensor_parallel_size` GPUs)."""
    tensor_parallel_size: int | None = field(default=None, metadata=_PROCESS)
    """None: automatic, by what fits."""
    data_parallel: str = field(default="replicas", metadata=_PLAN)
    """`replicas`: independent servers; `internal`: vLLM's own data parallelism inside one server."""
    data_parallel_size: int | None = field(default=None, metadata=_PROCESS)
    """Engines of one server with `internal`; None: as many as GPUs allow. The planner sets it."""
    max_model_len: int | None = field(default=None, metadata=_PROCESS)
    """None: not set, or `auto`."""
    max_model_len_auto: bool = field(default=False, metadata=_PLAN)
    """True where the profile says `auto`: the model's longest if it fits."""
    gpu_share: float | None = field(default=None, metadata=_PROCESS)
    """Part of each GPU, so that others may have the rest; None: the whole GPU."""
    target_concurrency: int | None = field(default=None, metadata=_PLAN)
    gpus: tuple[str, ...] | None = field(default=None, metadata=_PROCESS)
    """Indexes or UUIDs this profile may use; None: all."""
    policy: Policy = field(default=Policy.LEAST_INFLIGHT, metadata=_NOTHING)
    command: CommandSpec | None = field(default=None, metadata=_PROCESS)
    flags: Mapping[str, FlagValue] = field(default_factory=dict, metadata=_PROCESS)
    """The engine's own table (`[vllm]`, `[sim]`, `[llamacpp]`): flag name with underscores -> value."""
    env: Mapping[str, str] = field(default_factory=dict, metadata=_PROCESS)
    routing: Routing = field(default_factory=Routing, metadata=_NOTHING)
    limits: Limits = field(default_factory=Limits, metadata=_NOTHING)
    restart: RestartPolicy = field(default_factory=RestartPolicy, metadata=_NOTHING)
    health: HealthPolicy = field(default_factory=HealthPolicy, metadata=_NOTHING)

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Names of the LoRA adapters that vLLM loads beside the model, `lora_modules` in all its forms."""
        written = self.flags.get("lora_modules")
        modules = written if isinstance(written, list) else [] if written is None else [written]
        names = [
            str(one.get("name", "")) if isinstance(one, dict) else str(one).split("=")[0] for one in modules
        ]
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def base_name(self) -> str:
        """What the engine calls the model itself. An adapter that has the served name leaves it NAME-base: vLLM looks for
        the base model first, so that with one name for both nobody would ever reach the adapter.
        """
        return f"{self.served_name}-base" if self.served_name in self.adapter_names else self.served_name

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every name that requests may put into `model`: the served name first."""
        return tuple(dict.fromkeys((self.served_name, *self.adapter_names, self.base_name)))

    @property
    def gpus_per_replica(self) -> int:
        """GPUs that one replica occupies."""
        return (self.tensor_parallel_size or 1) * (self.data_parallel_size or 1)

    def differs(self, other: Profile, takes: Takes) -> tuple[str, ...]:
        """The fields that are not the same in both and take that, in the order of their declaration."""
        return tuple(
            each.name
            for each in fields(self)
            if each.metadata["takes"] is takes and _counted(self, each.name) != _counted(other, each.name)
        )

    def runs_like(self, other: Profile) -> bool:
        """True where a replica started from `other` need not be restarted to obey this profile."""
        return not self.differs(other, Takes.PROCESS)

    def plans_like(self, other: Profile) -> bool:
        """True where what was decided for `other` holds for this profile too."""
        return self.runs_like(other) and not self.differs(other, Takes.PLAN)


_ONE_IF_UNSET = frozenset({"tensor_parallel_size", "data_parallel_size"})


def _counted(profile: Profile, name: str) -> object:
    value = getattr(profile, name)
    return 1 if value is None and name in _ONE_IF_UNSET else value
