"""The list of GPUs that are set aside, and its file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.fleet.conftest import World

from gpuserved.api.errors import Invalid
from gpuserved.api.types import GpuView
from gpuserved.fleet.quarantine import HELD, OPERATOR, SCHEMA, Quarantine
from gpuserved.host import statefile

GPU = GpuView(index=3, uuid="GPU-aa", name="H100")


def loaded(path: Path) -> Quarantine:
    def save() -> None:
        statefile.save(path, msgspec.to_builtins(quarantine.content()), version=SCHEMA)

    quarantine = Quarantine(path, save)
    quarantine.load()
    return quarantine


def test_it_survives_the_daemon_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    quarantine = loaded(path)
    assert (quarantine.of, quarantine.problem) == ({}, None)
    quarantine.set_aside(GPU, "reset", "Xid 95 (uncontained memory error)")
    (shown, other) = loaded(path).shown([GPU, GpuView(index=4, uuid="GPU-bb", name="H100")])
    assert (shown.state, other.state, other.reason) == ("QUARANTINED", "OK", None)
    assert shown.reason is not None
    assert "nvidia-smi --gpu-reset -i 3" in shown.reason
    assert "then gpuserve release 3" in shown.reason
    assert loaded(path).blocked() == {"GPU-aa": "quarantined: Xid 95 (uncontained memory error)"}


def test_saying_it_anew_keeps_its_time_and_a_lost_gpu_stays_lost(tmp_path: Path) -> None:
    quarantine = loaded(tmp_path / "gpus.json")
    quarantine.set_aside(GPU, OPERATOR, "fan is loud")
    since = quarantine.of["GPU-aa"].since
    quarantine.set_aside(GPU, OPERATOR, "ticket 812")
    assert (quarantine.of["GPU-aa"].since, quarantine.of["GPU-aa"].explain()) == (since, "ticket 812")
    (shown,) = quarantine.shown([GpuView(index=3, uuid="GPU-aa", name="H100", state="LOST")])
    assert (shown.state, shown.reason) == ("LOST", "ticket 812")


def test_what_holds_it_is_kept_by_pid_and_start(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    loaded(path).set_aside(GPU, HELD, "PID 12 of an earlier start still holds its memory", [(12, 99)])
    assert loaded(path).of["GPU-aa"].pids == [(12, 99)]


def test_what_a_release_accepts_is_kept_while_it_lasts(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    quarantine = loaded(path)
    quarantine.set_aside(GPU, "inspect", "row remapping has failed")
    quarantine.release("GPU-aa", ["remap_failed", "lost"])
    assert "GPU-aa" not in loaded(path)
    assert loaded(path).still_accepted("GPU-aa", ["remap_failed"]) == {"remap_failed"}
    assert loaded(path).still_accepted("GPU-aa", ["remap_failed", "lost"]) == {"remap_failed"}


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 1, "crc32": 1}\n{}\n'])
def test_a_damaged_file_gives_way_to_the_one_before(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "gpus.json"
    quarantine = loaded(path)
    quarantine.set_aside(GPU, OPERATOR, "first")
    quarantine.set_aside(GPU, OPERATOR, "second")
    path.write_bytes(damage)
    reader = Quarantine(path)
    reader.load(touch=False)
    assert path.read_bytes() == damage, "a reader that is not the daemon leaves it where it is"
    again = loaded(path)
    assert again.of["GPU-aa"].reason == "first"
    assert again.problem is not None
    assert "damaged" in again.problem


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    loaded(path).set_aside(GPU, OPERATOR, "first")
    head, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(head.replace(b'"version": 1', b'"version": 9') + b"\n" + body)
    with pytest.raises(Invalid, match="newer gpuserve"):
        loaded(path)


async def test_a_disk_that_takes_nothing_costs_the_file_not_the_quarantine(world: World) -> None:
    """And it is slow to say so: nobody waits for it, but who is answered that it is done."""
    path = world.state_file.with_name("gpus.json")
    path.with_name("gpus.json").mkdir()
    quarantine = world.fleet._quarantine
    quarantine.set_aside(GPU, OPERATOR, "first")
    assert "GPU-aa" in quarantine
    assert world.fleet.status().supervisor.degraded is None
    await world.fleet._save()
    assert "quarantine of GPUs not saved" in (world.fleet.status().supervisor.degraded or "")
    path.rmdir()
    quarantine.set_aside(GPU, OPERATOR, "second")
    await world.fleet._save()
    assert world.fleet.status().supervisor.degraded is None
    assert loaded(path).of["GPU-aa"].reason == "second"
