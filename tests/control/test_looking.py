"""The calls of a screen: who may do what, recent events, pages and streams of logs."""

from __future__ import annotations

from typing import Any

import pytest

from gpuserved.api.client import ControlClient
from gpuserved.api.errors import Conflict, Denied, Invalid, NotFound
from gpuserved.api.types import ApplyProfileRequest, ReplicasRequest, UpgradeRequest


def test_a_read_only_client_is_refused_by_the_daemon(daemon: Any) -> None:
    client = ControlClient(daemon.path, read_only=True)
    assert client.status().generation == 1
    assert client.detail("demo-0").command == ["serve", "demo-0"]
    for change in (
        lambda: client.act("stop", ReplicasRequest(replicas=["demo-0"])),
        lambda: client.apply_profile("demo", ApplyProfileRequest()),
        client.reload,
        client.shutdown,
        client.replace_routers,
        lambda: client.upgrade(UpgradeRequest(python="/opt/python")),
    ):
        with pytest.raises(Denied):
            change()
    assert daemon.fleet.calls == []
    assert daemon.client.version().may_operate


def test_who_attaches_late_is_told_what_happened(daemon: Any) -> None:
    daemon.client.act("stop", ReplicasRequest(replicas=["demo-1"]))
    daemon.do(daemon.fleet.bus.publish, "telemetry", status=daemon.fleet.status())
    daemon.do(daemon.fleet.bus.publish, "notice", message="GPU 3: OK -> LOST", severity="error")
    told = daemon.client.recent_events().events
    assert [(event.kind, event.severity) for event in told] == [("replica", "info"), ("notice", "error")]
    assert told[0].replica is not None
    assert (told[0].replica.id, told[0].replica.state) == ("demo-1", "STOPPED")


def test_recent_events_can_be_narrowed(daemon: Any) -> None:
    for number in range(5):
        daemon.do(daemon.fleet.bus.publish, "notice", message=str(number))
    told = daemon.client.recent_events().events
    assert [event.message for event in daemon.client.recent_events(newest=2).events] == ["3", "4"]
    assert daemon.client.recent_events(newest=0).events == []
    assert [e.message for e in daemon.client.recent_events(since=told[1].at).events] == ["1", "2", "3", "4"]
    with pytest.raises(Invalid, match="expected a number, not negative"):
        daemon.client.recent_events(since=-1.0)


def test_profiles_are_listed_compared_and_applied(daemon: Any) -> None:
    assert [each.name for each in daemon.client.profiles().profiles] == ["demo"]
    assert daemon.client.profile_diff("demo").changes[0].action == "keep"
    daemon.client.apply_profile("demo", ApplyProfileRequest(generation=1))
    assert len(daemon.fleet.calls) == 2


def test_pages_and_streams_of_logs(daemon: Any) -> None:
    live = daemon.fleet.logs / "1.log"
    live.write_text("".join(f"line {n}\n" for n in range(30)))
    (daemon.fleet.logs / "0.log").write_text("an earlier start\n")
    first = daemon.client.log_page("demo-0", lines=10)
    assert first.lines == [f"line {n}" for n in range(20, 30)]
    rest = daemon.client.log_page("demo-0", before=first.before, lines=100)
    assert rest.lines == ["an earlier start", *(f"line {n}" for n in range(20))]
    assert rest.before is None
    assert daemon.client.log_page("demo-0", match="LINE 7").lines == ["line 7"]
    batches = daemon.client.follow_logs(["demo-0"], lines=2)
    begun = next(batches)
    assert (begun.source, begun.lines) == ("demo-0", ["line 28", "line 29"])
    assert begun.before is not None
    with live.open("a") as log:
        log.write("[red]new[/]\x1b[31m\n")
    assert next(batches).lines == ["[red]new[/]\x1b[31m"]
    batches.close()


def test_bad_questions_about_logs_are_refused(daemon: Any) -> None:
    with pytest.raises(NotFound):
        daemon.client.log_page("nobody-0")
    with pytest.raises(Invalid, match="cursor"):
        daemon.client.log_page("demo-0", before="x")
    with pytest.raises(NotFound):
        next(daemon.client.follow_logs(["demo-0", "nobody-0"]))
    with pytest.raises(Invalid, match="lines from 0 to"):
        daemon.client.log_page("demo-0", lines=10_000_000)


def test_a_change_decided_on_an_older_state_is_refused(daemon: Any) -> None:
    daemon.fleet.generation = 7
    with pytest.raises(Conflict):
        daemon.client.act("stop", ReplicasRequest(replicas=["demo-0"], generation=6))
    assert daemon.fleet.states["demo-0"] == "READY"
