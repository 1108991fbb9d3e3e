"""Looking closely at the fleet: recent events, one replica with its past, the profiles and their files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gpuserved.api.crash import CrashCard
from gpuserved.api.errors import GpuserveError, NotFound
from gpuserved.api.inspect import MASK, EventsView, ProfilesView, ProfileView, ReplicaDetail
from gpuserved.api.types import ApplyRequest, ApplyResult, GpuView
from gpuserved.config.document import is_secret
from gpuserved.config.profile import load_profile
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Launch, LaunchContext
from gpuserved.fleet import snapshot
from gpuserved.fleet.history import History
from gpuserved.host.logtail import last_lines, segments
from gpuserved.planning.arrange import Wanted
from gpuserved.replica import start_files
from gpuserved.replica.controller import ReplicaController

if TYPE_CHECKING:
    from gpuserved.fleet.fleet import Fleet

LAST_LINES = 40
_KEY = re.compile(r"\s*([\w\"'.-]+)\s*=")
_HEADER = re.compile(r"\s*\[+\s*[\"']?([^\]\"'.]+)")
_PROFILE_MAX_BYTES = 256 * 1024


class Inspection:
    """Answers of one fleet to questions that `status` is too short for."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.history = History(fleet.bus)
        self._gpu_states: dict[str, str] = {}

    def note(self, owner: ReplicaController, previous_state: str) -> None:
        """Remember one change of a replica."""
        self.history.note(owner, previous_state)

    def since(self, replica: str) -> float | None:
        """Unix seconds of a replica's last change of state."""
        owner = self._fleet.owners.get(replica)
        return self.history.since(replica, owner.r.state.value) if owner is not None else None

    def watch_gpus(self, gpus: list[GpuView]) -> None:
        """Report GPUs that were lost, set aside or came back."""
        for gpu in gpus:
            before = self._gpu_states.get(gpu.uuid, "OK")
            if gpu.state != before:
                self._fleet.bus.publish(
                    "notice",
                    message=f"GPU {gpu.index} ({gpu.name}): {before} -> {gpu.state}"
                    + (f": {gpu.reason}" if gpu.reason else ""),
                    severity="info" if gpu.state == "OK" else "error",
                )
            self._gpu_states[gpu.uuid] = gpu.state

    def events(self) -> EventsView:
        """See `InspectionPort`."""
        return EventsView(events=self._fleet.bus.recent())

    def detail(self, replica: str) -> ReplicaDetail:
        """See `InspectionPort`."""
        fleet = self._fleet
        owner = fleet.owners.get(replica)
        if owner is None:
            raise NotFound(f"no replica is called {replica!r}", "see `gpuserve status`")
        made, error = _launch(fleet, owner)
        log = start_files.log_path(fleet.roots, replica, owner.r.generation)
        return ReplicaDetail(
            replica=snapshot.replica(fleet, owner),
            command=list(made.argv) if made else [],
            environment={} if made is None else {k: _masked(k, v) for k, v in sorted(made.env.items())},
            error=error,
            log_files=[str(path) for path in segments(log)],
            history=self.history.of(replica),
            last_lines=[line for line in last_lines(log, LAST_LINES) if line.strip()],
            crash=self._last_crash(replica),
        )

    def profiles(self) -> ProfilesView:
        """See `InspectionPort`."""
        fleet = self._fleet
        found = [_applied(name, each) for name, each in sorted(fleet.wanted.items())]
        folder = fleet.roots.config / "profiles"
        known = {each.name for each in found}
        files = sorted(folder.glob("*.toml")) if folder.is_dir() else []
        found += [_waiting(path) for path in files if path.stem not in known]
        return ProfilesView(generation=fleet.generation, profiles=found)

    def log_path(self, replica: str, previous: bool) -> list[Path]:
        """See `InspectionPort`."""
        fleet = self._fleet
        past = [g for g in self._starts(replica) if g <= fleet.owners[replica].r.generation]
        wanted = past[-2:-1] if previous else past[-1:]
        if not wanted:
            what = "an earlier start" if previous else "a start"
            raise NotFound(f"{replica} has no log of {what}", "see `gpuserve status` for its state")
        return segments(start_files.log_path(fleet.roots, replica, wanted[0]))

    def crash(self, replica: str, previous: bool) -> CrashCard:
        """See `InspectionPort`."""
        fleet = self._fleet
        starts = [g for g in self._starts(replica) if g <= fleet.owners[replica].r.generation]
        folder = start_files.log_folder(fleet.roots, replica)
        for generation in reversed(starts[-2:-1] if previous else starts):
            try:
                return msgspec.json.decode((folder / f"{generation}.crash.json").read_bytes(), type=CrashCard)
            except (OSError, msgspec.DecodeError):
                continue
        raise NotFound(f"no crash of {replica} is known", "see `gpuserve status` for its state")

    def _last_crash(self, replica: str) -> CrashCard | None:
        try:
            return self.crash(replica, previous=False)
        except NotFound:
            return None

    def all_logs(self, replica: str) -> list[Path]:
        """See `InspectionPort`."""
        roots = self._fleet.roots
        return [
            path for g in self._starts(replica) for path in segments(start_files.log_path(roots, replica, g))
        ]

    def _starts(self, replica: str) -> list[int]:
        if replica not in self._fleet.owners:
            self._fleet.named(replica)
            raise NotFound(f"{replica} is a profile", f"name one replica, for example {replica}-0")
        return start_files.generations(self._fleet.roots, replica)

    def daemon_log(self) -> list[Path]:
        """See `InspectionPort`."""
        return segments(self._fleet.roots.log / "daemon.log")

    async def apply_profile(self, name: str, *, dry_run: bool, generation: int | None) -> ApplyResult:
        """See `InspectionPort`."""
        fleet = self._fleet
        wanted = fleet.wanted.get(name)
        path = Path(wanted.source) if wanted else fleet.roots.config / "profiles" / f"{name}.toml"
        text = _read(path) if path.is_absolute() else None
        if text is None:
            if wanted is None:
                raise NotFound(f"no profile is called {name!r}", f"{path} cannot be read")
            text = wanted.text
        return await fleet.apply(
            ApplyRequest(
                profiles={name: text},
                sources={name: wanted.source if wanted else str(path)},
                dry_run=dry_run,
                generation=generation,
            )
        )


def _launch(fleet: Fleet, owner: ReplicaController) -> tuple[Launch | None, str | None]:
    """What the replica is, or would be, started with."""
    assignment, process = owner.assignment, owner.process
    profile = assignment.profile
    engine = fleet.engine(profile)
    port = None
    if engine.wants_port(profile):
        tail = (owner.address or "").rpartition(":")[2]
        port = int(tail) if tail.isdigit() else 0
    try:
        made = engine.launch(
            LaunchContext(
                profile=profile,
                replica=owner.id,
                generation=owner.r.generation,
                nonce=process.nonce if process else "0" * 12,
                run_dir=process.folder if process else Path("RUN_DIR"),
                cache_dir=fleet.roots.cache,
                gpu_indexes=assignment.gpu_indexes,
                gpu_uuids=assignment.gpu_uuids,
                hf_token=MASK if fleet.hf_token else None,
                port=port,
            )
        )
    except GpuserveError as error:
        return None, error.message
    return made, None


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
