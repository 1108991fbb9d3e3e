from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from gpuserved.api import errors
from gpuserved.api.client import ControlClient
from gpuserved.api.plan import PlanRequest
from gpuserved.api.roots import find_socket
from gpuserved.api.types import ApplyRequest, ReplicasRequest, ScaleRequest, UpgradeRequest
from gpuserved.control.peer import Peer, identify, may_operate


def test_status_and_version(daemon: Any) -> None:
    status = daemon.client.status()
    assert [replica.id for replica in status.replicas] == ["demo-0", "demo-1"]
    assert status.router.in_flight is None
    client = daemon.client
    assert client.version().protocol == 1
    assert client.notice is None


def test_mutations_reach_the_fleet(daemon: Any) -> None:
    client = daemon.client
    client.apply(ApplyRequest(profiles={"demo": "x"}, prune=True))
    assert client.act("stop", ReplicasRequest(replicas=["demo-0"])).replicas == {"demo-0": "STOPPED"}
    client.reload()
    client.shutdown(drain=False)
    client.shutdown(forget=False)
    assert client.upgrade(UpgradeRequest(python="/opt/python", pythonpath="/new")).version == "2"
    assert client.replace_routers().pids == [7]
    assert daemon.fleet.calls == [
        "apply ['demo'] prune=True", "stop ['demo-0']", "reload done", "shutdown drain=False forget=True",
        "shutdown drain=True forget=False", "upgrade /opt/python /new", "replace routers",
    ]  # fmt: skip
    assert client.plan(PlanRequest(name="demo", text="")).fits


def test_errors_come_back_as_their_class_with_hint_and_detail(daemon: Any) -> None:
    client = daemon.client
    with pytest.raises(errors.Refused) as refused:
        client.apply(ApplyRequest(profiles={"huge": ""}))
    assert (refused.value.hint, refused.value.detail) == ("use less", {"code": "does_not_fit"})
    with pytest.raises(errors.NotFound, match="no replica nope"):
        client.act("stop", ReplicasRequest(replicas=["demo-0", "nope"]))
    assert daemon.fleet.states["demo-0"] == "READY"
    with pytest.raises(errors.Conflict):
        client.act("stop", ReplicasRequest(replicas=["demo-0"], generation=99))
    with pytest.raises(errors.NotFound, match="no such call"):
        client.act("explode", ReplicasRequest(replicas=["demo-0"]))


def test_a_bug_is_internal_and_logged_and_says_nothing_else(
    daemon: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(errors.Internal) as failed:
        daemon.client.scale(ScaleRequest(profile="demo", replicas=2))
    assert "a bug" not in failed.value.message
    assert "a bug with demo" in caplog.text
    assert daemon.client.status()


def test_a_mutation_goes_on_when_its_client_hangs_up(daemon: Any, until: Any) -> None:
    def block() -> None:
        daemon.fleet.gate = asyncio.Event()

    daemon.do(block)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(daemon.path))
        raw.sendall(b"POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until(lambda: daemon.fleet.calls == ["reload began"], "the call begins")
    daemon.do(daemon.fleet.gate.set)
    until(lambda: daemon.fleet.calls == ["reload began", "reload done"], "the call ends")


def test_the_socket_is_private_from_the_start(daemon: Any) -> None:
    assert stat.S_IMODE(os.stat(daemon.path).st_mode) == 0o600


def test_nothing_listening_says_how_to_start(tmp_path: Path) -> None:
    missing = tmp_path / "control.sock"
    with pytest.raises(errors.Unavailable) as refused:
        ControlClient(missing).status()
    assert "gpuserve up" in (refused.value.hint or "")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(missing))
    with pytest.raises(errors.Unavailable):
        ControlClient(missing).status()
    with pytest.raises(errors.Unavailable) as system:
        ControlClient(Path("/run/gpuserve/control.sock")).status()
    assert "systemctl" in (system.value.hint or "")


def test_a_path_that_no_socket_can_have_is_said(tmp_path: Path) -> None:
    with pytest.raises(errors.Invalid, match="107 bytes"):
        ControlClient(tmp_path / ("x" * 120)).status()


def test_the_first_place_with_a_socket_is_taken(daemon: Any, tmp_path: Path) -> None:
    assert find_socket({"GPUSERVE_SOCKET": str(daemon.path)}) == daemon.path
    assert find_socket({"GPUSERVE_SOCKET": "/else"}, str(daemon.path)) == daemon.path
    assert find_socket({"GPUSERVE_ROOT": str(tmp_path)}) == tmp_path / "run" / "control.sock"


def test_a_newer_daemon_is_noticed(daemon: Any) -> None:
    client = daemon.client
    client.status()
    client.daemon_protocol = 2
    assert "this command is older" in client.notice


@pytest.mark.fault(24)
def test_who_may_operate() -> None:
    assert may_operate(Peer(1, 1000, frozenset({1000})), owner_uid=1000, operators=None)
    assert may_operate(Peer(1, 0, frozenset({0})), owner_uid=1000, operators=None)
    assert may_operate(Peer(1, 1001, frozenset({1001, 50})), owner_uid=1000, operators=50)
    assert not may_operate(Peer(1, 1001, frozenset({1001})), owner_uid=1000, operators=50)
    assert not may_operate(Peer(1, 1001, frozenset({50})), owner_uid=1000, operators=None)


def test_the_kernel_says_who_is_there() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        peer = identify(here)
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    assert set(os.getgroups()) <= peer.groups


@pytest.mark.fault(24)
def test_another_user_may_look_but_not_operate(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuserved.control.server.identify", lambda _: Peer(1, 4242, frozenset({4242})))
    assert daemon.client.status()
    assert daemon.client.plan(PlanRequest(name="demo", text="")).fits
    with pytest.raises(errors.Denied, match="4242"):
        daemon.client.reload()
    assert daemon.fleet.calls == []
