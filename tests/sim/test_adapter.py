"""The adapter: command line, environment, checks; and what it starts really serves."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpuserved.api.errors import Invalid
from gpuserved.core.cause import CauseKind, ExitInfo
from gpuserved.core.profile import EngineName, Profile
from gpuserved.engines.base import LaunchContext
from gpuserved.engines.sim.adapter import SimEngine

ENGINE = SimEngine(Path("/nonexistent"))


def profile(**more: Any) -> Profile:
    return Profile(
        name="p", model="sim/m", served_name="name", engine=EngineName.SIM, max_model_len=4096, **more
    )


def context(of: Profile, folder: Path, **more: Any) -> LaunchContext:
    return LaunchContext(of, "p-0", 3, "0123456789ab", folder, folder, **more)


def test_command_line_carries_the_profile_and_its_flags_but_not_the_simulated_gpus(tmp_path: Any) -> None:
    flags = {"load_s": 2, "crash_after_load": True, "ignore_sigterm": False, "gpus": 8, "gpu_memory_gib": 80}
    launch = ENGINE.launch(context(profile(flags=flags, tensor_parallel_size=2), tmp_path))
    assert launch.argv == (
        sys.executable, "-m", "gpuserved.engines.sim", "serve", "sim/m", "--uds", f"{tmp_path}/engine.sock",
        "--served-model-name", "name", "--max-model-len", "4096", "--tensor-parallel-size", "2", "--load-s=2",
        "--crash-after-load",
    )  # fmt: skip
    assert launch.address == f"unix:{tmp_path}/engine.sock"


def test_environment_is_minimal_and_marked(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "x")
    env = ENGINE.launch(context(profile(env={"EXTRA": "1"}), tmp_path, gpu_indexes=(2, 3))).env
    assert set(env) == {
        "PATH", "HOME", "PYTHONPATH", "EXTRA", "GPUSERVE_NONCE", "GPUSERVE_REPLICA", "GPUSERVE_GENERATION",
        "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER",
    }  # fmt: skip
    assert env["GPUSERVE_NONCE"] == "0123456789ab"
    assert (env["GPUSERVE_REPLICA"], env["GPUSERVE_GENERATION"]) == ("p-0", "3")
    assert env["CUDA_VISIBLE_DEVICES"] == "2,3"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"lod_s": 3}, "unknown key `[sim] lod_s`|did you mean `[sim] load_s`?"),
        ({"crash-after-request": 3}, "`[sim] crash-after-request`|`[sim] crash_after_requests`"),
        ({"uds": "/x"}, "`[sim] uds` is set by gpuserve|served_name"),
        ({"load_s": [1]}, "`[sim] load_s` must be|--help"),
    ],
)
def test_bad_flags_are_refused_by_name_with_the_nearest_one(flags: Any, says: Any) -> None:
    with pytest.raises(Invalid) as refused:
        ENGINE.check(profile(flags=flags))
    message, hint = says.split("|")
    assert message in refused.value.message
    assert refused.value.hint is not None
    assert hint in refused.value.hint


def test_a_missing_model_folder_is_refused_and_a_name_is_not() -> None:
    assert ENGINE.check(profile(flags={"load_s": 1, "gpus": 8})) == []
    with pytest.raises(Invalid, match="/no/such/folder"):
        ENGINE.check(replace(profile(), model="/no/such/folder"))


def test_log_words_come_from_vllm(shared: Any) -> None:
    phases = [phase for line in shared.text().splitlines() if (phase := ENGINE.phase(line))]
    order = ["resolving model", "initialising engine", "loading weights", "compiling", "allocating KV cache", "starting server"]  # fmt: skip
    assert [phases.index(phase) for phase in order] == sorted(phases.index(phase) for phase in order)
    assert "loading weights 2/4" in phases
    tail = ["OSError: [Errno 98] Address already in use"]
    assert ENGINE.cause(ExitInfo(1, None, 0.0), tail).kind is CauseKind.PORT_IN_USE


def test_what_is_launched_serves_and_its_metric_names_exist(tools: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="sim-") as folder:
        launch = ENGINE.launch(context(profile(flags={"step_ms": 2}), Path(folder)))
        process = subprocess.Popen(
            launch.argv, env=launch.env, cwd=launch.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            assert process.stdout is not None
            log = iter(process.stdout.readline, b"")
            assert any(b"Application startup complete." in line for line in log)
            with httpx.Client(
                transport=httpx.HTTPTransport(uds=launch.address.removeprefix("unix:")),
                base_url="http://replica",
                timeout=60,
            ) as http:
                assert http.get(ENGINE.health_path(profile())).status_code == 200
                assert http.get("/v1/models").json()["data"][0]["id"] == "name"
                text = http.get(str(ENGINE.metrics_path(profile()))).text
            names = ENGINE.metrics
            for name in (names[key] for key in ("running", "waiting", "kv_cache_ratio", "steps")):
                assert f"\n{name}{{" in text
        finally:
            process.terminate()
            process.communicate(timeout=60)
        assert process.returncode == 0


def test_help_describes_every_flag_with_an_example() -> None:
    run = [sys.executable, "-m", "gpuserved.engines.sim", "serve", "--help"]
    root = str(Path(__file__).resolve().parents[2] / "daemon")
    done = subprocess.run(run, capture_output=True, text=True, env={"PYTHONPATH": root}, check=True)
    assert "example: python -m gpuserved.engines.sim serve" in done.stdout
    for flag in ("--fail-load", "--crash-on-prompt", "--health-flap", "--kv-cache-tokens", "--faults-file"):
        assert flag in done.stdout
