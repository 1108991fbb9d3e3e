"""What an engine adapter is: everything the rest of the daemon needs to know about one kind of server."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from gpuserved.api.routing import CacheMetrics
from gpuserved.core.cause import Cause, CauseKind, ExitInfo, from_exit
from gpuserved.core.profile import Profile
from gpuserved.engines.installed import Installed
from gpuserved.engines.levers import ANY_ENGINE, Levers
from gpuserved.engines.tracebacks import first_tracebacks


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
class MemoryReport:
    """What an engine wrote of its memory at a start. Bytes of one GPU; None: it did not say."""

    kv_cache_bytes: int
    kv_cache_tokens: int | None = None
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    """With the CUDA graphs' estimate, as the engine counts it."""
    graph_bytes: int | None = None


@dataclass(frozen=True)
class Sampling:
    """Defaults of every request."""

    defaults: tuple[tuple[str, float], ...] = ()
    """Parameters by the names of the API, those that change something."""
    cap_tokens: int | None = None
    """No answer is longer, whatever a request asks for; None: none but the context's."""


class Engine(ABC):
    """One kind of server. An adapter holds nothing of a profile or a replica, so that one serves all: what differs between
    profiles is a method that takes the profile.

    An engine overrides what it has; the defaults are those of a server of which nothing is known.
    """

    name: ClassVar[str]
    metrics: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Fields of `core.load.Scrape` -> names in the engine's Prometheus text; a histogram's without `_bucket`."""
    levers: ClassVar[Levers] = ANY_ENGINE
    reports_memory: ClassVar[bool] = False
    """Its log says at each start what it spends, which `memory_report` reads: plans are made from that afterwards."""

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

    def cache_metrics(self, profile: Profile) -> CacheMetrics | None:
        """Where a router reads how the prefix cache does; None: the engine does not say."""
        del profile
        return None

    def wants_port(self, profile: Profile) -> bool:
        """True where the engine cannot listen on a Unix socket."""
        del profile
        return False

    def python(self, profile: Profile) -> str | None:
        """The interpreter whose environment the engine runs in; None: unknown, or it is not installed."""
        del profile
        return None

    def installed(self, profile: Profile) -> Installed | None:
        """What a start of this profile would run now; None: the engine does not say. Reads files; may run the interpreter once."""
        del profile
        return None

    def sampling(self, profile: Profile, folder: Path | None) -> Sampling:
        """What a request gets that says nothing of sampling.

        :param folder: the model's; None: it is not on this host.
        """
        del profile, folder
        return Sampling()

    def phase(self, line: str) -> str | None:
        """The loading phase that a log line announces (`loading weights`, `compiling`, ...), or None."""
        del line
        return None

    def cause(self, info: ExitInfo | None, tail: list[str]) -> Cause:
        """Why it ended: the exit status and the last lines of its log (control bytes already stripped)."""
        del tail
        return from_exit(info) if info else Cause(CauseKind.EXITED, "the process ended, and nobody saw how")

    def tracebacks(self, log_lines: Sequence[str]) -> dict[str, list[str]]:
        """The first Python traceback of each process in these lines, by the process's name, of those that can be why it ended."""
        return first_tracebacks(log_lines)

    def lever(self, cause: Cause, exceptions: Iterable[str]) -> str | None:
        """What an operator can do about it; None: the failure is not a known one.

        :param exceptions: the last lines of the tracebacks.
        """
        return self.levers.of(cause, exceptions)

    def memory_report(self, log_lines: Iterable[str]) -> MemoryReport | None:
        """The figures in the lines of a start; None: they do not say how large the KV cache is."""
        del log_lines
        return None

    def upstream_model(self, profile: Profile) -> str | None:
        """The name the engine itself knows the model by, where it differs from `served_name`."""
        del profile
        return None
