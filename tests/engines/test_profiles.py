"""The profiles that ship are valid, and their engines accept them where those are installed."""

from pathlib import Path

import pytest

from gpuserved.config.profile import load_profile
from gpuserved.core.profile import EngineName
from gpuserved.engines.registry import Engines
from gpuserved.engines.vllm.flags import check
from gpuserved.engines.vllm.help import parse_help

PROFILES = Path(__file__).parents[2] / "profiles"
VLLM = [path.stem for path in sorted(PROFILES.glob("*.toml")) if 'engine = "vllm"' in path.read_text()]


def test_the_demo_is_two_replicas_of_the_packaged_model(folder: Path) -> None:
    profile = load_profile((PROFILES / "demo.toml").read_text(), "demo.toml", "demo")
    assert (profile.engine, profile.replicas, profile.served_name) == (EngineName.LLAMACPP, 2, "gemma-3-270m")
    assert Engines(folder).get(profile).check(profile) == []
    assert Engines(folder).get(profile).upstream_model(profile) is None


@pytest.mark.parametrize("name", VLLM)
def test_profiles_for_vllm_use_flags_that_exist(name: str, vllm_options: str) -> None:
    profile = load_profile((PROFILES / f"{name}.toml").read_text(), f"{name}.toml", name)
    assert profile.engine is EngineName.VLLM
    assert check(profile.flags, parse_help(vllm_options, "0.32.0"), name) == []
