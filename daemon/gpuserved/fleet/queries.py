"""What the control API may look at: the whole fleet at one moment, one replica with its past, profiles and their files. All of it
from memory and small files: no question waits for a change that is under way.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

import gpuserved
from gpuserved.api.crash import CrashCard
from gpuserved.api.errors import GpuserveError, NotFound
from gpuserved.api.inspect import MASK, EventsView, ProfilesView, ProfileView, ReplicaDetail
from gpuserved.api.roots import Roots
from gpuserved.api.types import (
    ApplyRequest,
    ApplyResult,
    FailedUpgrade,
    GpuView,
    ReplicaView,
    Status,
    SupervisorView,
)
from gpuserved.config.document import is_secret
from gpuserved.config.profile import load_profile
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Launch, LaunchContext
from gpuserved.engines.registry import Engines
from gpuserved.fleet import views
from gpuserved.fleet.events import Bus, Transitions
from gpuserved.fleet.gpu_inventory import GpuInventory
from gpuserved.fleet.quarantine import Quarantine
from gpuserved.fleet.rollout import Rollouts
from gpuserved.fleet.settings import CurrentSettings
from gpuserved.fleet.state import FleetState
from gpuserved.host.logtail import last_lines, segments
from gpuserved.planning.arrange import Wanted
from gpuserved.replica import start_files
from gpuserved.replica.snapshot import ReplicaSnapshot
from gpuserved.routers.routers import Routers

LAST_LINES = 40
_KEY = re.compile(r"\s*([\w\"'.-]+)\s*=")
_HEADER = re.compile(r"\s*\[+\s*[\"']?([^\]\"'.]+)")
_PROFILE_MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class About:
    """What a daemon knows of itself from its start on."""

    service: bool = False
    """Under systemd."""
    failed_upgrade: FailedUpgrade | None = None
    """The upgrade whose failure this life began with."""


class Overview:
    """The whole fleet at one moment."""

    def __init__(
        self,
        state: FleetState,
        routers: Routers,
        rollouts: Rollouts,
        inventory: GpuInventory,
        quarantine: Quarantine,
        transitions: Transitions,
        about: About,
        endpoint: Callable[[], str | None],
        problem: Callable[[], str | None],
    ) -> None:
        """The parts that are shown.

        :param endpoint: the one URL; None: nobody listens yet.
        :param problem: what the operator must know of the daemon; None: all well.
        """
        self._state = state
        self._routers = routers
        self._rollouts = rollouts
        self._inventory = inventory
        self._quarantine = quarantine
        self._transitions = transitions
        self._about = about
        self._endpoint = endpoint
        self._problem = problem
        self._began = time.monotonic()

    def gpus(self) -> list[GpuView]:
        """The GPUs as of the last sample, with those that are set aside marked."""
        return self._quarantine.shown(self._inventory.views())

    def replica(self, name: str) -> ReplicaView:
        """One replica that exists."""
        return self._replica(self._state.replicas[name].snapshot)

    def _replica(self, replica: ReplicaSnapshot) -> ReplicaView:
        since = self._transitions.since(replica.id, replica.r.state.value)
        leaving = replica.id in self._state.removals
        return views.replica_view(replica, self._routers.stats, since, leaving=leaving)

    def status(self) -> Status:
        """For the wire."""
        replicas = self._state.snapshots()
        supervisor = SupervisorView(
            pid=os.getpid(),
            version=gpuserved.__version__,
            uptime_s=time.monotonic() - self._began,
            degraded=self._problem(),
            python=sys.executable,
            service=self._about.service,
            failed_upgrade=self._about.failed_upgrade,
        )
        return Status(
            generation=self._state.generation,
            version=gpuserved.__version__,
            endpoint=self._endpoint(),
            supervisor=supervisor,
            router=views.router_view(self._routers),
            gpus=self.gpus(),
            replicas=[self._replica(replicas[name]) for name in sorted(replicas, key=views.order)],
            models=views.model_views(replicas.values(), self._routers.stats),
            load=views.total_load(replicas.values()),
            rollouts=self._rollouts.views(),
        )


class CloserLooks:
    """Answers to questions that `status` is too short for."""

    def __init__(
        self,
        roots: Roots,
        state: FleetState,
        engines: Engines,
        settings: CurrentSettings,
        overview: Overview,
        transitions: Transitions,
        bus: Bus,
        apply: Callable[[ApplyRequest], Awaitable[ApplyResult]],
    ) -> None:
        self._apply = apply
        self._roots = roots
        self._state = state
        self._engines = engines
        self._settings = settings
        self._overview = overview
        self._transitions = transitions
        self._bus = bus

    def events(self) -> EventsView:
        return EventsView(events=self._bus.recent())

    def detail(self, replica: str) -> ReplicaDetail:
        controller = self._state.replicas.get(replica)
        if controller is None:
            raise NotFound(f"no replica is called {replica!r}", "see `gpuserve status`")
        known = controller.snapshot
        made, error = self._launch(known)
        log = start_files.log_path(self._roots, replica, known.r.generation)
        return ReplicaDetail(
            replica=self._overview.replica(replica),
            command=list(made.argv) if made else [],
            environment={} if made is None else {k: _masked(k, v) for k, v in sorted(made.env.items())},
            error=error,
            log_files=[str(path) for path in segments(log)],
            history=self._transitions.of(replica),
            last_lines=[line for line in last_lines(log, LAST_LINES) if line.strip()],
            crash=self._last_crash(replica),
        )

    def profiles(self) -> ProfilesView:
        found = [_applied(name, each) for name, each in sorted(self._state.desired.items())]
        folder = self._roots.config / "profiles"
        known = {each.name for each in found}
        files = sorted(folder.glob("*.toml")) if folder.is_dir() else []
        found += [_waiting(path) for path in files if path.stem not in known]
        return ProfilesView(generation=self._state.generation, profiles=found)

    def log_path(self, replica: str, previous: bool) -> list[Path]:
        past = [g for g in self._starts(replica) if g <= self._state.replicas[replica].r.generation]
        wanted = past[-2:-1] if previous else past[-1:]
        if not wanted:
            what = "an earlier start" if previous else "a start"
            raise NotFound(f"{replica} has no log of {what}", "see `gpuserve status` for its state")
        return segments(start_files.log_path(self._roots, replica, wanted[0]))

    def crash(self, replica: str, previous: bool) -> CrashCard:
        starts = [g for g in self._starts(replica) if g <= self._state.replicas[replica].r.generation]
        for generation in reversed(starts[-2:-1] if previous else starts):
            path = start_files.crash_path(self._roots, replica, generation)
            try:
                return msgspec.json.decode(path.read_bytes(), type=CrashCard)
            except (OSError, msgspec.DecodeError):
                continue
        raise NotFound(f"no crash of {replica} is known", "see `gpuserve status` for its state")

    def _last_crash(self, replica: str) -> CrashCard | None:
        try:
            return self.crash(replica, previous=False)
        except NotFound:
            return None

    def all_logs(self, replica: str) -> list[Path]:
        logs = (start_files.log_path(self._roots, replica, start) for start in self._starts(replica))
        return [path for log in logs for path in segments(log)]

    def _starts(self, replica: str) -> list[int]:
        replicas = self._state.replicas
        if replica not in replicas:
            if any(c.assignment.profile.name == replica for c in replicas.values()):
                raise NotFound(f"{replica} is a profile", f"name one replica, for example {replica}-0")
            known = ", ".join(sorted(replicas, key=views.order)) or "none"
            raise NotFound(f"no replica or profile is called {replica!r}", f"replicas: {known}")
        return start_files.generations(self._roots, replica)

    def daemon_log(self) -> list[Path]:
        return segments(self._roots.log / "daemon.log")

    async def apply_profile(self, name: str, *, dry_run: bool, generation: int | None) -> ApplyResult:
        """Apply a profile as its file has it now."""
        wanted = self._state.desired.get(name)
        path = Path(wanted.source) if wanted else self._roots.config / "profiles" / f"{name}.toml"
        text = _read(path) if path.is_absolute() else None
        if text is None:
            if wanted is None:
                raise NotFound(f"no profile is called {name!r}", f"{path} cannot be read")
            text = wanted.text
        source = wanted.source if wanted else str(path)
        return await self._apply(
            ApplyRequest(
                profiles={name: text}, sources={name: source}, dry_run=dry_run, generation=generation
            )
        )

    def _launch(self, replica: ReplicaSnapshot) -> tuple[Launch | None, str | None]:
        """What the replica is, or would be, started with; or why nobody can say."""
        assignment, process = replica.assignment, replica.process
        profile = assignment.profile
        engine = self._engines.get(profile)
        port = None
        if engine.wants_port(profile):
            tail = (replica.address or "").rpartition(":")[2]
            port = int(tail) if tail.isdigit() else 0
        context = LaunchContext(
            profile=profile,
            replica=replica.id,
            generation=replica.r.generation,
            nonce=process.nonce if process else "0" * 12,
            run_dir=process.folder if process else Path("RUN_DIR"),
            cache_dir=self._roots.cache,
            gpu_indexes=assignment.gpu_indexes,
            gpu_uuids=assignment.gpu_uuids,
            hf_token=MASK if self._settings.value.hf_token else None,
            port=port,
        )
        try:
            return engine.launch(context), None
        except GpuserveError as error:
            return None, error.message


def _masked(name: str, value: str) -> str:
    return MASK if is_secret(name) else value


def masked_text(text: str) -> str:
    """A profile's text without what may be secret: every value of `[env]`, and of keys whose names say so."""
    lines, table, hiding = [], "", False
    for line in text.splitlines():
        header, key = _HEADER.match(line), _KEY.match(line)
        if header and not hiding:
            table = header[1].strip()
        elif key:
            path = key[1].replace('"', "").replace("'", "").split(".")
            number = line[key.end() :].lstrip()[:1].isdigit()  # kv_cache_tokens is no secret
            hiding = "env" in {table, path[0]} or (is_secret(path[-1]) and not number)
            line = f"{line[: key.end()]} {MASK}" if hiding else line  # noqa: PLW2901 - the masked line takes its place
            lines.append(line)
            continue
        else:
            # A value that goes on over several lines has no key of its own.
            line = MASK if hiding and line.strip() and not line.lstrip().startswith("#") else line  # noqa: PLW2901
        hiding = hiding and not header
        lines.append(line)
    return "\n".join(lines) + "\n"


def _applied(name: str, wanted: Wanted) -> ProfileView:
    path = Path(wanted.source)
    source = _read(path) if path.is_absolute() else None
    problem = None if source is None else _problem(source, str(path), name)
    profile = wanted.effective
    return ProfileView(
        name=name,
        source=wanted.source,
        model=profile.model,
        served_name=profile.served_name,
        engine=profile.engine.value,
        replicas=profile.replicas,
        scaled=wanted.scaled is not None,
        applied_text=masked_text(wanted.text),
        source_text=None if source is None else masked_text(source),
        differs=source is not None and source != wanted.text,
        error=problem,
    )


def _waiting(path: Path) -> ProfileView:
    text = _read(path)
    if text is None:
        return ProfileView(name=path.stem, source=str(path), error="cannot be read")
    view = ProfileView(name=path.stem, source=str(path), source_text=masked_text(text))
    loaded = _load(text, str(path), path.stem)
    if isinstance(loaded, str):
        return ProfileView(name=view.name, source=view.source, source_text=view.source_text, error=loaded)
    return ProfileView(
        name=view.name,
        source=view.source,
        model=loaded.model,
        served_name=loaded.served_name,
        engine=loaded.engine.value,
        replicas=loaded.replicas,
        source_text=view.source_text,
    )


def _load(text: str, source: str, name: str) -> Profile | str:
    try:
        return load_profile(text, source, name)
    except GpuserveError as error:
        return error.message


def _problem(text: str, source: str, name: str) -> str | None:
    loaded = _load(text, source, name)
    return loaded if isinstance(loaded, str) else None


def _read(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            raw = file.read(_PROFILE_MAX_BYTES)
    except OSError:
        return None
    return raw.decode("utf-8", errors="replace")
