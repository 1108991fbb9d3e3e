"""Starting: what a replica is given, and that a failed start says why and leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.shim.yard import Connect, IsAlive, WaitUntil, Yard

from gpuserved.host import shimclient
from gpuserved.host import shimclient as sc
from gpuserved.host.sweep import marked_by

REPORT = """
import json, os, signal, sys
report = {
  "fds": sorted(int(n) for n in os.listdir("/proc/self/fd")),
  "links": {n: os.readlink("/proc/self/fd/" + n) for n in ("0", "1", "2")},
  "session": os.getsid(0) == os.getpid(),
  "env": dict(os.environ), "cwd": os.getcwd(), "umask": os.umask(0),
  "signals": [l for l in open("/proc/self/status") if l.startswith(("SigIgn", "SigBlk"))],
  "oom": int(open("/proc/self/oom_score_adj").read()),
}
sys.stderr.write(json.dumps(report) + "\\n")
"""


async def reported(yard: Yard, folder: Path) -> dict[str, Any]:
    await yard.exit(folder)
    report: dict[str, Any] = json.loads((folder / "log" / "1.log").read_text())
    return report


async def test_the_child_gets_a_clean_stage(yard: Yard) -> None:
    leaked = socket.socket()
    leaked.set_inheritable(True)
    umask = os.umask(0o022)
    try:
        folder, _ = await yard.run(REPORT, env={"PATH": os.environ["PATH"], "SECRET": "s"}, cwd="/usr")
        report = await reported(yard, folder)
    finally:
        os.umask(umask)
        leaked.close()
    assert report["fds"][:3] == [0, 1, 2]
    assert len(report["fds"]) <= 4  # and the listing's own
    assert report["links"]["0"] == "/dev/null"
    assert report["links"]["1"] == report["links"]["2"]
    assert report["links"]["1"].startswith("pipe:")
    assert report["session"]
    assert report["cwd"] == "/usr"
    assert report["umask"] == 0o022
    assert {"PATH", "SECRET", "GPUSERVE_NONCE", "SPT_NOENV"} <= set(report["env"])
    assert report["env"]["GPUSERVE_NONCE"] == folder.name
    assert "HOME" not in report["env"]
    # SIGPIPE and SIGXFSZ are ignored by that Python itself; 32 and 33 are the C library's, out of anybody's reach.
    ignored = next(int(line.split()[1], 16) for line in report["signals"] if line.startswith("SigIgn"))
    ours = sum(1 << number - 1 for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ})
    assert ignored & ours == 0
    assert next(int(line.split()[1], 16) for line in report["signals"] if line.startswith("SigBlk")) == 0


async def test_a_protected_shim_does_not_protect_its_replica(yard: Yard) -> None:
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    try:
        own.write_text("-100")
    except OSError:  # only root may; the next assertion then holds trivially for the inherited value
        pass
    try:
        folder, _ = await yard.run(REPORT)
        report = await reported(yard, folder)
    finally:
        own.write_text(before)
    assert report["oom"] == max(0, int(before))


@pytest.mark.fault(8)
async def test_files_and_socket_are_private(yard: Yard) -> None:
    folder, _ = await yard.run()
    for name in ("shim.sock", "replica.json", "log/1.log"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


@pytest.mark.parametrize(
    ("argv", "number", "words"),
    [
        (["/no/such/program"], errno.ENOENT, "cannot run /no/such/program: No such file"),
        (["no-such-program-anywhere"], errno.ENOENT, "cannot run no-such-program-anywhere"),
        (["/etc/passwd"], errno.EACCES, "Permission denied"),
        (["/bin/true", "x" * 200_000], errno.E2BIG, "too long"),
    ],
)
async def test_a_program_that_cannot_run_is_reported_and_nothing_is_left(
    yard: Yard, argv: list[str], number: int, words: str
) -> None:
    spec = yard.spec(argv=argv)
    with pytest.raises(sc.ShimError, match=words) as caught:
        await yard.launch(spec)
    assert caught.value.errno == number
    left = [str(path) for path in Path(spec["dir"]).rglob("*") if not path.is_dir()]
    assert left == []
    assert marked_by(spec["nonce"]) == {}


async def test_a_missing_working_folder_is_named(yard: Yard) -> None:
    with pytest.raises(sc.ShimError, match="cannot enter the folder /no/such/folder"):
        await yard.launch(yard.spec(cwd="/no/such/folder"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"v": 2}, "v: this shim speaks version 1"),
        ({"role": "manager"}, "role: 'manager' is neither"),
        ({"argv": []}, "argv: a list that names a program"),
        ({"env": {"A": 1}}, "env: 'A' is no variable"),
        ({"dir": "relative"}, "dir: 'relative' is not an absolute path"),
        ({"orphan_ttl_s": -1}, "orphan_ttl_s: seconds"),
        ({"log": None}, "log: an object"),
        ({"role": "router", "listen_fd": 1}, "listen_fd: a whole number from 3"),
    ],
)
async def test_a_bad_spec_is_refused_by_key(yard: Yard, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(sc.ShimError, match=words):
        await yard.launch(yard.spec(**changes))


@pytest.mark.fault(8)
async def test_a_folder_that_others_may_write_is_refused(yard: Yard) -> None:
    spec = yard.spec()
    Path(spec["dir"]).chmod(0o777)
    with pytest.raises(sc.ShimError, match="others may write there"):
        await yard.launch(spec)


async def test_one_shim_to_a_folder(yard: Yard, connect: Connect) -> None:
    spec = yard.spec()
    started = await yard.launch(spec)
    with pytest.raises(sc.ShimError, match="another shim runs there"):
        await yard.launch(spec)
    assert (await (await connect(Path(spec["dir"]))).hello("cli")).pid == started.pid


@pytest.mark.fault(7)
async def test_a_socket_left_by_a_killed_shim_is_in_nobodys_way(
    yard: Yard, connect: Connect, wait_until: WaitUntil, is_alive: IsAlive
) -> None:
    spec = yard.spec()
    first = await yard.launch(spec)
    os.kill(first.shim_pid, signal.SIGKILL)
    await wait_until(lambda: not is_alive(first.pid) and not is_alive(first.shim_pid), "the shim is gone")
    with pytest.raises(sc.ShimError, match="no shim answers") as caught:
        await connect(Path(spec["dir"]))
    assert caught.value.errno == errno.ECONNREFUSED
    second = await yard.launch(spec)
    assert (await (await connect(Path(spec["dir"]))).hello("cli")).pid == second.pid


async def test_a_log_that_cannot_be_made_is_named(yard: Yard) -> None:
    spec = yard.spec()
    (Path(spec["dir"]) / "log").write_text("in the way")
    with pytest.raises(sc.ShimError, match="log") as caught:
        await yard.launch(spec)
    assert caught.value.errno in {errno.EEXIST, errno.ENOTDIR}


async def test_the_launcher_may_die_before_it_reads_the_answer(
    yard: Yard, connect: Connect, wait_until: WaitUntil
) -> None:
    spec = yard.spec()
    folder = Path(spec["dir"])
    hasty = (
        "import os,subprocess,sys\n"
        "p=subprocess.Popen([sys.executable,'-I','-S',sys.argv[1]],stdin=subprocess.PIPE,stdout=subprocess.PIPE)\n"
        "p.stdin.write(sys.stdin.buffer.read()); p.stdin.flush(); os.kill(os.getpid(), 9)\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", hasty, str(shimclient.PROGRAM)],
        input=json.dumps(spec).encode(),
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    identity = await wait_until(lambda: sc.read_identity(folder), "the shim starts its replica all the same")
    yard.shims.append(identity.shim_pid)
    hello = await (await connect(folder)).hello("supervisor")
    assert (hello.pid, hello.shim_pid, hello.running) == (identity.pid, identity.shim_pid, True)


async def test_no_secret_is_in_argv_or_on_disk(yard: Yard) -> None:
    secret = "hf_0123456789secret"
    folder, started = await yard.run(env={"PATH": os.environ["PATH"], "HF_TOKEN": secret})
    assert secret.encode() not in Path(f"/proc/{started.shim_pid}/cmdline").read_bytes()
    assert secret.encode() not in Path(f"/proc/{started.shim_pid}/environ").read_bytes()
    for path in folder.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def delegated_cgroup() -> Path | None:
    """A cgroup (version 2) folder in which this user may make another."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            probe = Path(fields.split()[4]) / f"gs-test-{os.getpid()}"
            try:
                probe.mkdir()
                (probe / "cgroup.procs").write_text(str(subprocess_sleeping(probe)))
            except OSError:
                if probe.exists():
                    probe.rmdir()
                continue
            return probe
    return None


def subprocess_sleeping(_: Path) -> int:
    """A process that is no descendant of any shim; it joins the cgroup to be killed with it."""
    STRANGERS.append(subprocess.Popen(["sleep", "600"]))
    return STRANGERS[-1].pid


STRANGERS: list[subprocess.Popen[bytes]] = []


async def test_a_cgroup_is_killed_whole_and_one_that_is_none_is_refused(
    yard: Yard, wait_until: WaitUntil
) -> None:
    with pytest.raises(sc.ShimError, match="cannot enter the cgroup"):
        await yard.launch(yard.spec(cgroup=str(yard.top / "not-a-cgroup")))
    group = await asyncio.to_thread(delegated_cgroup)
    try:
        if group is None:  # a host that lends no cgroup: the refusal above is all there is to see
            return
        folder, started = await yard.run(cgroup=str(group))
        assert str(started.pid) in (group / "cgroup.procs").read_text().split()
        assert str(started.shim_pid) not in (group / "cgroup.procs").read_text().split()
        os.kill(started.pid, signal.SIGKILL)
        await yard.exit(folder)
        assert await asyncio.to_thread(STRANGERS[-1].wait, 30) == -signal.SIGKILL
        await wait_until(lambda: not group.exists(), "the shim removes it once it has recorded the end")
    finally:
        for stranger in STRANGERS:
            stranger.kill()
            stranger.wait()
        if group is not None and group.exists():
            group.rmdir()
