"""The log: capped, rotated, and never in the replica's way."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import sys
import time
from pathlib import Path

import pytest
from tests.shim.yard import DEADLINE_S, Connect, WaitUntil, Yard

from gpuserved.host import shimclient as sc
from gpuserved.shim.logfile import LogFile

FLOOD = "import sys\nfor n in range(60000): sys.stdout.write(f'line {n:06d} ' + 'x' * 50 + '\\n')"
FLOOD_BYTES = 60000 * (5 + 6 + 1 + 50 + 1)


async def test_a_flood_is_rotated_under_its_cap_and_keeps_the_newest_lines_whole(yard: Yard) -> None:
    spec = yard.spec(FLOOD)
    spec["log"] |= {"max_bytes": 65536, "keep": 3}
    folder = Path(spec["dir"])
    await yard.launch(spec)
    assert (await yard.exit(folder)).info.code == 0
    parts = sorted((folder / "log").iterdir())
    assert [part.name for part in parts] == ["1.log", "1.log.1", "1.log.2", "1.log.3"]
    assert all(part.stat().st_size <= 65536 for part in parts)
    oldest_first = [*reversed(parts[1:]), parts[0]]
    numbers = [
        int(n) for n in re.findall(rb"line (\d{6})", b"".join(part.read_bytes() for part in oldest_first))
    ]
    assert numbers == list(range(numbers[0], 60000))
    assert len(numbers) > 2000


async def test_stdout_and_stderr_keep_their_order(yard: Yard) -> None:
    folder, _ = await yard.run("import os\nfor n in range(200): os.write(1 + n % 2, b'%d\\n' % n)")
    await yard.exit(folder)
    assert [int(line) for line in (folder / "log" / "1.log").read_text().split()] == list(range(200))


@pytest.mark.fault(12)
async def test_a_full_disk_never_blocks_the_replica_and_is_counted(
    yard: Yard, connect: Connect, wait_until: WaitUntil
) -> None:
    spec = yard.spec(FLOOD + "\nprint('', flush=True)\nimport time; time.sleep(600)")
    spec["log"] = {"path": "/dev/full", "max_bytes": 1 << 20, "keep": 1}
    await yard.launch(spec)
    client = await connect(Path(spec["dir"]))
    dropped = 0
    end = time.monotonic() + DEADLINE_S
    while dropped <= FLOOD_BYTES and time.monotonic() < end:
        await asyncio.sleep(0.02)
        dropped = (await client.hello("cli")).log_dropped_bytes
    assert dropped == FLOOD_BYTES + 1


@pytest.mark.fault(12)
async def test_writing_resumes_with_a_marker_when_the_disk_has_room_again(
    yard: Yard, connect: Connect, wait_until: WaitUntil
) -> None:
    # RLIMIT_FSIZE on the running shim is a real refusal of write(2), and can be lifted without any privilege.
    code = (
        "import os,sys,time\n"
        "gate=sys.argv[1]\n"
        "def wait(n):\n"
        "  while not os.path.exists(gate+n): time.sleep(0.01)\n"
        "os.write(1,b'first\\n'); wait('1'); os.write(1,b'y'*50000); wait('2'); os.write(1,b'last\\n')"
    )
    spec = yard.spec()
    folder = Path(spec["dir"])
    spec["argv"] = [sys.executable, "-I", "-S", "-c", code, str(folder / "gate")]
    started = await yard.launch(spec)
    log = folder / "log" / "1.log"
    await wait_until(lambda: log.read_bytes() == b"first\n", "the first line")
    _, hard = resource.prlimit(started.shim_pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    (folder / "gate1").touch()
    client = await connect(folder)
    while (await client.hello("cli")).log_dropped_bytes < 50000 - 4090:
        await asyncio.sleep(0.02)
    resource.prlimit(started.shim_pid, resource.RLIMIT_FSIZE, (hard, hard))
    (folder / "gate2").touch()
    await yard.exit(folder)
    dropped = 50000 - 4090
    assert (
        log.read_bytes()
        == b"first\n" + b"y" * 4090 + f"\n[gpuserve] {dropped} bytes dropped\n".encode() + b"last\n"
    )


async def test_the_log_goes_on_while_nobody_is_connected_and_after_stdout_is_closed(yard: Yard) -> None:
    folder, _ = await yard.run("import os,sys\nprint('a', flush=True)\nos.close(1); os.close(2)\nsys.exit(5)")
    record = await yard.exit(folder)
    assert record.info.code in {5, 120}  # 120: Python could not flush what was closed under it
    assert (folder / "log" / "1.log").read_bytes() == b"a\n"
    assert isinstance(record, sc.ExitRecord)


def test_a_line_longer_than_a_file_is_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "x.log"), 1000, 9)
    log.open()
    log.write(b"a" * 2500 + b"\n" + b"b" * 10)
    log.close()
    parts = [tmp_path / "x.log.2", tmp_path / "x.log.1", tmp_path / "x.log"]
    assert b"".join(part.read_bytes() for part in parts) == b"a" * 2500 + b"\n" + b"b" * 10
    assert all(part.stat().st_size <= 1000 for part in parts)


def test_without_room_for_old_parts_the_file_is_emptied(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "x.log"), 1000, 0)
    log.open()
    for number in range(500):
        log.write(b"%06d\n" % number)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.log"]
    assert (tmp_path / "x.log").stat().st_size <= 1000
    assert (tmp_path / "x.log").read_bytes().endswith(b"000499\n")


def test_where_renaming_fails_the_cap_still_holds(tmp_path: Path) -> None:
    (tmp_path / "x.log.1").mkdir()
    (tmp_path / "x.log.1" / "in the way").touch()
    log = LogFile(str(tmp_path / "x.log"), 1000, 1)
    log.open()
    for number in range(500):
        log.write(b"%06d\n" % number)
    log.close()
    assert (tmp_path / "x.log").stat().st_size <= 1000
    assert (tmp_path / "x.log").read_bytes().endswith(b"000499\n")


def test_a_log_is_continued_where_it_was_and_a_link_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"before\n")
    log = LogFile(str(path), 1000, 1)
    log.open()
    log.write(b"after\n")
    log.close()
    assert path.read_bytes() == b"before\nafter\n"
    link = tmp_path / "link.log"
    link.symlink_to(path)
    linked = LogFile(str(link), 1000, 1)
    linked.write(b"never\n")
    assert linked.dropped_bytes == 6
    assert os.path.getsize(path) == 13
