import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.core.profile import Limits, Profile
from gpuserved.engines.base import LaunchContext
from gpuserved.engines.vllm.adapter import VllmEngine

Make = Callable[..., Any]


@pytest.fixture
def engine(folder: Path) -> Callable[..., VllmEngine]:
    def make(**environ: str) -> VllmEngine:
        return VllmEngine(folder / "cache", {"PATH": "/usr/bin:/bin", "HOME": "/home/op", **environ})

    return make


def test_the_command_line(engine: Callable[..., VllmEngine], profile: Make, context: Make) -> None:
    wanted = profile(
        python=sys.executable, tensor_parallel_size=2, max_model_len=8192, flags={"gpu_memory_utilization": 0.9},
        limits=Limits(term_grace_s=20),
    )  # fmt: skip
    made: LaunchContext = context(wanted, gpu_indexes=(2, 3), gpu_uuids=("GPU-c", "GPU-d"))
    launch = engine().launch(made)
    socket = str(made.run_dir / "engine.sock")
    assert launch.address == f"unix:{socket}"
    assert launch.argv[:5] == (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "owner/model")
    line = " ".join(launch.argv)
    for part in (
        f"--uds {socket}", "--served-model-name m", "--max-model-len 8192", "--tensor-parallel-size 2",
        "--shutdown-timeout 18", "--allowed-media-domains media.invalid", "--disable-uvicorn-access-log",
        "--gpu-memory-utilization=0.9",
    ):  # fmt: skip
        assert part in line
    assert launch.env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert launch.env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("modules", "base"),
    [
        (["m=/adapters/a"], "m-base"),
        (["other=/adapters/a"], "m"),
        ([{"name": "m", "path": "/adapters/a"}], "m-base"),
        ("m=/adapters/a", "m-base"),
    ],
)
def test_an_adapter_with_the_served_name_takes_it_from_the_model(
    engine: Callable[..., VllmEngine], profile: Make, context: Make, modules: Any, base: str
) -> None:
    """vLLM looks among the base names first: with one name for both nobody would reach the adapter."""
    wanted = profile(python=sys.executable, flags={"enable_lora": True, "lora_modules": modules})
    argv = engine().launch(context(wanted)).argv
    assert argv[argv.index("--served-model-name") + 1] == base
    assert wanted.model_names[0] == "m"
    assert set(wanted.model_names) == {"m", base, *wanted.adapter_names}


def test_automatic_length_and_one_gpu(
    engine: Callable[..., VllmEngine], profile: Make, context: Make
) -> None:
    launch = engine().launch(context(profile(python=sys.executable)))
    assert "--max-model-len auto" in " ".join(launch.argv)
    assert "--tensor-parallel-size" not in launch.argv
    assert "CUDA_VISIBLE_DEVICES" not in launch.env


def test_a_profile_may_name_media_domains(
    engine: Callable[..., VllmEngine], profile: Make, context: Make
) -> None:
    flags = {"allowed_media_domains": ["pictures.example"], "shutdown_timeout": 3}
    line = " ".join(engine().launch(context(profile(python=sys.executable, flags=flags))).argv)
    assert "--allowed-media-domains pictures.example" in line
    assert "media.invalid" not in line
    assert line.count("shutdown-timeout") == 1


def test_the_environment_is_whole_and_minimal(
    engine: Callable[..., VllmEngine], profile: Make, context: Make
) -> None:
    adapter = engine(
        HF_HOME="/models", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="DEBUG", VLLM_SERVER_DEV_MODE="1", VLLM_API_KEY="s",
        VLLM_CPU_KVCACHE_SPACE="40", HF_TOKEN="inherited", SECRET="no", LD_PRELOAD="/x.so", TMPDIR="/tmp/" + "d" * 90,
        PYTHONPATH="/ours", GPUSERVE_ROOT="/root-of-daemon",
    )  # fmt: skip
    made = context(profile(python=sys.executable, env={"NCCL_DEBUG": "WARN"}), hf_token="hf_secret")
    launch = adapter.launch(made)
    env = launch.env
    assert env["HF_HOME"] == "/models"
    assert env["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert env["NCCL_DEBUG"] == "WARN"
    assert env["HF_TOKEN"] == "hf_secret"
    assert env["VLLM_NO_USAGE_STATS"] == "1"
    assert env["GPUSERVE_NONCE"] == "abcdef012345"
    assert (env["GPUSERVE_REPLICA"], env["GPUSERVE_GENERATION"]) == ("p-0", "3")
    assert env["PATH"].startswith(os.path.dirname(sys.executable))
    for absent in (
        "VLLM_SERVER_DEV_MODE", "VLLM_API_KEY", "VLLM_CPU_KVCACHE_SPACE", "SECRET", "LD_PRELOAD", "TMPDIR", "PYTHONPATH",
        "GPUSERVE_ROOT",
    ):  # fmt: skip
        assert absent not in env
    assert "hf_secret" not in repr(launch)
    assert not any("hf_secret" in word for word in launch.argv)


def test_a_profile_cannot_take_other_gpus(
    engine: Callable[..., VllmEngine], profile: Make, context: Make
) -> None:
    wanted = profile(python=sys.executable, env={"CUDA_VISIBLE_DEVICES": "7", "GPUSERVE_NONCE": "forged"})
    env = engine().launch(context(wanted, gpu_indexes=(0,), gpu_uuids=("GPU-a",))).env
    assert env["CUDA_VISIBLE_DEVICES"] == "0"
    assert env["GPUSERVE_NONCE"] == "abcdef012345"


def test_mig_devices_go_by_uuid(engine: Callable[..., VllmEngine], profile: Make, context: Make) -> None:
    made = context(profile(python=sys.executable), gpu_indexes=(100,), gpu_uuids=("MIG-1234",))
    assert engine().launch(made).env["CUDA_VISIBLE_DEVICES"] == "MIG-1234"


def test_vllm_is_found_in_path_with_its_interpreter(
    engine: Callable[..., VllmEngine], profile: Make, context: Make, folder: Path, vllm_environment: Make
) -> None:
    python = vllm_environment("0.31.2")
    script = Path(python).with_name("vllm")
    script.write_text(f"#!{python}\n")
    script.chmod(0o755)
    adapter = engine(PATH=str(script.parent))
    wanted: Profile = profile()
    assert adapter.check(wanted) == []
    assert adapter.launch(context(wanted)).argv[:3] == (str(script), "serve", "owner/model")
    assert adapter.program(wanted).python == python


def test_no_vllm_anywhere(engine: Callable[..., VllmEngine], profile: Make, folder: Path) -> None:
    with pytest.raises(Invalid) as caught:
        engine(PATH=str(folder)).check(profile(python=None))
    assert "not installed" in caught.value.message
    assert caught.value.hint is not None
    assert "pip install" in caught.value.hint


def test_an_interpreter_without_vllm(engine: Callable[..., VllmEngine], profile: Make) -> None:
    with pytest.raises(Invalid, match="not installed in the environment"):
        engine().check(profile(python=sys.executable))
    with pytest.raises(Invalid, match="not an interpreter"):
        engine().check(profile(python="/nowhere/python"))


def test_versions_outside_the_range_are_warned_of(
    engine: Callable[..., VllmEngine], profile: Make, vllm_environment: Make
) -> None:
    python = vllm_environment("0.19.1")
    [warning] = engine().check(profile(python=python))
    assert "0.19.1" in warning


def test_the_cpu_distribution_counts(
    engine: Callable[..., VllmEngine], profile: Make, vllm_environment: Make
) -> None:
    python = vllm_environment("0.32.0", distribution="vllm-cpu")
    assert engine().check(profile(python=python)) == []


def test_a_model_folder_is_looked_at(
    engine: Callable[..., VllmEngine], profile: Make, vllm_environment: Make, folder: Path
) -> None:
    python = vllm_environment()
    with pytest.raises(Invalid, match="there is no model folder"):
        engine().check(profile(python=python, model="/nonexistent/model"))
    (folder / "empty").mkdir()
    with pytest.raises(Invalid, match=r"no config\.json"):
        engine().check(profile(python=python, model=str(folder / "empty")))
    (folder / "empty" / "config.json").write_text("{}")
    assert engine().check(profile(python=python, model=str(folder / "empty"))) == []


async def test_an_unknown_flag_is_refused_before_any_start(
    engine: Callable[..., VllmEngine], profile: Make, vllm_environment: Make, vllm_options: str
) -> None:
    wanted = profile(python=vllm_environment(help_text=vllm_options), flags={"enforce_eagerly": True})
    adapter = engine()
    await adapter.prepare(wanted)
    with pytest.raises(Invalid, match="did you mean enforce_eager"):
        adapter.check(wanted)
