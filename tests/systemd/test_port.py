"""The public port in systemd's file descriptor store: it stays open while the daemon and all routers are dead at once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.e2e.box import Json, until
from tests.faults.table import Measured
from tests.systemd.container import GPUSERVE, Container
from tests.systemd.service import ask, pids, serving, show, status

pytestmark = pytest.mark.timeout(240)
WAITING = 40
ARMED = "/run/systemd/system/gpuserved.service.d/armed.conf"
CONFIG = "/etc/gpuserve/gpuserved.toml"


def stored(systemd: Container) -> str:
    return show(systemd, "gpuserved", "NFileDescriptorStore")


def control_plane(found: Json) -> list[str]:
    """The daemon, the routers' shims, the routers."""
    rows = found["router"]["processes"]
    told = [found["supervisor"]["pid"], *(row["shim_pid"] for row in rows), *(row["pid"] for row in rows)]
    return [str(pid) for pid in told]


def kill_all(systemd: Container, found: Json) -> None:
    """kill -9, daemon first: no router's shim is started again before all are gone. A router may go with its shim, before its turn."""
    systemd.run("kill", "-KILL", *control_plane(found), check=False)


@contextlib.contextmanager
def clients(systemd: Container, found: Json) -> Iterator[dict[str, int]]:
    """Connections that no router has taken when the block begins, and more while it runs; how all of them ended, once it has."""
    systemd.run("kill", "-STOP", *(str(row["pid"]) for row in found["router"]["processes"]))
    program = systemd.beside(
        sys.executable, "-m", "tests.systemd.waiting", "8000", "tiny", str(WAITING),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert program.stdout is not None
    ended: dict[str, int] = {}
    try:
        assert program.stdout.readline() == "waiting\n", program.communicate(timeout=60)[1]
        yield ended
        said, complaints = program.communicate(timeout=150)
        assert program.returncode == 0, (complaints, systemd.journal())
        ended.update(json.loads(said))
    finally:
        program.kill()
        program.wait(10)


def restarted(systemd: Container, before: int) -> None:
    """Once more than `before`."""
    until(
        lambda: int(show(systemd, "gpuserved", "NRestarts")) > before,
        f"systemd starts the daemon; {systemd.journal()}",
        60,
        every_s=0.1,
    )


@pytest.mark.fault(26)
def test_connections_wait_while_daemon_and_routers_are_dead(alone: Container, measured: Measured) -> None:
    """All die at once, under an upgraded daemon, and those that systemd starts next die before they have a router."""
    first = serving(alone)
    assert stored(alone) == "1"
    alone.run(GPUSERVE, "upgrade", "--force", timeout_s=120)
    before = serving(alone)
    assert stored(alone) == "1", "the successor's port is the one that is stored"
    restarts = int(show(alone, "gpuserved", "NRestarts"))
    alone.write(ARMED, "[Service]\nRestartSec=100ms\nEnvironment=GPUSERVE_FAILPOINT=router.stored\n")
    alone.run("systemctl", "daemon-reload")
    with clients(alone, before) as ended:
        kill_all(alone, before)
        restarted(alone, restarts + 1)
        assert status(alone) is None
        alone.run("rm", ARMED)
        alone.run("systemctl", "daemon-reload")
        after = serving(alone)
    measured.answered = ended.pop("200")
    measured.failed = sum(ended.values())
    assert ended == {}
    assert measured.answered > WAITING
    assert not set(control_plane(after)) & {*control_plane(first), *control_plane(before)}
    assert pids(after) == pids(first)
    assert stored(alone) == "1"
    assert "comes back from systemd's store" in alone.run("journalctl", "--unit=gpuserved", "--no-pager")


def test_a_port_that_is_not_the_configured_one_any_more_is_let_go(alone: Container) -> None:
    before = serving(alone)
    restarts = int(show(alone, "gpuserved", "NRestarts"))
    alone.write(CONFIG, '[router]\nlisten = "127.0.0.1:8001"\n')
    kill_all(alone, before)
    restarted(alone, restarts)
    after = serving(alone)
    assert (before["endpoint"], after["endpoint"]) == ("http://127.0.0.1:8000", "http://127.0.0.1:8001")
    assert pids(after) == pids(before)
    assert listeners(alone) == {"8001"}
    assert stored(alone) == "1"
    assert ask(alone, after["endpoint"]) == 200


def test_a_stop_lets_go_of_the_port_and_so_does_down(alone: Container) -> None:
    serving(alone)
    alone.run("systemctl", "stop", "gpuserved", timeout_s=120)
    assert (stored(alone), listeners(alone)) == ("0", set())
    alone.run("systemctl", "start", "gpuserved")
    serving(alone)
    assert stored(alone) == "1"
    alone.run(GPUSERVE, "down", "--yes")
    assert listeners(alone) == set(), "when `down` returns, not some time later"
    until(lambda: show(alone, "gpuserved", "ActiveState") == "inactive", "inactive", 60)
    assert stored(alone) == "0"


def listeners(systemd: Container) -> set[str]:
    """Which of the two ports of these tests somebody listens on."""
    lines = systemd.run("cat", "/proc/net/tcp").splitlines()[1:]
    rows = [line.split() for line in lines]
    ports = {str(int(row[1].rpartition(":")[2], 16)) for row in rows if row[3] == "0A"}
    return ports & {"8000", "8001"}
