"""How a replica ends: what is recorded, who is told, and that nothing of its tree remains."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.shim.yard import Connect, IsAlive, WaitUntil, Yard

from gpuserved.host import shimclient as sc
from gpuserved.host.sweep import Sweep, marked_by

# Starts a process that leaves the session by a double fork, ignores SIGTERM, and holds the log pipe open.
ESCAPES = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[1], "w").write(str(os.getpid()) + "\\n")
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep(600)
"""


def escaping(spec: dict[str, object], note: Path) -> dict[str, object]:
    return spec | {"argv": [sys.executable, "-I", "-S", "-c", ESCAPES, str(note)]}


def written_pid(note: Path) -> int | None:
    text = note.read_text() if note.exists() else ""
    return int(text) if text.endswith("\n") else None


async def test_an_exit_code_is_recorded(yard: Yard) -> None:
    folder, started = await yard.run("import sys; sys.exit(42)")
    before = time.time()
    record = await yard.exit(folder)
    assert (record.info.code, record.info.signal, record.cause) == (42, None, "exited")
    assert abs(record.info.at - before) < 30
    identity = sc.read_identity(folder)
    assert identity is not None
    assert (identity.pid, identity.shim_pid) == (started.pid, started.shim_pid)


async def test_a_signal_is_recorded(yard: Yard) -> None:
    folder, started = await yard.run()
    os.kill(started.pid, signal.SIGSEGV)
    record = await yard.exit(folder)
    assert (record.info.code, record.info.signal, record.cause) == (None, signal.SIGSEGV, "exited")


async def test_watchers_hear_dying_then_exited_then_the_end_with_the_record_on_disk(
    yard: Yard, connect: Connect, wait_until: WaitUntil
) -> None:
    folder, started = await yard.run()
    watcher = await connect(folder, "supervisor")
    events: list[tuple[str, bool]] = []
    await watcher.watch(lambda event: events.append((event.kind, (folder / "exit.json").exists())))
    os.kill(started.pid, signal.SIGKILL)
    await asyncio.wait_for(watcher.closed, 30)
    assert [kind for kind, _ in events] == ["dying", "exited"]
    assert events[1][1]
    record = sc.read_exit(folder)
    assert record is not None
    assert record.info.signal == signal.SIGKILL
    await wait_until(lambda: not (folder / "shim.sock").exists(), "the socket is removed")


async def test_killing_the_api_process_takes_an_escaped_grandchild_with_it(
    yard: Yard, is_alive: IsAlive, wait_until: WaitUntil
) -> None:
    spec = yard.spec()
    folder = Path(spec["dir"])
    note = folder / "escaped.pid"
    started = await yard.launch(escaping(spec, note))
    escaped = await wait_until(lambda: written_pid(note), "the grandchild runs")
    assert os.getsid(escaped) not in {os.getsid(0), os.getsid(started.pid)}
    os.kill(started.pid, signal.SIGKILL)
    await yard.exit(folder)
    assert not is_alive(escaped)
    assert marked_by(spec["nonce"]) == {}
    await wait_until(lambda: not is_alive(started.shim_pid), "the shim ends")


async def test_kill_ends_a_stopped_tree_and_says_killed(
    yard: Yard, connect: Connect, wait_until: WaitUntil, is_alive: IsAlive
) -> None:
    spec = yard.spec()
    folder = Path(spec["dir"])
    note = folder / "escaped.pid"
    started = await yard.launch(escaping(spec, note))
    escaped = await wait_until(lambda: written_pid(note), "the grandchild runs")
    os.kill(started.pid, signal.SIGSTOP)
    os.kill(escaped, signal.SIGSTOP)
    client = await connect(folder)
    await client.kill()
    record = await yard.exit(folder)
    assert (record.info.signal, record.cause) == (signal.SIGKILL, "killed")
    assert not is_alive(started.pid)
    assert not is_alive(escaped)


async def test_stop_is_graceful_where_the_process_obeys(yard: Yard, connect: Connect) -> None:
    code = "import signal,sys,time; signal.signal(15, lambda *_: sys.exit(7)); print('up'); time.sleep(600)"
    folder, _started = await yard.run(code)
    await _printed(folder, b"up")
    client = await connect(folder)
    await client.stop(30)
    record = await yard.exit(folder)
    assert (record.info.code, record.cause) == (7, "exited")


async def test_stop_kills_after_the_grace_period(yard: Yard, connect: Connect) -> None:
    folder, _started = await yard.run(
        "import signal,time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)"
    )
    await _printed(folder, b"up")
    client = await connect(folder)
    began = time.monotonic()
    await client.stop(0.5)
    record = await yard.exit(folder)
    assert time.monotonic() - began >= 0.5
    assert (record.info.signal, record.cause) == (signal.SIGKILL, "killed")
    assert b"[gpuserve] still running after its grace period" in (folder / "log" / "1.log").read_bytes()


async def test_sigterm_to_the_shim_stops_its_replica_and_other_signals_do_not(
    yard: Yard, connect: Connect, is_alive: IsAlive, wait_until: WaitUntil
) -> None:
    folder, started = await yard.run()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGPIPE):
        os.kill(started.shim_pid, number)
    client = await connect(folder)
    assert (await client.hello("cli")).running
    os.kill(started.shim_pid, signal.SIGTERM)
    record = await yard.exit(folder)
    assert record.info.signal == signal.SIGTERM
    await wait_until(lambda: not is_alive(started.shim_pid), "the shim ends")


async def test_a_storm_of_children_does_not_confuse_the_record(yard: Yard) -> None:
    code = "import os\nfor _ in range(300):\n  if os.fork()==0:\n    os.setsid()\n    os._exit(1) if os.fork() else os._exit(3)\nos._exit(9)"
    folder, _ = await yard.run(code)
    assert (await yard.exit(folder)).info.code == 9


async def test_a_killed_shim_takes_the_api_process_and_the_sweep_by_nonce_the_rest(
    yard: Yard, is_alive: IsAlive, wait_until: WaitUntil
) -> None:
    spec = yard.spec()
    folder = Path(spec["dir"])
    note = folder / "escaped.pid"
    started = await yard.launch(escaping(spec, note))
    escaped = await wait_until(lambda: written_pid(note), "the grandchild runs")
    identity = sc.read_identity(folder)
    assert identity is not None
    assert identity.shim_lives()
    os.kill(started.shim_pid, signal.SIGKILL)
    await wait_until(lambda: not is_alive(started.pid), "PDEATHSIG ends the API process")
    assert not identity.shim_lives()
    assert not identity.process_lives()
    assert is_alive(escaped)
    assert escaped in Sweep(spec["nonce"]).strike()
    await wait_until(lambda: not is_alive(escaped), "the sweep ends the rest")
    assert Sweep(spec["nonce"]).strike() == []
    assert sc.read_exit(folder) is None


@pytest.mark.parametrize("outside", [False, True])
async def test_shared_memory_goes_with_the_tree_unless_somebody_else_maps_it(
    yard: Yard, wait_until: WaitUntil, outside: bool
) -> None:
    name = f"psm_gs{os.getpid():x}{int(outside)}"
    keep = f"/dev/shm/gs-model-{os.getpid():x}"
    code = (
        "import mmap,os,time\n"
        f"for p in ('/dev/shm/{name}', '{keep}'):\n"
        "  fd=os.open(p, os.O_RDWR|os.O_CREAT, 0o600); os.ftruncate(fd,4096)\n"
        "  globals()[p]=mmap.mmap(fd,4096)\n"
        "if os.fork()==0: time.sleep(600)\n"
        "print('mapped'); time.sleep(600)"
    )
    folder, started = await yard.run(code)
    await _printed(folder, b"mapped")
    path = Path("/dev/shm") / name
    held = None
    try:
        if outside:
            import mmap

            with path.open("r+b") as opened:
                held = mmap.mmap(opened.fileno(), 4096)
        os.kill(started.pid, signal.SIGKILL)  # its child still maps both when the scan looks
        await yard.exit(folder)
        assert path.exists() is outside
        assert Path(keep).exists(), "a file that is no throw-away segment was removed"
    finally:
        if held is not None:
            held.close()
        path.unlink(missing_ok=True)
        Path(keep).unlink(missing_ok=True)


@pytest.mark.fault(30)
async def test_the_sweep_removes_the_shared_memory_of_a_tree_whose_shim_was_killed(
    yard: Yard, wait_until: WaitUntil
) -> None:
    """The shim would have removed it; nobody else knows of it once its last process is gone."""
    path = Path(f"/dev/shm/psm_gsk{os.getpid():x}")
    code = (
        "import mmap,os,time\n"
        f"fd=os.open('{path}', os.O_RDWR|os.O_CREAT, 0o600); os.ftruncate(fd,4096); m=mmap.mmap(fd,4096)\n"
        "if os.fork()==0: os.setsid(); time.sleep(600)\n"  # it prints nothing: nobody reads that once the shim is gone
        "print('mapped'); time.sleep(600)"
    )
    spec = yard.spec(code)
    started = await yard.launch(spec)
    await _printed(Path(spec["dir"]), b"mapped")
    os.kill(started.shim_pid, signal.SIGKILL)
    sweep = Sweep(spec["nonce"])
    try:
        assert sweep.strike()
        await wait_until(lambda: not sweep.alive(), "nothing of it lives")
        assert sweep.finish() == 1
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)


async def _printed(folder: Path, text: bytes) -> None:
    log = folder / "log" / "1.log"
    for _ in range(1500):
        if text in log.read_bytes():
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"the log never held {text!r}: {log.read_bytes()!r}")
