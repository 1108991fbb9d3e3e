"""Every command that changes something, and what it leaves alone."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest
import requests
from tests.e2e.box import Box, Json, until
from tests.e2e.clients import QUESTION, PlainLoad, open_streams
from tests.e2e.texts import sim

RED = sim("red", replicas=2, flags={"load_s": 0.2})
BLUE = sim("blue", replicas=1)


@pytest.fixture(scope="module")
def pair(shared_box: Box) -> Box:
    """Two profiles at once under their own names: red-0, red-1 and blue-0."""
    shared_box.up({"red": RED, "blue": BLUE})
    return shared_box


def rows(box: Box) -> dict[str, Json]:
    return {row["id"]: row for row in box.look()["replicas"]}


def served(box: Box) -> dict[str, Json]:
    """The router's own figures for each replica."""
    stats = until(box.router_stats, "the router answers", 60)
    return {row["id"]: row for row in stats["replicas"]}


def ask(box: Box, model: str) -> requests.Response:
    body: dict[str, Any] = {"model": model, "messages": QUESTION, "max_tokens": 4}
    return requests.post(f"{box.endpoint}/v1/chat/completions", json=body, timeout=60)


def settle(box: Box, *replicas: str) -> None:
    for replica in replicas:
        box.wait_state(replica, "READY", rotation="in")


def test_each_profile_answers_under_its_own_name(pair: Box) -> None:
    settle(pair, "red-0", "red-1", "blue-0")
    models = requests.get(f"{pair.endpoint}/v1/models", timeout=30).json()["data"]
    assert sorted(model["id"] for model in models) == ["blue", "red"]
    for name in ("red", "blue"):
        answer = ask(pair, name)
        assert answer.json()["model"] == name
        assert answer.headers["X-Gpuserve-Replica"].startswith(f"{name}-")


def test_chat_asks_the_model_it_is_told(pair: Box) -> None:
    for name in ("red", "blue"):
        before = {row: counts["requests_total"] for row, counts in served(pair).items()}
        assert pair.ok("chat", "--model", name, "My order is late.").strip()
        grown = [row for row, counts in served(pair).items() if counts["requests_total"] > before[row]]
        assert [row.partition("-")[0] for row in grown] == [name]
    assert "served: " in pair.run("chat", "--model", "green", "My order is late.").stderr


def test_drain_and_undrain_keep_the_process(pair: Box) -> None:
    settle(pair, "red-0", "red-1")
    before = rows(pair)["red-0"]
    pair.ok("drain", "red-0")
    held = pair.wait_state("red-0", "DRAINING", rotation="out")
    assert held["pid"] == before["pid"]
    assert {ask(pair, "red").headers["X-Gpuserve-Replica"] for _ in range(6)} == {"red-1"}
    pair.ok("undrain", "red-0")
    back = pair.wait_state("red-0", "READY", rotation="in")
    assert (back["pid"], back["generation"]) == (before["pid"], before["generation"])


def test_stop_lets_streams_finish_and_start_brings_it_back(pair: Box) -> None:
    settle(pair, "red-0", "red-1")
    before = rows(pair)["red-0"]
    old_tree = pair.tree(before["shim_pid"])
    streams = open_streams(pair.endpoint, "red", 6, tokens=100)
    streams.wait_begun()
    with PlainLoad(pair.endpoint, "red") as load:
        pair.ok("stop", "red-0")
        stopped = pair.wait_state("red-0", "STOPPED")
        load.reach(5)
    ended = streams.join()
    assert "red-0" in {stream.replica for stream in ended}
    assert [stream for stream in ended if not stream.whole] == []
    until(lambda: not any(p.is_running() for p in old_tree), "the stopped tree is gone", 60)
    assert stopped["pid"] is None
    assert stopped["started_at"] is None
    pair.ok("start", "red-0")
    after = pair.wait_state("red-0", "READY", rotation="in")
    assert after["generation"] > before["generation"]
    assert after["restarts"] == before["restarts"]


def test_restart_replaces_the_process_and_is_no_crash(pair: Box) -> None:
    settle(pair, "blue-0")
    before = rows(pair)["blue-0"]
    pair.ok("restart", "blue-0")
    after = pair.wait_restarted(before, 60)
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"]


def test_a_request_waits_while_the_only_replica_restarts(pair: Box) -> None:
    settle(pair, "blue-0")
    with PlainLoad(pair.endpoint, "blue") as load:
        before = rows(pair)["blue-0"]
        pair.ok("restart", "blue-0")
        pair.wait_restarted(before, 60)
        load.reach(5)


def test_a_state_that_does_not_know_the_verb_says_which_it_knows(pair: Box) -> None:
    settle(pair, "blue-0")
    pair.ok("stop", "blue-0")
    pair.wait_state("blue-0", "STOPPED")
    refused = pair.run("drain", "blue-0")
    assert refused.returncode == 1
    assert "STOPPED" in refused.stderr
    assert "start" in refused.stderr
    pair.ok("start", "blue-0")
    settle(pair, "blue-0")


def test_scale_up_and_down(pair: Box) -> None:
    settle(pair, "blue-0")
    first = rows(pair)["blue-0"]["pid"]
    pair.ok("scale", "blue", "3")
    until(lambda: len([r for r in rows(pair) if r.startswith("blue")]) == 3, "three rows", 60)
    settle(pair, "blue-1", "blue-2")
    trees = [p for name in ("blue-1", "blue-2") for p in pair.tree(rows(pair)[name]["shim_pid"])]
    with PlainLoad(pair.endpoint, "blue") as load:
        pair.ok("scale", "blue", "1")
        until(lambda: [r for r in rows(pair) if r.startswith("blue")] == ["blue-0"], "one row", 60)
        load.reach(5)
    until(lambda: not any(p.is_running() for p in trees), "the others' processes are gone", 60)
    assert rows(pair)["blue-0"]["pid"] == first


def test_apply_replaces_what_changed_and_keeps_what_did_not(pair: Box) -> None:
    settle(pair, "red-0", "red-1", "blue-0")
    before = rows(pair)
    path = pair.write("red", sim("red", replicas=2, flags={"load_s": 0.1}))
    dry = json.loads(pair.ok("apply", path, "--dry-run", "--json"))
    assert {c["replica"]: c["action"] for c in dry["changes"] if c["action"] != "keep"}.keys() == {
        "red-0",
        "red-1",
    }
    assert rows(pair)["red-0"]["pid"] == before["red-0"]["pid"]
    with PlainLoad(pair.endpoint, "red") as load:
        pair.ok("apply", path)
        for name in ("red-0", "red-1"):
            assert pair.wait_restarted(before[name], 60)["pid"] != before[name]["pid"]
        load.reach(5)
    assert rows(pair)["blue-0"]["pid"] == before["blue-0"]["pid"]


def test_apply_of_limits_alone_restarts_nothing(pair: Box) -> None:
    settle(pair, "blue-0")
    before = rows(pair)["blue-0"]
    pair.ok("apply", pair.write("blue", BLUE + "\n[limits]\nqueue = 7\n"))
    again = json.loads(pair.ok("apply", str(pair.profiles / "blue.toml"), "--json"))
    assert all(change["action"] == "keep" for change in again["changes"])
    now = rows(pair)["blue-0"]
    assert (now["pid"], now["generation"]) == (before["pid"], before["generation"])


def test_reload_keeps_what_runs(pair: Box) -> None:
    before = {name: row["pid"] for name, row in rows(pair).items()}
    pair.ok("reload")
    assert {name: row["pid"] for name, row in rows(pair).items()} == before
    assert ask(pair, "blue").status_code == 200


def test_plan_changes_nothing(pair: Box) -> None:
    before = pair.look()["generation"]
    plan = json.loads(pair.ok("plan", pair.write("green", sim("green", replicas=2)), "--json"))
    assert plan["fits"] is True
    assert [placement["replica"] for placement in plan["placements"]] == ["green-0", "green-1"]
    assert plan["refusal"] is None
    assert all(placement["command"] for placement in plan["placements"])
    assert pair.look()["generation"] == before
    assert "green-0" not in rows(pair)


def test_events_begin_with_a_snapshot_and_tell_of_changes(pair: Box) -> None:
    settle(pair, "blue-0")
    with pair.popen("events", "-f", "--json") as follower:
        assert follower.stdout is not None
        first = json.loads(follower.stdout.readline())
        assert first["kind"] == "snapshot"
        assert {row["id"] for row in first["status"]["replicas"]} >= {"blue-0"}
        pair.ok("restart", "blue-0")
        seen: list[str] = []
        last = first["seq"]
        while seen[-1:] != ["READY"]:
            event = json.loads(follower.stdout.readline())
            assert event["seq"] > last
            last = event["seq"]
            if event["kind"] == "replica" and event["replica"]["id"] == "blue-0":
                seen += [event["replica"]["state"]] if seen[-1:] != [event["replica"]["state"]] else []
        follower.send_signal(signal.SIGINT)
        follower.communicate(timeout=20)
    assert seen[0] in {"DRAINING", "STOPPING"}
    assert seen[-2:] == ["STARTING", "READY"]


def test_a_stop_overtakes_a_start(pair: Box) -> None:
    pair.ok("apply", pair.write("slow", sim("slow", replicas=1, flags={"load_s": 600})))
    starting = pair.wait_state("slow-0", "STARTING")
    pid = until(lambda: pair.replica("slow-0")["shim_pid"], "the shim of the start", 60)
    old_tree = pair.tree(pid)
    begun = time.monotonic()
    pair.ok("stop", "slow-0")
    stopped = pair.wait_state("slow-0", "STOPPED")
    assert time.monotonic() - begun < 60, "it did not wait for the load"
    assert stopped["generation"] == starting["generation"]
    until(lambda: not any(p.is_running() for p in old_tree), "the half-started tree is gone", 60)


def test_up_reports_a_start_that_is_not_done_in_time(pair: Box) -> None:
    path = pair.write("later", sim("later", replicas=1, flags={"load_s": 600}))
    late = pair.run("up", path, "--wait", "1")
    assert late.returncode == 5
    assert "later-0" in late.stdout + late.stderr


def test_prune_removes_what_is_not_named(pair: Box) -> None:
    """The last but one test of this fleet: red alone is left."""
    red = {name: row["pid"] for name, row in rows(pair).items() if name.startswith("red-")}
    pair.ok("apply", str(pair.profiles / "red.toml"), "--prune")
    until(lambda: set(rows(pair)) == {"red-0", "red-1"}, "only red is left", 60)
    assert {name: row["pid"] for name, row in rows(pair).items()} == red
    gone = ask(pair, "blue")
    assert gone.status_code == 404
    assert ask(pair, "red").status_code == 200


def test_what_was_stopped_before_is_removed_too(box: Box) -> None:
    """A replica that is down already changes no state when it is stopped for good; `down` then waited for it for ever."""
    box.up({"kept": sim("kept", replicas=1), "gone": sim("gone", replicas=1)})
    for replica in ("gone-0", "kept-0"):
        box.ok("stop", replica)
        box.wait_state(replica, "STOPPED")
    box.ok("apply", str(box.profiles / "kept.toml"), "--prune")
    until(lambda: "gone-0" not in rows(box), "what is not wanted is gone", 60)
    box.wait_state("kept-0", "READY")
    box.ok("stop", "kept-0")
    box.wait_state("kept-0", "STOPPED")
    box.ok("down", "--yes", timeout_s=30)


def test_down_finishes_streams_and_leaves_nothing(pair: Box) -> None:
    streams = open_streams(pair.endpoint, "red", 4, tokens=60)
    streams.wait_begun()
    pair.down()
    assert [stream for stream in streams.join() if not stream.whole] == []
    assert pair.run("down", "--yes").returncode in {0, 3}
