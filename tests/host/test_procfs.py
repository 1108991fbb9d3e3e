import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuserved.host import procfs

CHILD = """
import subprocess, sys, time
inner = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"], stdout=sys.stdout)
time.sleep(600)
"""


def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    """A process with one child of its own, in a session of their own."""
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()


def test_a_tree_holds_the_descendants(family: subprocess.Popen[bytes]) -> None:
    table = procfs.processes()
    found = procfs.tree(family.pid, table)
    assert family.pid in found
    assert len(found) == 2
    assert os.getpid() not in found
    assert found < procfs.tree(os.getpid(), table)


def test_several_trees_from_one_table(family: subprocess.Popen[bytes]) -> None:
    found = procfs.trees({"a": family.pid, "gone": 2**22 + 1}, procfs.processes())
    assert len(found["a"]) == 2
    assert found["gone"] == set()


@pytest.mark.fault(35)
def test_a_process_is_known_by_its_start(family: subprocess.Popen[bytes]) -> None:
    ticks = procfs.start_ticks(family.pid)
    assert ticks is not None
    assert procfs.is_same(family.pid, ticks)
    assert not procfs.is_same(family.pid, ticks - 1)
    os.killpg(family.pid, signal.SIGKILL)
    until(lambda: (found := procfs.process(family.pid)) is not None and found.state == "Z")
    assert not procfs.is_same(family.pid, ticks)


def test_cpu_time_grows_with_work() -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:

        def used() -> float:
            table = procfs.processes()
            return procfs.cpu_s(procfs.tree(process.pid, table), table)

        until(lambda: used() > 0.1)
        before = used()
        until(lambda: used() > before + 0.1)
    finally:
        process.kill()
        process.wait()


def test_names_with_parentheses_do_not_confuse() -> None:
    code = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'a) R 1 (b', 0, 0, 0); print(1, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        found = procfs.process(process.pid)
        assert found is not None
        assert found.ppid == os.getpid()
    finally:
        process.kill()
        process.communicate()


def test_what_is_not_there() -> None:
    assert procfs.process(2**22 + 1) is None
    assert procfs.start_ticks(2**22 + 1) is None
    assert len(procfs.boot_id()) == 36


# --- kills for memory


def test_the_counter_of_kills_for_memory_is_read(tmp_path: Path) -> None:
    path = tmp_path / "vmstat"
    path.write_text("nr_free_pages 12\noom_kill 3\noom_kill_other 9\n")
    assert procfs.oom_kills(path) == 3


def test_a_host_that_does_not_tell_of_kills(tmp_path: Path) -> None:
    assert procfs.oom_kills(tmp_path / "absent") is None
    (tmp_path / "vmstat").write_text("oom_kill many\n")
    assert procfs.oom_kills(tmp_path / "vmstat") is None


def test_a_cgroup_has_its_own_counter(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\n")
    assert procfs.oom_kills_in(tmp_path) == 1
    assert procfs.oom_kills_in(tmp_path / "none") is None


def test_the_memory_cgroup_of_a_process_is_found_in_both_versions(tmp_path: Path) -> None:
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    for pid, text in (
        (7, "0::/system.slice/gpuserved.service\n"),
        (8, "5:devices:/\n4:cpu,memory:/box/a:b\n0::/\n"),
    ):
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "cgroup").write_text(text)
    second, first = root / "system.slice" / "gpuserved.service", root / "memory" / "box" / "a:b"
    assert procfs.memory_cgroup_of(7, root, proc) is None, "not mounted, or without the controller"
    for folder, name in ((second, "memory.events"), (first, "memory.oom_control")):
        folder.mkdir(parents=True)
        (folder / name).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert procfs.memory_cgroup_of(7, root, proc) == second
    assert procfs.memory_cgroup_of(8, root, proc) == first
    assert procfs.oom_kills_in(first) == 2
    assert procfs.memory_cgroup_of(9, root, proc) is None, "gone"
