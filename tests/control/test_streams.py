from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from gpuserved.api.errors import NotFound, TimedOut
from gpuserved.api.types import ReplicasRequest


def test_events_begin_with_a_snapshot_and_go_on_with_changes(daemon: Any, until: Any) -> None:
    events = daemon.client.events()
    first = next(events)
    assert first.kind == "snapshot"
    assert [replica.state for replica in first.status.replicas] == ["READY", "READY"]
    daemon.client.act("stop", ReplicasRequest(replicas=["demo-1"]))
    change = next(events)
    assert (change.kind, change.replica.id, change.replica.state, change.previous_state) == (
        "replica", "demo-1", "STOPPED", "READY",
    )  # fmt: skip
    assert change.seq > first.seq
    events.close()
    until(lambda: daemon.do(lambda: daemon.fleet.bus.readers) == 0, "a reader that hangs up is forgotten")


def test_a_silent_stream_ends_for_the_client(daemon: Any) -> None:
    events = daemon.client.events(timeout_s=2)
    next(events)
    with pytest.raises(TimedOut):
        next(events)


def test_a_slow_reader_loses_nothing_that_a_snapshot_does_not_say(daemon: Any, until: Any) -> None:
    with socket.socket(socket.AF_UNIX) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(60)
        slow.connect(str(daemon.path))
        slow.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: daemon.do(lambda: daemon.fleet.bus.readers) == 1, "subscribed")

        def flood() -> None:
            for number in range(500):
                daemon.fleet.bus.publish("notice", message=f"{number} " + "x" * 2000)

        for _ in range(20):
            daemon.do(flood)
        daemon.do(daemon.fleet.states.__setitem__, "demo-0", "FAILED")
        daemon.do(flood)
        assert daemon.client.status()  # nobody else waits for it
        read = slow.makefile("rb")
        kinds: list[str] = []
        last: dict[str, Any] = {}
        while not (kinds.count("snapshot") >= 2 and last["status"]["replicas"][0]["state"] == "FAILED"):
            line = read.readline()
            assert line, "the stream ended"
            if line.startswith(b"{"):
                event = json.loads(line)
                kinds.append(event["kind"])
                last = event if event["kind"] == "snapshot" else last
        assert kinds[0] == "snapshot"
        assert len(kinds) < 10_000


def test_the_last_lines_come_from_all_segments(daemon: Any, tmp_path: Path) -> None:
    (tmp_path / "1.log.1").write_bytes(b"a\nb\n")
    (tmp_path / "1.log").write_bytes(b"c\nbar 1%\rbar 2%\nunfinished")
    client = daemon.client
    assert list(client.logs("demo-0", lines=4)) == ["b", "c", "bar 1%\rbar 2%", "unfinished"]
    assert list(client.logs("demo-0", lines=0)) == []
    (tmp_path / "0.log").write_bytes(b"old\n")
    assert list(client.logs("demo-0", previous=True)) == ["old"]
    with pytest.raises(NotFound):
        list(client.logs("nope-0"))
    (tmp_path / "daemon.log").write_bytes(b"daemon\n")
    assert list(client.logs(None)) == ["daemon"]


def test_long_logs_are_read_from_their_end(daemon: Any, tmp_path: Path) -> None:
    (tmp_path / "1.log").write_bytes(b"".join(b"line %d %s\n" % (n, b"x" * 200) for n in range(5000)))
    lines = list(daemon.client.logs("demo-0", lines=1500))
    assert len(lines) == 1500
    assert lines[0].startswith("line 3500 ")
    assert lines[-1].startswith("line 4999 ")


def test_following_survives_rotation_and_a_new_start(daemon: Any, tmp_path: Path) -> None:
    live = tmp_path / "1.log"
    live.write_bytes(b"one\ntwo\nthr")
    lines = daemon.client.logs("demo-0", lines=2, follow=True)
    assert next(lines) == "two"
    with live.open("ab") as file:
        file.write(b"ee\n")
    assert next(lines) == "three"
    with live.open("ab") as file:
        file.write(b"four\n")
    live.rename(tmp_path / "1.log.1")
    live.write_bytes(b"five\nhalf a li")
    assert [next(lines), next(lines)] == ["four", "five"]
    (tmp_path / "2.log").write_bytes(b"second start\n")
    daemon.do(setattr, daemon.fleet, "generation", 2)
    assert [next(lines), next(lines)] == ["half a li", "second start"]
    lines.close()


def test_following_begins_before_there_is_a_log(daemon: Any, tmp_path: Path) -> None:
    lines = daemon.client.logs("demo-0", follow=True)
    (tmp_path / "1.log").write_bytes(b"first\n")
    assert next(lines) == "first"
    lines.close()
