"""Under which names the router hears of a profile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.config.profile import load_profile
from gpuserved.core.profile import Profile
from gpuserved.engines.base import Engine
from gpuserved.fleet.arranger import one_model_per_name
from gpuserved.fleet.views import model_routes
from gpuserved.planning.arrange import Wanted

PLAIN = 'model = "org/m"\nserved_name = "m"\n'


def wanted(name: str, text: str) -> Wanted:
    return Wanted(text, f"{name}.toml", load_profile(text, f"{name}.toml", name))


def registry_is_not_asked(_profile: Profile) -> Engine:
    raise AssertionError


def names(text: str) -> list[str]:
    down: Any = SimpleNamespace(
        assignment=SimpleNamespace(profile=wanted("p", text).profile), process=None, address=None
    )
    return [route.name for route in model_routes([down, down], registry_is_not_asked)]


def test_a_profile_is_routed_under_its_served_name() -> None:
    assert names(PLAIN) == ["m"]


def test_adapters_are_routed_under_their_own_names() -> None:
    text = PLAIN + '[vllm]\nenable_lora = true\nlora_modules = ["polite=/a", "brief=/b"]\n'
    assert names(text) == ["m", "polite", "brief"]


def test_an_adapter_under_the_served_name_leaves_the_model_another() -> None:
    assert names(PLAIN + '[vllm]\nenable_lora = true\nlora_modules = ["m=/a"]\n') == ["m", "m-base"]


def test_a_name_means_one_model() -> None:
    adapter = wanted(
        "a", PLAIN.replace('"m"', '"x"') + '[vllm]\nenable_lora = true\nlora_modules = ["m=/a"]\n'
    )
    with pytest.raises(Invalid) as caught:
        one_model_per_name({"a": adapter, "b": wanted("b", PLAIN)})
    assert "both serve 'm', with different models" in caught.value.message
    one_model_per_name({"b": wanted("b", PLAIN), "c": wanted("c", PLAIN)})
