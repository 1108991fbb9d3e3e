"""Rows of the fault table about what a running replica has in the file system: its socket and its log."""

from __future__ import annotations

import os
import resource
import socket
import stat
from pathlib import Path

import psutil
import pytest
import requests
from tests.e2e.box import Json, until
from tests.e2e.clients import QUESTION, PlainLoad
from tests.e2e.stage import Stage
from tests.e2e.texts import SERVED
from tests.faults.table import Measured


def listening(path: Path) -> set[int]:
    """PIDs that hold the listening Unix socket of this path."""
    lines = Path("/proc/net/unix").read_text("utf-8").splitlines()[1:]
    inodes = {line.split()[6] for line in lines if line.endswith(f" {path}") and line.split()[5] == "01"}
    holders = set()
    for process in psutil.process_iter():
        for fd in Path(f"/proc/{process.pid}/fd").glob("*"):
            try:
                name = os.readlink(fd)
            except OSError:
                continue
            if name.startswith("socket:[") and name[8:-1] in inodes:
                holders.add(process.pid)
    return holders


@pytest.mark.fault(8)
def test_only_its_own_engine_can_answer_for_a_replica(stage: Stage) -> None:
    """A socket in a folder that nobody else can enter; who listens there is of the replica's own tree."""
    stage.both_ready()
    sockets = list((stage.roots.run / "r").glob("*/engine.sock"))
    assert len(sockets) == 2
    trees: list[Json] = stage.look()["replicas"]
    mine = [{process.pid for process in stage.tree(row["shim_pid"])} for row in trees]
    for path in sockets:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert path.parent.stat().st_uid == os.getuid()
        holders = listening(path)
        assert holders, path
        assert any(holders <= tree for tree in mine), (holders, mine)
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(str(path))


@pytest.mark.fault(12)
def test_a_disk_that_takes_no_log_never_blocks_the_replica(stage: Stage, measured: Measured) -> None:
    """RLIMIT_FSIZE on the shim is a real refusal of write(2); lifted, the log says how much is missing."""
    stage.both_ready()
    stage.spoil("tiny-0", log_flood=2000)
    row = stage.replica("tiny-0")
    usual = resource.prlimit(row["shim_pid"], resource.RLIMIT_FSIZE)
    resource.prlimit(row["shim_pid"], resource.RLIMIT_FSIZE, (1, usual[1]))
    try:
        with PlainLoad(stage.endpoint, SERVED) as load:
            load.reach(50)
    finally:
        resource.prlimit(row["shim_pid"], resource.RLIMIT_FSIZE, usual)
    measured.failed, measured.answered = len(load.failures), load.answered

    def said() -> bool:
        body = {"model": SERVED, "messages": QUESTION, "max_tokens": 1}
        assert (
            requests.post(f"{stage.endpoint}/v1/chat/completions", json=body, timeout=60).status_code == 200
        )
        return "bytes dropped" in stage.ok("logs", "tiny-0", "-n", "100000")

    until(said, "the log says how much was dropped", 60)
    assert stage.replica("tiny-0")["pid"] == row["pid"]
    stage.mend()
