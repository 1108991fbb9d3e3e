"""The installed units under a real systemd: what start, restart, stop, a crash and a hang of the daemon do to replicas and clients."""

from __future__ import annotations

import pytest
from tests.e2e.box import until
from tests.systemd.container import GPUSERVE, Container
from tests.systemd.service import ask, load, pids, serving, show, status

pytestmark = pytest.mark.timeout(240)


def test_a_start_returns_once_the_daemon_serves(systemd: Container) -> None:
    """Type=notify: READY=1 is sent when the control socket answers, and not before."""
    systemd.run("systemctl", "restart", "gpuserved")
    assert show(systemd, "gpuserved", "ActiveState") == "active"
    assert status(systemd) is not None
    assert show(systemd, "gpuserved", "User") == "gpuserve"


def test_the_operate_group_may_reach_the_control_socket(systemd: Container) -> None:
    found = systemd.run("stat", "-c", "%a %G", "/run/gpuserve", "/run/gpuserve/control.sock")
    assert found.split("\n")[:2] == ["750 gpuserve", "660 gpuserve"]


def test_a_restart_keeps_replicas_requests_and_streams(systemd: Container) -> None:
    before = serving(systemd)
    with load(systemd):
        systemd.run("systemctl", "restart", "gpuserved")
        after = serving(systemd)
    assert after["supervisor"]["pid"] != before["supervisor"]["pid"]
    assert pids(after) == pids(before)
    assert after["router"]["pids"] == before["router"]["pids"]


def test_a_killed_daemon_comes_back_and_adopts(systemd: Container) -> None:
    before = serving(systemd)
    with load(systemd):
        systemd.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "gpuserved")
        until(lambda: show(systemd, "gpuserved", "NRestarts") != "0", "systemd restarted it", 60)
        after = serving(systemd)
    assert pids(after) == pids(before)


@pytest.mark.fault(45)
def test_an_upgrade_names_the_new_daemon_to_systemd(systemd: Container) -> None:
    """The daemon's successor is its child and not systemd's: MAINPID= makes it the one that is watched and restarted."""
    before = serving(systemd)
    with load(systemd):
        systemd.run(GPUSERVE, "upgrade", "--force", timeout_s=120)
        after = serving(systemd)
    main = str(after["supervisor"]["pid"])
    assert main != str(before["supervisor"]["pid"])
    assert show(systemd, "gpuserved", "MainPID") == main
    assert show(systemd, "gpuserved", "ActiveState") == "active"
    assert pids(after) == pids(before)
    assert not set(after["router"]["pids"]) & set(before["router"]["pids"])
    restarts = show(systemd, "gpuserved", "NRestarts")
    systemd.run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "gpuserved")
    until(lambda: show(systemd, "gpuserved", "NRestarts") != restarts, "systemd saw the new one die", 60)
    assert pids(serving(systemd)) == pids(before)


@pytest.mark.fault(27)
def test_a_daemon_that_dies_in_an_upgrade_leaves_one_that_systemd_knows(systemd: Container) -> None:
    """Its successor serves already, and systemd, which does not know of it, starts another: one of the two must go."""
    armed = "/run/systemd/system/gpuserved.service.d/armed.conf"
    systemd.write(armed, "[Service]\nEnvironment=GPUSERVE_FAILPOINT=upgrade.answered\n")
    systemd.run("systemctl", "daemon-reload")
    systemd.run("systemctl", "restart", "gpuserved")
    before = serving(systemd)
    main = show(systemd, "gpuserved", "MainPID")

    def one_is_left() -> bool:
        now = show(systemd, "gpuserved", "MainPID")
        found = status(systemd)
        return found is not None and now not in {"0", main} and str(found["supervisor"]["pid"]) == now

    with load(systemd):
        systemd.run(GPUSERVE, "upgrade", "--force", "--wait", "30", check=False, timeout_s=60)
        until(one_is_left, f"the daemon that serves is systemd's; {systemd.journal()}", 60, every_s=0.2)
        after = serving(systemd)
    systemd.run("rm", armed)
    systemd.run("systemctl", "daemon-reload")
    assert systemd.run("pgrep", "--full", "gpuserved.app.main", check=False) == "", "the successor has ended"
    assert pids(after) == pids(before)
    assert "died in the middle of the upgrade" in systemd.run("journalctl", "--unit=gpuserved", "--no-pager")


@pytest.mark.fault(38)
def test_a_stopped_daemon_is_replaced_by_the_watchdog(systemd: Container) -> None:
    before = serving(systemd)
    with load(systemd):
        systemd.run("kill", "-STOP", str(before["supervisor"]["pid"]))
        main = str(before["supervisor"]["pid"])
        until(
            lambda: show(systemd, "gpuserved", "MainPID") not in {"0", main},
            "another daemon",
            60,
            every_s=0.2,
        )
        after = serving(systemd)
    assert "watchdog" in systemd.run("journalctl", "--unit=gpuserved", "--no-pager").lower()
    assert pids(after) == pids(before)


def test_a_stop_drains_and_stops_and_the_next_start_serves_the_same(systemd: Container) -> None:
    before = serving(systemd)
    with load(systemd, "streams"):
        # The socket too: a request that comes in would start the service again.
        stop = systemd.start("systemctl", "stop", "gpuserved.socket", "gpuserved.service")
        until(lambda: status(systemd) is None, "the control socket is gone", 60, every_s=0.2)
    assert stop.wait(60) == 0
    assert show(systemd, "gpuserved", "ActiveState") == "inactive", systemd.journal()
    assert systemd.run("pgrep", "--uid", "gpuserve", "--list-full", check=False) == "", "a process is left"
    systemd.run("systemctl", "start", "gpuserved.socket")
    systemd.run("systemctl", "start", "gpuserved.service")
    after = serving(systemd)
    assert pids(after).keys() == pids(before).keys()
    assert not set(pids(after).values()) & set(pids(before).values())
    assert ask(systemd) == 200


def test_a_request_starts_the_service_and_is_answered(systemd: Container) -> None:
    """Socket activation: systemd holds the address, and the first connection waits for the daemon and its replicas."""
    serving(systemd)
    systemd.run("systemctl", "stop", "gpuserved.service", timeout_s=120)
    assert show(systemd, "gpuserved", "ActiveState") == "inactive"
    assert show(systemd, "gpuserved.socket", "ActiveState") == "active"
    assert ask(systemd) == 200
    assert show(systemd, "gpuserved", "ActiveState") == "active"


def test_down_is_final(systemd: Container) -> None:
    """Exit code 0 is not restarted, and nothing that was applied comes back."""
    serving(systemd)
    systemd.run("systemctl", "stop", "gpuserved.socket")
    systemd.run(GPUSERVE, "down", "--yes")
    until(lambda: show(systemd, "gpuserved", "ActiveState") == "inactive", "inactive", 60)
    systemd.run("systemctl", "start", "gpuserved")
    found = status(systemd)
    assert found is not None
    assert found["replicas"] == []
