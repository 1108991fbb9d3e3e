"""The one client of the control API: synchronous, standard library and msgspec only.

`gpuserve status` is typed many times an hour, so what it imports counts: http.client costs some 25 ms, a client library 140. One object may be used from several threads; every call has a connection of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote, urlencode

import msgspec

from gpuserved.api import errors
from gpuserved.api.crash import CrashCard
from gpuserved.api.inspect import EventsView, LogBatch, LogPage, ProfilesView, ReplicaDetail
from gpuserved.api.plan import Plan, PlanRequest
from gpuserved.api.transport import CHANGE_TIMEOUT_S, READ_TIMEOUT_S, Transport
from gpuserved.api.types import (
    ActionResult,
    ApplyProfileRequest,
    ApplyRequest,
    ApplyResult,
    FleetEvent,
    GpusRequest,
    GpusResult,
    ReplicasRequest,
    RouterView,
    ScaleRequest,
    Status,
    UpgradeAccepted,
    UpgradeRequest,
    VersionView,
)

STREAM_TIMEOUT_S = 60.0
"""Longest silence of an event stream: telemetry comes every second or so."""


class ControlClient(Transport):
    """Talks to one daemon.

    Every method raises the classes of `api.errors`: `Unavailable` where no daemon answers, `TimedOut`, and what it refused.
    """

    def status(self) -> Status:
        """The whole state now."""
        return self._call("GET", "/status", Status)

    def version(self) -> VersionView:
        """The daemon's release and protocol."""
        return self._call("GET", "/version", VersionView)

    def apply(self, request: ApplyRequest) -> ApplyResult:
        """Add or update profiles."""
        return self._call("POST", "/apply", ApplyResult, request)

    def plan(self, request: PlanRequest) -> Plan:
        """Place one profile without changing anything."""
        return self._call("POST", "/plan", Plan, request)

    def act(self, verb: str, request: ReplicasRequest) -> ActionResult:
        """start, stop, restart, drain or undrain."""
        return self._call("POST", f"/replicas/{quote(verb, safe='')}", ActionResult, request)

    def scale(self, request: ScaleRequest) -> ActionResult:
        """Change the number of replicas of a profile."""
        return self._call("POST", "/scale", ActionResult, request)

    def quarantine(self, request: GpusRequest) -> GpusResult:
        """Set GPUs aside."""
        return self._call("POST", "/gpus/quarantine", GpusResult, request)

    def release(self, request: GpusRequest) -> GpusResult:
        """Let GPUs be used again."""
        return self._call("POST", "/gpus/release", GpusResult, request)

    def reload(self) -> ApplyResult:
        """Read configuration, keys and profiles again."""
        return self._call("POST", "/reload", ApplyResult)

    def upgrade(self, request: UpgradeRequest) -> UpgradeAccepted:
        """Ask the daemon to hand over to another version; it begins after the answer."""
        return self._call("POST", "/upgrade", UpgradeAccepted, request)

    def replace_routers(self) -> RouterView:
        """New routers on the same address; returns once they serve."""
        return self._call("POST", "/routers/replace", RouterView)

    def shutdown(self, *, drain: bool = True, forget: bool = True) -> None:
        """Ask the daemon to stop everything and itself; it goes on after the answer."""
        connection, response = self._open(
            "POST", f"/shutdown?drain={int(drain)}&forget={int(forget)}", b"", CHANGE_TIMEOUT_S
        )
        response.read()
        connection.close()

    def events(self, timeout_s: float = STREAM_TIMEOUT_S) -> Iterator[FleetEvent]:
        """Events until the daemon goes; a snapshot first. Closing the iterator hangs up.

        :param timeout_s: silence after which `TimedOut` is raised.
        """
        decoder = msgspec.json.Decoder(FleetEvent)
        for line in self._lines("/events", timeout_s):
            try:
                event = decoder.decode(line)
            except msgspec.DecodeError:  # a daemon that dies breaks its last line
                raise errors.Unavailable(f"the daemon at {self.socket_path} hung up", "try again") from None
            yield event

    def logs(
        self,
        replica: str | None,
        *,
        lines: int = 100,
        previous: bool = False,
        follow: bool = False,
    ) -> Iterator[str]:
        """Lines of a replica's log as they were written, control bytes and all; the daemon's own for None.

        :param follow: go on with what is written, through rotations and restarts, until closed.
        """
        path = "/daemon/logs" if replica is None else f"/replicas/{quote(replica, safe='')}/logs"
        query = urlencode({"n": lines, "previous": int(previous), "follow": int(follow)})
        for line in self._lines(f"{path}?{query}", None if follow else READ_TIMEOUT_S):
            yield line.decode(errors="replace").rstrip("\r\n")

    def crash(self, replica: str, *, previous: bool = False) -> CrashCard:
        """The last crash of a replica, or that of the start before the present one.

        :raises NotFound: there is none.
        """
        return self._call(
            "GET", f"/replicas/{quote(replica, safe='')}/crash?previous={int(previous)}", CrashCard
        )

    def recent_events(self, *, newest: int | None = None, since: float | None = None) -> EventsView:
        """What has been reported of late, also by earlier daemons, oldest first.

        :param newest: at most so many, the newest.
        :param since: Unix seconds; nothing older.
        """
        known = {"n": newest, "since": since}
        query = urlencode({key: value for key, value in known.items() if value is not None})
        return self._call("GET", f"/events/recent?{query}", EventsView)

    def detail(self, replica: str) -> ReplicaDetail:
        """One replica with command line, environment and past."""
        return self._call("GET", f"/replicas/{quote(replica, safe='')}", ReplicaDetail)

    def profiles(self) -> ProfilesView:
        """The profiles that are applied, and those that could be."""
        return self._call("GET", "/profiles", ProfilesView)

    def profile_diff(self, profile: str) -> ApplyResult:
        """What applying a profile's file as it is now would do."""
        path = f"/profiles/{quote(profile, safe='')}/diff"
        return self._call("GET", path, ApplyResult, timeout_s=CHANGE_TIMEOUT_S)

    def apply_profile(self, profile: str, request: ApplyProfileRequest) -> ApplyResult:
        """Apply a profile's file as it is now."""
        return self._call("POST", f"/profiles/{quote(profile, safe='')}/apply", ApplyResult, request)

    def log_page(
        self, source: str, *, before: str | None = None, lines: int = 500, match: str | None = None
    ) -> LogPage:
        """Lines of a log before a cursor, through rotated files and earlier starts.

        :param source: a replica's id; empty: the daemon.
        :param match: only lines that hold this text, whatever the case.
        """
        query = {"source": source, "n": lines, "before": before, "match": match}
        known = urlencode({key: value for key, value in query.items() if value is not None})
        return self._call("GET", f"/logs/page?{known}", LogPage, timeout_s=CHANGE_TIMEOUT_S)

    def follow_logs(
        self, sources: Sequence[str], *, lines: int = 100, after: Mapping[str, str] | None = None
    ) -> Iterator[LogBatch]:
        """What these logs say from now on, beginning with the last `lines` of each; until closed.

        :param after: sources that go on at the cursor of an earlier batch, so that nothing is missed or told twice.
        """
        places = after or {}
        pairs = [
            (name, value)
            for each in sources
            for name, value in (("source", each), ("after", places.get(each, "")))
        ]
        query = urlencode([("n", lines), *pairs])
        decoder = msgspec.json.Decoder(LogBatch)
        for line in self._lines(f"/logs/follow?{query}", None):
            try:
                batch = decoder.decode(line)
            except msgspec.DecodeError:  # a daemon that dies breaks its last line
                return
            yield batch
