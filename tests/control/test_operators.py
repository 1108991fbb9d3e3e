"""Who may reach the control socket and operate, with real sockets and other users' processes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tests.control.conftest import PATIENCE_S, MemoryFleet

from gpuserved.control import peer
from gpuserved.control.server import ControlServer

OPERATORS = 54321
"""A group of no name: the kernel does not mind."""
OTHER = 4242
"""A user of no name."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

CALLER = """
import json, os, sys
path, uid, groups, method, call = json.loads(sys.argv[1])
from http.client import HTTPConnection
import socket
os.setgroups(groups)
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
connection = HTTPConnection("x")
connection.sock = socket.socket(socket.AF_UNIX)
try:
    connection.sock.connect(path)
except OSError as error:
    print(type(error).__name__)
else:
    connection.request(method, call)
    print(connection.getresponse().status)
"""


def call(path: Path, method: str, what: str, *, groups: tuple[int, ...] = (), uid: int = OTHER) -> str:
    """What another user's process is answered: an HTTP status, or why it could not connect."""
    given = json.dumps([str(path), uid, groups, method, what])
    done = subprocess.run(
        [sys.executable, "-c", CALLER, given], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The socket of a system daemon on a host that has the group."""
    monkeypatch.setattr("gpuserved.control.server.operate_gid", lambda: OPERATORS)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    with TemporaryDirectory(prefix="gsc-") as folder:
        path = Path(folder) / "control.sock"

        async def start() -> ControlServer:
            server = ControlServer(MemoryFleet(tmp_path), path, system=True)
            await server.start()
            return server

        server = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
        yield path
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


@needs_root
@pytest.mark.fault(24)
def test_the_operate_group_operates_a_system_daemon(system: Path) -> None:
    found = system.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, OPERATORS)
    assert call(system, "GET", "/v1/status", groups=(OPERATORS,)) == "200"
    assert call(system, "POST", "/v1/reload", groups=(OPERATORS,)) == "200"
    assert call(system, "GET", "/v1/status") == "PermissionError"


@needs_root
@pytest.mark.fault(24)
def test_nobody_but_its_user_reaches_the_socket_of_a_users_daemon(daemon: Any) -> None:
    os.chmod(daemon.path.parent, 0o755)
    assert call(daemon.path, "GET", "/v1/status", groups=(OPERATORS,)) == "PermissionError"
    assert call(daemon.path, "GET", "/v1/status", uid=0) == "200"


@needs_root
@pytest.mark.fault(24)
def test_a_user_who_can_connect_may_look(daemon: Any) -> None:
    """As the owner of a system may arrange it; the kernel says who asks."""
    os.chmod(daemon.path.parent, 0o755)
    os.chmod(daemon.path, 0o666)
    assert call(daemon.path, "GET", "/v1/status") == "200"
    assert call(daemon.path, "HEAD", "/v1/status") == "200"
    assert call(daemon.path, "POST", "/v1/reload") == "403"


@needs_root
def test_the_socket_is_never_open_to_more_than_it_will_be(tmp_path: Path) -> None:
    """Before it listens nobody can connect, whatever its mode and group are."""
    path = tmp_path / "c.sock"
    with peer.bind(path, operators=OPERATORS), socket.socket(socket.AF_UNIX) as early:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with pytest.raises(ConnectionRefusedError):
            early.connect(str(path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) & 0o057 == 0o050


@pytest.mark.parametrize(("operators", "mode"), [(None, 0o600), (OPERATORS, 0o600), (os.getegid(), 0o660)])
def test_an_unprivileged_daemon_shares_its_socket_only_where_it_is_in_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operators: int | None, mode: int
) -> None:
    """Else its own group would get what was meant for the operators."""
    monkeypatch.setattr("os.geteuid", lambda: 987)
    monkeypatch.setattr("os.getgroups", list)
    path = tmp_path / "c.sock"
    with peer.bind(path, operators=operators):
        assert stat.S_IMODE(path.stat().st_mode) == mode


WITH_THE_GROUP = f"""
import grp, sys
class Group: gr_gid = {OPERATORS}
real = grp.getgrnam
grp.getgrnam = lambda name: Group if name == "gpuserve" else real(name)
from gpuserved.app.main import main
sys.exit(main())
"""


@needs_root
@pytest.mark.fault(24)
def test_a_daemon_of_the_host_lets_the_operate_group_operate(tmp_path: Path) -> None:
    """The whole daemon, with the folders a systemd unit is given."""
    with TemporaryDirectory(prefix="gsd-") as top:
        folders = {
            f"{name}_DIRECTORY": f"{top}/{name.lower()}"
            for name in ("RUNTIME", "STATE", "LOGS", "CACHE", "CONFIGURATION")
        }
        os.chmod(top, 0o711)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            **folders,
        }
        process = subprocess.Popen(
            [sys.executable, "-c", WITH_THE_GROUP, "--listen", f"127.0.0.1:{port}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            path = Path(folders["RUNTIME_DIRECTORY"]) / "control.sock"
            deadline = time.monotonic() + PATIENCE_S
            while call(path, "GET", "/v1/version", uid=0) != "200":
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert call(path, "POST", "/v1/reload", groups=(OPERATORS,)) == "200"
            assert call(path, "GET", "/v1/status") == "PermissionError"
            assert call(path, "POST", "/v1/shutdown?drain=0", groups=(OPERATORS,)) == "202"
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            process.communicate()
