"""Rows of the fault table that strike the daemon, its files and its router. Each test has a box of its own."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
from tests.e2e.box import GPUSERVED, Box, Json, kill, until
from tests.e2e.clients import PlainLoad, open_streams
from tests.e2e.texts import RESTART, sim
from tests.faults.table import Measured

PROFILE = sim("tiny", replicas=2, flags={"load_s": 0.2}, tables={"restart": RESTART})


def pids(box: Box) -> dict[str, int]:
    return {row["id"]: row["pid"] for row in box.look()["replicas"]}


def stop_daemon(box: Box) -> None:
    """kill -9; its last word on disk is what it was."""
    supervisor = box.look()["supervisor"]["pid"]
    kill(supervisor)
    until(lambda: not psutil.pid_exists(supervisor), "the supervisor is gone", 60)


STATE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "bit flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "not JSON": lambda path: path.write_bytes(b"\xff\xfe\x00" * 100),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.fault(14)
@pytest.mark.parametrize("damage", STATE_DAMAGES)
def test_damaged_state_costs_no_replica(box: Box, damage: str) -> None:
    """The file is a cache: the copy before it, or the shims, say what runs."""
    box.up({"tiny": PROFILE})
    before = pids(box)
    stop_daemon(box)
    STATE_DAMAGES[damage](box.roots.state / "fleet.json")
    box.up({"tiny": PROFILE})
    assert pids(box) == before


@pytest.mark.fault(14)
def test_state_of_a_newer_version_is_refused_and_nothing_is_touched(box: Box) -> None:
    box.up({"tiny": PROFILE})
    before = pids(box)
    stop_daemon(box)
    path = box.roots.state / "fleet.json"
    kept = path.read_bytes()
    head, _, body = kept.partition(b"\n")
    path.write_bytes(json.dumps(json.loads(head) | {"version": 999}).encode() + b"\n" + body)
    refused = box.run("up", box.write("tiny", PROFILE), "--listen", f"127.0.0.1:{box.port}")
    assert refused.returncode == 2
    assert "newer gpuserve" in refused.stderr
    assert all(psutil.pid_exists(pid) for pid in before.values())
    path.write_bytes(kept)
    box.up({"tiny": PROFILE})
    assert pids(box) == before


def mount(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *options], capture_output=True, text=True, check=False)


@contextlib.contextmanager
def own_disk(folder: Path) -> Iterator[None]:
    """A file system of its own on `folder`; needs the right to mount."""
    folder.mkdir(mode=0o700, parents=True)
    done = mount("-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(folder))
    if done.returncode:
        pytest.skip(f"A BAD DISK IS NOT TESTED: mounting is not permitted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.fault(13)
def test_a_disk_that_takes_no_state(box: Box) -> None:
    """What runs goes on, a start that cannot be recorded does not happen, and all heals by itself. (A merely full disk still
    takes it: the copy before the last one is given up for the new one. So this one takes nothing.)
    """
    with own_disk(box.roots.state):
        box.up({"tiny": PROFILE})
        before = pids(box)
        assert mount("-o", "remount,ro", str(box.roots.state)).returncode == 0
        kill(before["tiny-0"])

        def degraded() -> bool:
            return (box.look()["supervisor"]["degraded"] or "").startswith("state not saved")

        until(degraded, "status says that nothing can be saved", 60)
        with PlainLoad(box.endpoint, "tiny") as load:
            load.reach(10)
        now = pids(box)
        assert now["tiny-1"] == before["tiny-1"]
        assert now["tiny-0"] in {None, before["tiny-0"]}, "a start that nobody could find again"
        assert mount("-o", "remount,rw", str(box.roots.state)).returncode == 0
        box.wait_state("tiny-0", "READY", 60)
        until(lambda: box.look()["supervisor"]["degraded"] is None, "healed", 60)
        box.down()


@pytest.mark.fault(36)
@pytest.mark.parametrize("text", ["[router\n", "[router]\nlisten = 7\n", "[supervisor]\nhang_timeout = 5\n"])
def test_a_broken_file_is_refused_at_reload(box: Box, text: str) -> None:
    """By command and by SIGHUP: the old settings run on, and the message names file and line."""
    config = box.top / "gpuserved.toml"
    config.write_text("[supervisor]\nhang_timeout_s = 100\n", "utf-8")
    profile = box.write("tiny", PROFILE)
    box.ok("up", profile, "--listen", f"127.0.0.1:{box.port}", "--config", str(config))
    before, generation = pids(box), box.look()["generation"]
    config.write_text(text, "utf-8")
    refused = box.run("reload")
    assert refused.returncode == 2
    assert "gpuserved.toml:" in refused.stderr
    os.kill(box.look()["supervisor"]["pid"], signal.SIGHUP)
    until(lambda: "reload refused" in (box.roots.log / "daemon.log").read_text(), "said in the log", 60)
    assert (pids(box), box.look()["generation"]) == (before, generation)


@pytest.mark.fault(34)
def test_a_program_that_cannot_be_started_is_named(box: Box) -> None:
    """A file that looks like a program and is none, as only the kernel finds out."""
    program = box.top / "server"
    program.write_text("#!/no/such/interpreter\n", "utf-8")
    program.chmod(0o755)
    text = (
        'model = "none"\nserved_name = "none"\nengine = "command"\nreplicas = 1\ngpus = []\n'
        f'[command]\nargv = ["{program}", "{{socket}}"]\n[restart]\nbackoff_s = 0.1\n'
    )
    box.run("up", box.write("none", text), "--listen", f"127.0.0.1:{box.port}", "--wait", "5")
    reason = until(lambda: box.replica("none-0")["reason"], "a reason", 60)
    assert "No such file or directory" in reason, reason
    assert list((box.roots.run / "r").glob("*/replica.json")) == []


@pytest.mark.fault(28)
def test_traffic_goes_on_without_a_supervisor(box: Box, measured: Measured) -> None:
    """Nothing is an orphan while a router lives, however short the orphan's time."""
    config = box.top / "gpuserved.toml"
    config.write_text("[supervisor]\norphan_ttl_s = 2\n", "utf-8")
    box.ok("up", box.write("tiny", PROFILE), "--listen", f"127.0.0.1:{box.port}", "--config", str(config))
    before = pids(box)
    stop_daemon(box)
    gone_at = time.monotonic()
    with PlainLoad(box.endpoint, "tiny") as load:
        streams = open_streams(box.endpoint, "tiny", 4, 300)
        assert [s.failure for s in streams.join() if not s.whole] == []
        until(lambda: time.monotonic() > gone_at + 6, "three times the orphan's time", 30)
        load.reach(10)
    measured.failed = len(load.failures)
    assert all(psutil.pid_exists(pid) for pid in before.values())
    box.up({"tiny": PROFILE})
    assert pids(box) == before


@pytest.mark.fault(32)
def test_a_router_out_of_descriptors_serves_what_it_has(box: Box, measured: Measured) -> None:
    box.up({"tiny": PROFILE})
    router = psutil.Process(box.look()["router"]["pids"][0])
    streams = open_streams(box.endpoint, "tiny", 4, 300)
    streams.wait_begun()
    limit = router.num_fds() + 8
    usual = resource.prlimit(router.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(router.pid, resource.RLIMIT_NOFILE, (limit, usual[1]))
    idle = []
    for _ in range(32):
        with contextlib.suppress(OSError):
            idle.append(requests.get(f"{box.endpoint}/health", stream=True, timeout=2))
    assert box.status()["endpoint"] == box.endpoint
    ended = streams.join()
    measured.failed = sum(not stream.whole for stream in ended)
    assert measured.failed == 0, ended
    resource.prlimit(router.pid, resource.RLIMIT_NOFILE, usual)
    for response in idle:
        response.close()
    with PlainLoad(box.endpoint, "tiny") as load:
        load.reach(10)


@pytest.mark.fault(39)
def test_a_long_start_is_waited_for_and_a_stalled_one_is_not(box: Box) -> None:
    """Loading for longer than the limit, with log lines, is progress; silence for the limit is none. The second replica waits for the
    first one all that time, and has not even begun.
    """
    tables = {"health": {"startup_stall_s": 5.0}, "restart": {"budget": 1, "backoff_s": 0.1, "retry_s": 3600}}
    slow = sim("slow", replicas=2, flags={"load_s": 7.0}, tables=tables)
    stalls = sim("stalls", replicas=1, flags={"load_s": 1.0, "slow_start_stall_s": 300.0}, tables=tables)
    paths = [box.write("slow", slow), box.write("stalls", stalls)]
    box.run("up", *paths, "--listen", f"127.0.0.1:{box.port}", "--wait", "1")
    row = until(lambda: _given_up(box, "stalls-0"), "the stalled start is given up", 60)
    assert "progress" in row["reason"], row
    for name in ("slow-0", "slow-1"):
        assert box.wait_state(name, "READY", 60)["restarts"] == 0


def _given_up(box: Box, replica: str) -> Json | None:
    row = box.replica(replica)
    return row if row["state"] in {"BACKOFF", "FAILED"} or row["restarts"] else None


@pytest.mark.fault(44)
def test_the_host_restarts_with_eight_replicas(box: Box, measured: Measured) -> None:
    """Every process ends at once, the files stay: the next daemon starts the same eight anew."""
    profile = sim("eight", replicas=8, flags={"load_s": 0.5, "gpus": 8}, gpus="all")
    begun = time.monotonic()
    box.up({"eight": profile})
    cold_s = time.monotonic() - begun
    before = pids(box)
    everything = [psutil.Process(box.look()["supervisor"]["pid"])]
    everything += [p for row in box.look()["replicas"] for p in box.tree(row["shim_pid"])]
    router = psutil.Process(box.look()["router"]["pids"][0])
    everything += [router, psutil.Process(router.ppid())]
    for process in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(everything, timeout=30)
    begun = time.monotonic()
    daemon = subprocess.Popen(
        [*GPUSERVED, "--listen", f"127.0.0.1:{box.port}"], env=box.env, cwd=box.top,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for name in before:
            until(lambda: box.run("status").returncode == 0, "the daemon is back", 60)
            box.wait_state(name, "READY", 60)
        measured.recover_s = time.monotonic() - begun
        assert not set(pids(box).values()) & set(before.values())
        assert measured.recover_s < 2 * cold_s + 60, (measured.recover_s, cold_s)
    finally:
        box.down()
        daemon.wait(30)
