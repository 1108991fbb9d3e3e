"""The control plane dies; the data plane does not. These tests follow test_faults.py on the same fleet."""

from __future__ import annotations

import time

import pytest
import requests
from tests.e2e.box import kill, until
from tests.e2e.clients import PlainLoad, open_streams
from tests.e2e.texts import SERVED, Fleet
from tests.faults.table import Measured


def pids(fleet: Fleet) -> dict[str, int]:
    return {row["id"]: row["pid"] for row in fleet.look()["replicas"]}


def restarts(fleet: Fleet) -> dict[str, int]:
    return {row["id"]: row["restarts"] for row in fleet.look()["replicas"]}


def up_again(fleet: Fleet) -> None:
    fleet.up({"tiny": fleet.flavour.profile}, wait_s=fleet.flavour.start_s)


def seconds_without_router(fleet: Fleet, pid: int) -> float:
    """kill -9 the router and ask the URL until it answers."""
    killed_at = kill(pid)

    def answers() -> float | None:
        try:
            good = requests.get(f"{fleet.endpoint}/v1/models", timeout=5).status_code == 200
        except requests.RequestException:
            return None
        return time.monotonic() - killed_at if good else None

    return until(answers, "the URL answers again", 60, every_s=0.01)


def router_pid(fleet: Fleet) -> int | None:
    stats = fleet.router_stats()
    return int(stats["pid"]) if stats else None


@pytest.mark.fault(26)
def test_the_supervisor_is_killed_under_load(fleet: Fleet) -> None:
    before, counts = pids(fleet), restarts(fleet)
    supervisor = fleet.look()["supervisor"]["pid"]
    with PlainLoad(fleet.endpoint, SERVED) as load:
        streams = open_streams(fleet.endpoint, SERVED, 8, fleet.flavour.stream_tokens // 2)
        streams.wait_begun()
        kill(supervisor)
        load.reach(10)
        assert fleet.run("status").returncode == 3
        up_again(fleet)
        assert [stream for stream in streams.join(max(90.0, fleet.flavour.start_s)) if not stream.whole] == []
        load.reach(10)
    assert pids(fleet) == before
    assert restarts(fleet) == counts
    assert fleet.look()["supervisor"]["pid"] != supervisor


@pytest.mark.fault(29)
def test_routers_come_back_within_a_second_without_a_supervisor(fleet: Fleet) -> None:
    before = pids(fleet)
    kill(fleet.look()["supervisor"]["pid"])
    times = [float("inf")]
    # A loaded test machine can slow some starts; ten in a row it cannot explain.
    while min(times) >= 1.0 and len(times) <= 10:
        pid = until(lambda: router_pid(fleet), "a router answers on its control socket", 60)
        lived_since = time.monotonic()
        # One that lives under a second is held back for a second before it is started again.
        until(lambda since=lived_since: time.monotonic() - since > 1.1, "the router lived a second", 60)  # type: ignore[misc]
        times.append(seconds_without_router(fleet, pid))
    assert len(times) > 1
    assert min(times) < 1.0, times
    with PlainLoad(fleet.endpoint, SERVED) as load:
        load.reach(10)
    up_again(fleet)
    assert pids(fleet) == before


@pytest.mark.fault(26)
def test_a_replica_that_died_while_nobody_watched_is_reported(fleet: Fleet) -> None:
    before = {row["id"]: row for row in fleet.look()["replicas"]}
    dead = before["tiny-1"]
    kill(fleet.look()["supervisor"]["pid"])
    with PlainLoad(fleet.endpoint, SERVED) as load:
        old_tree = fleet.tree(dead["shim_pid"])
        kill(dead["pid"])
        until(lambda: not any(p.is_running() for p in old_tree), "the shim swept the tree alone", 60)
        load.reach(10)
        up_again(fleet)
        after = fleet.wait_state("tiny-1", "READY", fleet.flavour.start_s)
    assert after["generation"] > dead["generation"]
    assert after["restarts"] == dead["restarts"] + 1
    assert "SIGKILL" in (after["reason"] or "")
    assert pids(fleet)["tiny-0"] == before["tiny-0"]["pid"]
    assert restarts(fleet)["tiny-0"] == before["tiny-0"]["restarts"]


@pytest.mark.fault(45)
def test_an_upgrade_under_load_leaves_the_replicas_alone(fleet: Fleet, measured: Measured) -> None:
    """To the same version, which is asked for: daemon and router are replaced, whoever they serve."""
    before, counts = fleet.look(), restarts(fleet)
    with PlainLoad(fleet.endpoint, SERVED) as load:
        streams = open_streams(fleet.endpoint, SERVED, 8, fleet.flavour.stream_tokens // 2)
        streams.wait_begun()
        fleet.ok("upgrade", "--force", timeout_s=120)
        ended = streams.join(max(90.0, fleet.flavour.start_s))
        assert [stream for stream in ended if not stream.whole] == []
        load.reach(10)
    measured.failed, measured.answered = len(load.failures), load.answered
    after = fleet.look()
    assert after["supervisor"]["pid"] != before["supervisor"]["pid"]
    assert not set(after["router"]["pids"]) & set(before["router"]["pids"])
    assert pids(fleet) == {row["id"]: row["pid"] for row in before["replicas"]}
    assert restarts(fleet) == counts


def test_down_leaves_nothing(fleet: Fleet) -> None:
    """The last test of the fleet."""
    fleet.down()
    assert list((fleet.roots.run / "r").glob("*")) == []
    assert [p for p in fleet.roots.run.rglob("*") if p.is_socket()] == []
    assert fleet.run("status").returncode == 3
