"""`gpuserve doctor` on hosts that are made up around the process: PATH, environment, folders, sockets, real daemons."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpuserved.cli.doctor.machine import judge_memlock, judge_nofile, judge_shm
from gpuserved.host.gpulock import GpuLocks, release

CHECKS = {
    "gpu", "vllm", "hub", "configuration", "daemon", "port", "leftovers", "folders", "disk", "shm", "limits", "kernel", "clock", "service",
}  # fmt: skip
GIB = 2**30
# As much of the binding as the doctor asks: a host with NVIDIA cards, or one whose driver does not start.
PYNVML = """
NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 2, 0
class NVMLError(Exception):
    def __init__(self, value): super().__init__(f"NVML error {value}"); self.value = value
class Memory:
    used, total = 70 * 2**30, 80 * 2**30
class Process:
    pid, usedGpuMemory = 4711, 60 * 2**30
def nvmlInit():
    if FAILS: raise NVMLError(FAILS)
    if HANGS:
        import time; time.sleep(60)
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return "580.65"
def nvmlSystemGetCudaDriverVersion_v2(): return 13000
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUUID(handle): return f"GPU-{handle}"
def nvmlDeviceGetName(handle): return "NVIDIA H100"
def nvmlDeviceGetMemoryInfo(handle): return Memory
def nvmlDeviceGetComputeRunningProcesses(handle): return [Process] if handle == 1 else []
"""


class Report:
    """What one run said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.text = done.stdout + done.stderr
        assert done.stdout, done.stderr
        self.body = json.loads(done.stdout)

    def of(self, check: str) -> list[tuple[str, str, str | None]]:
        return [
            (one["level"], one["fact"], one["fix"]) for one in self.body["checks"] if one["check"] == check
        ]

    def one(self, check: str) -> tuple[str, str, str | None]:
        (found,) = self.of(check)
        return found


@pytest.fixture
def host(shell: Any) -> Any:
    """Runs the doctor on a port of its own; keyword arguments are its environment."""
    (shell.root / "gpuserved.toml").write_text(f'[router]\nlisten = "127.0.0.1:{shell.port}"\n')
    (shell.root / "bin").mkdir()

    def run(**env: str) -> Report:
        return Report(shell("doctor", "--json", **{"PATH": f"{shell.root / 'bin'}:/usr/bin:/bin", **env}))

    return run


def tool(shell: Any, name: str, text: str) -> None:
    path = shell.root / "bin" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def cards(shell: Any, *, fails: int = 0, hangs: bool = False) -> str:
    """A PYTHONPATH on which NVML is that of a made-up host."""
    folder = shell.root / "nvml"
    folder.mkdir()
    (folder / "pynvml.py").write_text(f"FAILS, HANGS = {fails}, {hangs}\n{PYNVML}")
    return f"{folder}{os.pathsep}{shell.env['PYTHONPATH']}"


def vllm(shell: Any, *, version: str = "0.32.0", cuda: str = "'12.8'") -> str:
    """An environment that looks like vLLM's; its interpreter is real."""
    import venv

    root = shell.root / "venv"
    venv.create(root, with_pip=False, symlinks=True)
    site = next((root / "lib").glob("python3*")) / "site-packages"
    (site / f"vllm-{version}.dist-info").mkdir()
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text(f"__version__ = '2.14.0'\ncuda: Optional[str] = {cuda}\n")
    return str(root / "bin" / "python")


def test_a_bare_host_passes_with_every_check_told_once_and_in_time(host: Any) -> None:
    begun = time.monotonic()
    report = host()
    assert time.monotonic() - begun < 60, "a generous guard: it takes half a second on a quiet host"
    assert {one["check"] for one in report.body["checks"]} == CHECKS
    assert report.code == 0, report.text
    assert report.body["ok"]
    for one in report.body["checks"]:
        assert (one["fix"] is None) == (one["level"] == "ok")
        assert "could not be checked" not in one["fact"]


def test_people_read_the_same(host: Any, shell: Any) -> None:
    done = shell("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    assert all(len(line) <= 80 or "->" in line for line in done.stdout.splitlines())
    assert "none runs" in done.stdout
    assert "0 in the way" in done.stdout


def test_cards_and_who_is_on_them(host: Any, shell: Any) -> None:
    report = host(PYTHONPATH=cards(shell))
    assert report.of("gpu") == [
        ("ok", "driver 580.65, CUDA up to 13.0: 2 x NVIDIA H100", None),
        ("warn", "GPU 1: PID 4711, not ours, holds 60.0 GiB", "ps -o user,etime,args -p 4711"),
    ]
    level, _, fix = report.one("vllm")
    assert level == "fail", "GPUs, and nothing to run on them"
    assert "pip install 'vllm>=0.26,<0.34'" in str(fix)
    assert report.code == 1


def test_leases_of_other_daemons_and_of_replicas_that_outlived_theirs(host: Any, shell: Any) -> None:
    folder = shell.root / "locks"
    folder.mkdir()
    env = {"PYTHONPATH": cards(shell), "GPUSERVE_LOCK_DIR": str(folder)}
    ours = GpuLocks(folder, str(shell.root / "run")).take(["GPU-0"], 0.25, "mine-0", "anna")
    held = GpuLocks(folder, "/elsewhere/run").take(["GPU-0"], 0.5, "chat-0", "bert")
    leases = [one for one in host(**env).of("gpu") if "leased" in one[1]]
    assert [fact for _, fact, _ in leases] == ["GPU 0: 50% leased by chat-0 of bert, of another daemon"]
    release([*ours, *held])
    assert not [one for one in host(**env).of("gpu") if "leased" in one[1]], "a lease ends with its holder"


@pytest.mark.parametrize(
    ("error", "says", "fix"),
    [(18, "different versions", "sudo reboot"), (4, "may not use the GPUs", "ls -l /dev/nvidia*")],
)
def test_a_driver_that_does_not_start(host: Any, shell: Any, error: int, says: str, fix: str) -> None:
    level, fact, told = host(PYTHONPATH=cards(shell, fails=error)).one("gpu")
    assert level == "fail"
    assert says in fact
    assert fix in str(told)


def test_a_driver_that_hangs_holds_up_nothing(host: Any, shell: Any) -> None:
    report = host(PYTHONPATH=cards(shell, hangs=True))
    assert report.one("gpu")[:2] == ("warn", "no answer within 6 s")
    assert report.one("daemon")[0] == "ok"


@pytest.mark.parametrize(
    ("cuda", "level", "says"),
    [
        ("'13.2'", "ok", "CUDA 13.2"),
        ("'14.0'", "fail", "the driver runs up to 13.0"),
        ("None", "fail", "CPU build"),
    ],
)
def test_torch_and_the_driver(host: Any, shell: Any, cuda: str, level: str, says: str) -> None:
    python = vllm(shell, cuda=cuda)
    (shell.root / "profiles").mkdir()
    (shell.root / "profiles" / "m.toml").write_text(f'model = "org/m"\npython = "{python}"\n')
    found = host(PYTHONPATH=cards(shell)).of("vllm")
    assert found[0][0] == "ok"
    assert f"vLLM 0.32.0 in {python} (python of m)" in found[0][1]
    assert found[1][0] == level
    assert says in found[1][1]


def test_a_vllm_in_path_of_another_version(host: Any, shell: Any) -> None:
    python = vllm(shell, version="0.11.0")
    program = shell.root / "bin" / "vllm"
    program.write_text(f"#!{python}\n")
    program.chmod(0o755)
    level, fact, _ = host().one("vllm")
    assert level == "warn"
    assert "0.26 to 0.33 are supported" in fact


def test_a_profiles_python_without_vllm(host: Any, shell: Any) -> None:
    (shell.root / "profiles").mkdir()
    (shell.root / "profiles" / "m.toml").write_text('model = "org/m"\npython = "/nowhere/python"\n')
    level, fact, _ = host().one("vllm")
    assert (level, fact) == ("fail", "/nowhere/python (python of m) cannot be run")


def test_the_hubs_cache_and_token(host: Any, shell: Any) -> None:
    cache = shell.root / "hub"
    (cache / "models--org--m" / "blobs").mkdir(parents=True)
    (cache / "models--org--m" / "blobs" / "x").write_bytes(b"x" * 2**20)
    token = shell.root / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_secret")
    token.chmod(0o644)
    found = host(HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1").of("hub")
    assert found[0][0] == "ok"
    assert f"{cache}: 1 models, 0.0 GiB" in found[0][1]
    assert found[1] == ("fail", f"the token in {token} can be read by everybody", f"chmod 600 {token}")
    token.chmod(0o600)
    assert host().of("hub")[-1][0] == "ok"
    (shell.root / "file").touch()
    broken = host(HF_HUB_CACHE=str(shell.root / "file" / "hub")).of("hub")[0]
    assert broken[0] == "fail"
    assert "cannot be made" in broken[1]


def test_secrets_are_never_printed(host: Any, shell: Any) -> None:
    (shell.root / "tok").write_text("hf_filesecret")
    (shell.root / "tok").chmod(0o600)
    (shell.root / "keys").write_text("alice:sk-secret\n")
    (shell.root / "gpuserved.toml").write_text(
        '[router]\nkeys_file = "keys"\n[supervisor]\nhf_token_file = "tok"\n'
    )
    report = host(HF_TOKEN="hf_secret", API_KEY="sk-secret", HF_TOKEN_PATH=str(shell.root / "tok"))
    assert "secret" not in report.text
    level, fact, _ = report.one("configuration")
    assert level == "fail"
    assert "keys:1: expected NAME:SHA256" in fact


def test_a_wrong_file_is_named_with_its_line(host: Any, shell: Any) -> None:
    (shell.root / "profiles").mkdir()
    (shell.root / "profiles" / "m.toml").write_text('model = "org/m"\nmax_modl_len = 1\n')
    found = host().of("configuration")
    assert found[1][0] == "fail"
    assert "m.toml:2: max_modl_len: unknown key" in found[1][1]
    assert found[1][2] == "did you mean max_model_len?"


def test_a_port_that_somebody_holds(host: Any, shell: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", shell.port))
        taken.listen()
        level, fact, fix = host().one("port")
    assert level == "fail"
    assert f"held by PID {os.getpid()}" in fact
    assert f"gpuserve up --port {shell.port + 1}" in str(fix)
    assert host().one("port") == ("ok", f"127.0.0.1:{shell.port} is free", None)


def test_sockets_of_a_long_root_are_found(host: Any, shell: Any) -> None:
    root = shell.root / ("long" * 30)
    root.mkdir()
    facts = [fact for _, fact, _ in host(GPUSERVE_ROOT=str(root)).of("folders")]
    assert "would pass the kernel's 107 bytes" in facts[0]
    assert f"sockets are in {Path(facts[0].split()[3].rstrip(':'))}" in facts[0]


def test_a_folder_that_is_a_file(host: Any, shell: Any) -> None:
    (shell.root / "state").write_text("x")
    level, fact, _ = host().one("folders")
    assert (level, fact) == ("fail", f"{shell.root / 'state'}: is no folder")


def test_the_service_and_its_socket(host: Any, shell: Any) -> None:
    tool(shell, "systemctl", """
case "$*" in
  --version) echo "systemd 255 (255.4)";;
  *--user*) exit 1;;
  *gpuserved.service*) printf 'LoadState=loaded\\nActiveState=failed\\nUnitFileState=disabled\\nNeedDaemonReload=no\\n';;
  *gpuserved.socket*) printf 'LoadState=loaded\\nActiveState=inactive\\n';;
esac""")  # fmt: skip
    found = host().of("service")
    assert [level for level, _, _ in found] == ["fail", "warn", "warn"]
    assert [str(fix).split(";")[0] for _, _, fix in found] == [
        "systemctl status gpuserved",
        "sudo systemctl enable gpuserved.socket gpuserved.service",
        "sudo systemctl enable --now gpuserved.socket",
    ]


def test_a_users_service_needs_lingering(host: Any, shell: Any) -> None:
    tool(shell, "systemctl", """
case "$*" in
  --version) echo "systemd 247 (247.3)";;
  *--user*) printf 'LoadState=loaded\\nActiveState=active\\n';;
  *) printf 'LoadState=not-found\\n';;
esac""")  # fmt: skip
    tool(shell, "loginctl", "echo no")
    found = host(USER="anna").of("service")
    assert [fix for _, _, fix in found] == [
        "gpuserve up, without the unit",
        None,
        "sudo loginctl enable-linger anna",
    ]


@pytest.mark.parametrize(("says", "level"), [("yes", "ok"), ("no", "warn")])
def test_the_clock(host: Any, shell: Any, says: str, level: str) -> None:
    tool(shell, "timedatectl", f"echo {says}")
    assert host().one("clock")[0] == level


def _leftovers(report: Report, shell: Any) -> list[tuple[str, str, str | None]]:
    """Without what another test, or anybody, has left on this host."""
    found = report.of("leftovers")
    return [one for one in found if not one[1].startswith("shim PID") or str(shell.root) in one[1]]


def test_what_a_dead_daemon_left_is_seen_from_its_root_and_from_others(host: Any, shell: Any) -> None:
    shell.profile("demo", 'model = "sim/demo"\nengine = "sim"\nreplicas = 1\nmax_model_len = 4096\n')
    assert shell.up("demo.toml").returncode == 0
    report = host()
    assert "1 of 1 replicas ready" in report.one("daemon")[1]
    assert report.one("port")[1].startswith("our router serves http://127.0.0.1:")
    assert {level for level, _, _ in _leftovers(report, shell)} <= {"ok"}
    daemon = json.loads(shell("status", "--json").stdout)["supervisor"]["pid"]
    os.kill(daemon, signal.SIGKILL)
    [(level, fact, fix)] = _leftovers(host(), shell)
    assert (level, fact) == ("warn", "demo-0 runs without a daemon")
    assert "gpuserve up" in str(fix)
    other = shell.root / "other"
    other.mkdir()
    [(_, fact, fix)] = _leftovers(host(GPUSERVE_ROOT=str(other)), shell)
    assert str(shell.root / "run") in fact
    assert str(fix).startswith("kill ")
    assert shell("up", "--wait", "60").returncode == 0
    assert {level for level, _, _ in _leftovers(host(), shell)} <= {"ok"}


def test_a_daemon_that_does_not_answer_is_named(host: Any, shell: Any) -> None:
    (shell.root / "run").mkdir(mode=0o700)
    lock = shell.root / "run" / "daemon.lock"
    lock.write_text("4711\n")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(1, flush=True); input()", str(lock)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    level, fact, fix = host().one("daemon")
    holder.communicate(b"\n", timeout=60)
    assert level == "fail"
    assert "PID 4711 holds the daemon's lock and does not answer" in fact
    assert "kill 4711" in str(fix)


@pytest.mark.parametrize(
    ("total", "free", "level"),
    [
        (64 * 2**20, 64 * 2**20, "fail"),
        (GIB, GIB // 2, "warn"),
        (64 * GIB, GIB // 2, "warn"),
        (8 * GIB, 8 * GIB, "ok"),
    ],
)
def test_sizes_of_shared_memory(total: int, free: int, level: str) -> None:
    assert judge_shm(total, free).level == level


def test_limits() -> None:
    assert judge_nofile(1024).level == "warn"
    assert judge_nofile(65536).level == "ok"
    assert judge_nofile(-1).level == "ok"
    assert judge_memlock(65536, gpus=8).level == "warn"
    assert judge_memlock(65536, gpus=0).level == "ok"
    assert judge_memlock(-1, gpus=8).level == "ok"
