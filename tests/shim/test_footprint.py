"""What a shim costs, and that replacing the installed files does not disturb one that runs."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.shim.yard import Connect, WaitUntil, Yard

from gpuserved.host import shimclient
from gpuserved.host import shimclient as sc

REFUSE_IMPORTS = """
class _Refuse:
    def find_spec(self, name, path=None, target=None):
        raise ImportError(f"late import of {name}")
sys.meta_path.insert(0, _Refuse())
"""


def pss_bytes(pid: int) -> int:
    found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


async def test_a_busy_shim_stays_under_12_mb(yard: Yard, connect: Connect) -> None:
    flood = "import sys,time\nfor n in range(40000): print('x'*200)\nprint('', flush=True); time.sleep(600)"
    folder, started = await yard.run(flood)
    clients = [await connect(folder, "supervisor") for _ in range(20)]
    for client in clients:
        await client.hello("router")
    while not (folder / "log" / "1.log.2").exists():
        await asyncio.sleep(0.02)
    assert pss_bytes(started.shim_pid) < 12_000_000


async def test_an_idle_shim_does_not_wake_up(yard: Yard, connect: Connect) -> None:
    """Once its first looks for the engine's shared memory are over: what it does all day, not when it starts."""
    folder, started = await yard.run(orphan_ttl_s=600)
    await (await connect(folder)).hello("cli")

    def wakes() -> int:
        found = re.search(
            r"^voluntary_ctxt_switches:\s+(\d+)",
            Path(f"/proc/{started.shim_pid}/status").read_text(),
            re.MULTILINE,
        )
        assert found is not None
        return int(found[1])

    async def wakes_in_two_seconds() -> int:
        before = wakes()
        await asyncio.sleep(2.0)
        return wakes() - before

    seen: list[int] = []
    while not seen or seen[-1] > 1:
        assert len(seen) < 10, f"it never rests: {seen} wake-ups in periods of two seconds"
        seen.append(await wakes_in_two_seconds())


async def test_a_running_shim_needs_no_file_of_its_package_any_more(
    yard: Yard, connect: Connect, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    package = yard.top / "copy" / "gpuserved"
    shutil.copytree(shimclient.PROGRAM.parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    program = package / "shim" / "__main__.py"
    head, found, tail = program.read_text().partition("if __name__")
    assert found
    program.write_text(head + REFUSE_IMPORTS + found + tail)
    monkeypatch.setattr(shimclient, "PROGRAM", program)
    note = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    folder, _ = await yard.run(note)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        base = yard.spec("import time; time.sleep(600)")
        spec = sc.router_spec(
            name="router", nonce=base["nonce"], folder=Path(base["dir"]), argv=tuple(base["argv"]), env=base["env"],
            cwd="/", log_path=Path(base["dir"]) / "r.log", log_max_bytes=65536, log_keep=1, listen_fd=listener.fileno(),
        )  # fmt: skip
        router = await yard.launch(spec, pass_fds=(listener.fileno(),))
    shutil.rmtree(yard.top / "copy")
    log = folder / "log" / "1.log"
    await wait_until(lambda: b"up" in log.read_bytes(), "the replica runs")
    client = await connect(folder, "supervisor")
    kinds: list[str] = []
    await client.watch(lambda event: kinds.append(event.kind))
    await client.signal(signal.SIGCONT)
    await client.stop(0.2)
    await asyncio.wait_for(client.closed, 30)
    assert kinds == ["dying", "exited"]
    assert (await yard.exit(folder)).cause == "killed"
    assert b"bug" not in log.read_bytes()
    to_router = await connect(Path(str(spec["dir"])))
    (await to_router.listen_fd()).close()
    await to_router.kill()
    while (await to_router.hello("cli")).restarts < 1:
        await asyncio.sleep(0.05)
    await to_router.stop(5)
    await asyncio.wait_for(to_router.closed, 30)
    assert b"bug" not in (Path(str(spec["dir"])) / "r.log").read_bytes()
    assert router.shim_pid


def test_the_shim_imports_the_standard_library_and_itself_alone() -> None:
    code = (
        f"import sys; sys.path.append({str(shimclient.PROGRAM.parents[2])!r})\n"
        "import gpuserved.shim.start\n"
        "own = {m for m in sys.modules if m.startswith('gpuserved') and not m.startswith('gpuserved.shim')}\n"
        "foreign = {m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names - {'gpuserved', '__main__'}\n"
        "heavy = {'typing', 'asyncio', 'subprocess', 'logging', 'dataclasses', 'threading'} & set(sys.modules)\n"
        "print(sorted(own - {'gpuserved'}), sorted(foreign), sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[] [] []\n"
