"""What an engine adapter is: everything the rest of the daemon needs to know about one kind of server."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from gpuserved.api.routing import CacheMetrics
from gpuserved.core.cause import Cause, CauseKind, ExitInfo, from_exit
from gpuserved.core.profile import Profile
from gpuserved.engines.installed import Installed


@dataclass(frozen=True)
class LaunchContext:
    """What a command line is made from."""

    profile: Profile
    replica: str
    """`PROFILE-N`."""
    generation: int
    nonce: str
    """Marks every process of this start, as GPUSERVE_NONCE in its environment."""
    run_dir: Path
    """The replica's own 0700 folder; sockets go here and their paths fit."""
    cache_dir: Path
    """The daemon's cache root."""
    gpu_indexes: tuple[int, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    hf_token: str | None = field(default=None, repr=False)
    port: int | None = None
    """A loopback port, for engines without Unix sockets (`wants_port`)."""


@dataclass(frozen=True)
class Launch:
    """How to start one engine process, and where it will listen."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(repr=False)
    """The whole environment; nothing is inherited."""
    address: str
    """`unix:PATH` or `tcp:127.0.0.1:PORT`."""
    cwd: str = "/"


@dataclass(frozen=True)
class MetricNames:
    """Names in the engine's Prometheus text; None: the engine has no such figure."""

    running: str | None = None
    waiting: str | None = None
    kv_cache_ratio: str | None = None
    """0 to 1."""
    steps: str | None = None
    """A counter that moves with every engine step; without it there is no hang detection by progress."""
    prompt_tokens: str | None = None
    generation_tokens: str | None = None
    prefix_queries: str | None = None
    """Counters in tokens: looked up in the prefix cache, and found there."""
    prefix_hits: str | None = None
    cache_config: str | None = None
    """Its labels say how many tokens the KV cache holds."""
    preemptions: str | None = None
    ttft: str | None = None
    """Histograms in seconds, without `_bucket`: time to the first token, and between tokens."""
    itl: str | None = None


VLLM_METRICS = MetricNames(
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    kv_cache_ratio="vllm:kv_cache_usage_perc",
    steps="vllm:iteration_tokens_total_count",
    prompt_tokens="vllm:prompt_tokens_total",
    generation_tokens="vllm:generation_tokens_total",
    prefix_queries="vllm:prefix_cache_queries_total",
    prefix_hits="vllm:prefix_cache_hits_total",
    cache_config="vllm:cache_config_info",
    preemptions="vllm:num_preemptions_total",
    ttft="vllm:time_to_first_token_seconds",
    itl="vllm:inter_token_latency_seconds",
)
"""vLLM's names since 0.26; the look-alike has the same."""


def cache_metrics(path: str | None, names: MetricNames) -> CacheMetrics | None:
    """Where a router reads how a prefix cache does; None: the engine does not say."""
    if not (path and names.prefix_hits and names.prefix_queries and names.cache_config):
        return None
    return CacheMetrics(
        path=path, hits=names.prefix_hits, queries=names.prefix_queries, config=names.cache_config
    )


class Engine(ABC):
    """One kind of server. An adapter holds nothing of a profile or a replica, so that one serves all: what differs between
    profiles is a method that takes the profile.

    An engine overrides what it has; the defaults are those of a server of which nothing is known.
    """

    name: ClassVar[str]
    metrics: ClassVar[MetricNames] = MetricNames()

    def __init__(self, cache_dir: Path, environ: Mapping[str, str] | None = None) -> None:
        """:param environ: the daemon's own environment; None: this process's."""
        self._cache_dir = cache_dir
        self._environ = os.environ if environ is None else environ

    @abstractmethod
    def check(self, profile: Profile) -> list[str]:
        """Look for what would make every start fail, without starting anything. May read files; must not take seconds.

        :returns: warnings.
        :raises Invalid: bad flag, missing model folder, engine not installed; says the fix.
        """

    @abstractmethod
    def launch(self, context: LaunchContext) -> Launch:
        """The command line, the environment and the address.

        :raises Invalid: the engine is not installed, or cannot be started so.
        """

    async def prepare(self, profile: Profile) -> None:
        """Learn what `check` and `launch` ask for and the installed engine takes long to say. May take minutes.

        :raises Invalid: it is not installed.
        """
        del profile

    def health_path(self, profile: Profile) -> str:
        """Answers 200 while the engine serves, and 503 where it says itself that it is dead."""
        del profile
        return "/health"

    def metrics_path(self, profile: Profile) -> str | None:
        """Where the Prometheus text is that `metrics` names figures of; None: there is none."""
        del profile
        return None

    def wants_port(self, profile: Profile) -> bool:
        """True where the engine cannot listen on a Unix socket."""
        del profile
        return False

    def installed(self, profile: Profile) -> Installed | None:
        """What a start of this profile would run now; None: the engine does not say. Reads files; may run the interpreter once."""
        del profile
        return None

    def phase(self, line: str) -> str | None:
        """The loading phase that a log line announces (`loading weights`, `compiling`, ...), or None."""
        del line
        return None

    def cause(self, info: ExitInfo | None, tail: list[str]) -> Cause:
        """Why it ended: the exit status and the last lines of its log (control bytes already stripped)."""
        del tail
        return from_exit(info) if info else Cause(CauseKind.EXITED, "the process ended, and nobody saw how")

    def upstream_model(self, profile: Profile) -> str | None:
        """The name the engine itself knows the model by, where it differs from `served_name`."""
        del profile
        return None
