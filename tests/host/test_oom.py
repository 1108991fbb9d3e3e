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


def test_the_cgroup_of_a_process_is_found_in_both_versions(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    for pid, text in (
        (7, "0::/system.slice/gpuserved.service\n"),
        (8, "5:devices:/\n4:cpu,memory:/box/a:b\n0::/\n"),
    ):
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "cgroup").write_text(text)
    second, first = root / "system.slice" / "gpuserved.service", root / "memory" / "box" / "a:b"
    assert oom.cgroup_of(7, root, proc) is None, "not mounted, or without the controller"
    for folder, name in ((second, "memory.events"), (first, "memory.oom_control")):
        folder.mkdir(parents=True)
        (folder / name).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert oom.cgroup_of(7, root, proc) == second
    assert oom.cgroup_of(8, root, proc) == first
    assert oom.cgroup_kills(first) == 2
    assert oom.cgroup_of(9, root, proc) is None, "gone"
