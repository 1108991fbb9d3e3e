import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

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
