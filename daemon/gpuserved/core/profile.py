"""A validated profile: what one `profiles/NAME.toml` asks for, with every default made explicit."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Union

# A value of an engine flag as TOML can write it. Lists and tables become JSON on the command line.
FlagValue = Union[str, int, float, bool, list["FlagValue"], dict[str, "FlagValue"]]  # noqa: UP007 - quoted names cannot be joined by | on 3.10


class EngineName(str, Enum):
    """The engines an adapter exists for."""

    VLLM = "vllm"
    LLAMACPP = "llamacpp"
    COMMAND = "command"
    SIM = "sim"


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


@dataclass(frozen=True)
class Profile:
    """One model and how to serve it."""

    name: str
    model: str
    """Folder or hub id."""
    served_name: str
    engine: EngineName = EngineName.VLLM
    python: str | None = None
    """Interpreter whose environment holds the engine; None: found through PATH."""
    replicas: int | None = None
    """None: automatic, one per GPU (or per group of `tensor_parallel_size` GPUs)."""
    tensor_parallel_size: int | None = None
    """None: automatic, by what fits."""
    data_parallel: str = "replicas"
    """`replicas`: independent servers; `internal`: vLLM's own data parallelism inside one server."""
    data_parallel_size: int | None = None
    """Engines of one server with `internal`; None: as many as GPUs allow. The planner sets it."""
    max_model_len: int | None = None
    """None: not set, or `auto`."""
    max_model_len_auto: bool = False
    """True where the profile says `auto`: the model's longest if it fits."""
    gpu_share: float | None = None
    """Part of each GPU, so that others may have the rest; None: the whole GPU."""
    target_concurrency: int | None = None
    gpus: tuple[str, ...] | None = None
    """Indexes or UUIDs this profile may use; None: all."""
    policy: Policy = Policy.LEAST_INFLIGHT
    flags: dict[str, FlagValue] = field(default_factory=dict)
    """The engine's own table (`[vllm]`, `[sim]`, `[llamacpp]`): flag name with underscores -> value."""
    env: dict[str, str] = field(default_factory=dict)
    command: CommandSpec | None = None
    routing: Routing = field(default_factory=Routing)
    limits: Limits = field(default_factory=Limits)
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    health: HealthPolicy = field(default_factory=HealthPolicy)

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

    def runs_like(self, other: Profile) -> bool:
        """True where a replica started from `other` need not be restarted to obey this profile.

        The router's and the supervisor's own settings (limits, restart, health, policy, routing, the number of replicas) apply to
        running replicas at once; everything else is part of the engine's command line.
        """
        return _engine_part(self) == _engine_part(other)

    def plans_like(self, other: Profile) -> bool:
        """True where what was decided for `other` holds for this profile too."""
        return self.runs_like(other) and all(
            getattr(self, name) == getattr(other, name)
            for name in ("replicas", "target_concurrency", "max_model_len_auto", "data_parallel")
        )


def _engine_part(profile: Profile) -> tuple[object, ...]:
    return (
        profile.model,
        profile.served_name,
        profile.engine,
        profile.python,
        profile.tensor_parallel_size or 1,
        profile.data_parallel_size or 1,
        profile.max_model_len,
        profile.gpu_share,
        profile.gpus,
        profile.flags,
        profile.env,
        profile.command,
    )
