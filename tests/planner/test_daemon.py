"""The planner inside a real daemon: real starts, with the look-alike in vLLM's place on GPUs that a file describes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.box import Box, until
from tests.planner import configs


def text(model: Path, python: str, more: str = "") -> str:
    return f'model = "{model}"\nserved_name = "m"\npython = "{python}"\n{more}'


def plan(box: Box, path: str, *more: str, code: int = 0) -> dict[str, Any]:
    done = box.run("plan", path, "--json", *more)
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def argument(box: Box, replica: str, flag: str) -> str:
    command = box.tree(box.replica(replica)["shim_pid"])[1].cmdline()
    joined = next((word for word in command if word.startswith(f"{flag}=")), None)
    return joined.partition("=")[2] if joined else command[command.index(flag) + 1]


def test_a_start_is_measured_and_the_next_plan_says_so(
    boxes: Callable[[], Box], vllm_stand_in: str, tmp_path: Path
) -> None:
    model = configs.write_model(tmp_path / "model", configs.LLAMA_8B, 16_060_522_496)
    box = boxes()
    configs.write_inventory(box.root / "gpus.json", 2, 80)
    profile = text(model, vllm_stand_in, "max_model_len = 8192\nreplicas = 1\n")
    first = plan(box, box.write("m", profile))["placements"][0]  # without a daemon, on the GPUs it would see
    assert (first["memory_source"], first["gpu_memory_utilization"]) == ("estimated", 0.92)
    assert first["memory_release"] == "0.27 and later", "the vLLM that would run"
    assert first["kv_cache_tokens"] > 422_512, "which is what is planned where no vLLM can be asked"
    box.up({"m": profile})
    assert argument(box, "m-0", "--max-model-len") == "8192"
    assert argument(box, "m-0", "--gpu-memory-utilization") == "0.92"
    until((box.roots.state / "measured.json").exists, "the figures are kept", 20)
    second = plan(box, box.write("m2", profile))
    placed = second["placements"][0]
    assert (placed["memory_source"], placed["kv_cache_bytes"]) == ("measured", 8 * configs.GIB)
    assert placed["memory_release"] is None
    assert placed["gpus"] == [1], "the first GPU is taken"
    assert "memory as vLLM measured it at an earlier start" in second["why"]
    other = plan(box, box.write("m3", profile + "[vllm]\nmax_num_seqs = 16\n"))["placements"][0]
    assert other["memory_source"] == "estimated", "other flags, other figures"


def test_what_was_decided_stays_over_a_restart_and_goes_with_a_change(
    boxes: Callable[[], Box], vllm_stand_in: str, tmp_path: Path
) -> None:
    model = configs.write_model(tmp_path / "model", configs.LLAMA_8B, 16_060_522_496)
    box = boxes()
    inventory = configs.write_inventory(box.root / "gpus.json", 2, 24)
    profile = text(model, vllm_stand_in, "max_model_len = 8192\ntarget_concurrency = 32\n")
    box.up({"m": profile})
    before = box.wait_state("m-0", "READY")
    assert (before["gpus"], argument(box, "m-0", "--tensor-parallel-size")) == ([0, 1], "2")
    box.ok("apply", str(box.profiles / "m.toml"))
    assert box.replica("m-0")["pid"] == before["pid"], "nothing changed"
    # Somebody else fills the cards now; what runs there is not weighed anew.
    found = json.loads(inventory.read_text())
    for gpu in found["gpus"]:
        gpu["memory_used_bytes"] = int(22 * configs.GIB)
    inventory.write_text(json.dumps(found))
    supervisor = box.status()["supervisor"]["pid"]
    os.kill(supervisor, signal.SIGKILL)
    box.ok("up", str(box.profiles / "m.toml"), "--wait", "30")
    after = box.wait_state("m-0", "READY")
    assert (after["pid"], after["generation"]) == (before["pid"], before["generation"])


def test_two_daemons_do_not_share_a_gpu(boxes: Callable[[], Box], vllm_stand_in: str, tmp_path: Path) -> None:
    model = configs.write_model(tmp_path / "model", configs.LLAMA_8B, 16_060_522_496)
    locks = tmp_path / "locks"
    locks.mkdir()
    first, second = boxes(), boxes()
    for box in (first, second):
        box.env["GPUSERVE_LOCK_DIR"] = str(locks)
        configs.write_inventory(box.root / "gpus.json", 2, 80)
    mine = text(model, vllm_stand_in, "max_model_len = 8192\ngpus = [0]\n")
    first.up({"m": mine})
    path = second.write("m", text(model, vllm_stand_in, "max_model_len = 8192\n"))
    second.up({"m": (second.profiles / "m.toml").read_text()})
    assert second.replica("m-0")["gpus"] == [1], "placed around what the other daemon has"
    no = plan(second, second.write("n", mine), code=4)["refusal"]
    assert no["code"] == "gpu_overlap"
    assert "(another gpuserve)" in no["message"]
    # The lease is the replica's, not the daemon's.
    os.kill(first.status()["supervisor"]["pid"], signal.SIGKILL)
    assert plan(second, second.write("n", mine), code=4)["refusal"]["code"] == "gpu_overlap"
    first.ok("up", str(first.profiles / "m.toml"), "--wait", "30")
    first.ok("restart", "m-0")
    first.wait_state("m-0", "READY", restarts=0)
    first.ok("stop", "m-0")
    first.wait_state("m-0", "STOPPED")
    second.up({"m": mine})
    second.wait_state("m-0", "READY", gpus=[0])
    # Meanwhile the other has it: the start waits, says who, and is tried again.
    first.ok("start", "m-0")
    held = first.wait_state("m-0", "BACKOFF", timeout_s=30)
    assert "is leased by m-0 of" in held["reason"]
    assert path
