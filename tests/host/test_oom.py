from __future__ import annotations

from pathlib import Path

from gpuserved.host import oom


def test_the_counter_is_read(tmp_path: Path) -> None:
    path = tmp_path / "vmstat"
    path.write_text("nr_free_pages 12\noom_kill 3\noom_kill_other 9\n")
    assert oom.kills(path) == 3


def test_a_host_that_does_not_tell(tmp_path: Path) -> None:
    assert oom.kills(tmp_path / "absent") is None
    (tmp_path / "vmstat").write_text("oom_kill many\n")
    assert oom.kills(tmp_path / "vmstat") is None


def test_a_cgroup_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\n")
    assert oom.cgroup_kills(tmp_path) == 1
    assert oom.cgroup_kills(tmp_path / "none") is None
