from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from gpuserved.core.profile import (
    CommandSpec,
    EngineName,
    HealthPolicy,
    Limits,
    Policy,
    Profile,
    RestartPolicy,
    Routing,
)

PROFILE = Profile(name="llama", model="/models/llama", served_name="llama-8b")

# What a changed profile means for replicas that run: nothing, or a new command line.
AT_ONCE: dict[str, Any] = {
    "name": "other",
    "replicas": 4,
    "target_concurrency": 64,
    "max_model_len_auto": True,
    "data_parallel": "internal",
    "policy": Policy.ROUND_ROBIN,
    "limits": Limits(queue=1),
    "routing": Routing(weight=2.0),
    "restart": RestartPolicy(budget=1),
    "health": HealthPolicy(interval_s=2.0),
}
RESTARTS: dict[str, Any] = {
    "model": "/models/other",
    "served_name": "other",
    "engine": EngineName.SIM,
    "python": "/opt/vllm/bin/python",
    "tensor_parallel_size": 2,
    "max_model_len": 4096,
    "data_parallel_size": 2,
    "gpu_share": 0.5,
    "gpus": ("0",),
    "flags": {"dtype": "half"},
    "env": {"A": "b"},
    "command": CommandSpec(("server",)),
}


def test_every_field_is_in_one_of_the_two_lists() -> None:
    assert {f.name for f in fields(Profile)} == AT_ONCE.keys() | RESTARTS.keys()


@pytest.mark.parametrize("name", AT_ONCE)
def test_settings_of_router_and_supervisor_restart_nothing(name: str) -> None:
    assert replace(PROFILE, **{name: AT_ONCE[name]}).runs_like(PROFILE)


@pytest.mark.parametrize("name", RESTARTS)
def test_settings_of_the_engine_restart_it(name: str) -> None:
    assert not replace(PROFILE, **{name: RESTARTS[name]}).runs_like(PROFILE)


def test_a_replica_takes_as_many_gpus_as_it_is_wide() -> None:
    assert PROFILE.gpus_per_replica == 1
    assert replace(PROFILE, tensor_parallel_size=4).gpus_per_replica == 4
    assert replace(PROFILE, tensor_parallel_size=4, data_parallel_size=2).gpus_per_replica == 8


def test_settings_that_planning_looks_at_are_planned_anew() -> None:
    for change in (
        {"replicas": 3},
        {"target_concurrency": 9},
        {"max_model_len_auto": True},
        {"gpu_share": 0.5},
    ):
        assert not replace(PROFILE, **change).plans_like(PROFILE)
    assert replace(PROFILE, limits=Limits(queue=1)).plans_like(PROFILE)


def test_the_defaults_are_those_that_the_documents_name() -> None:
    assert Limits() == Limits(512, 600.0, 60.0, 1800.0, 10.0)
    assert Routing() == Routing(1.0, 10.0, "x-session-id", 1.25)
    assert RestartPolicy() == RestartPolicy(5, 600.0, 1.0, 300.0, 0.2, 300.0)
    assert HealthPolicy() == HealthPolicy(1.0, 5.0, 3, 600.0, 30.0, 120.0)
    assert CommandSpec(("a",)) == CommandSpec(("a",), "/health", None)
    assert (PROFILE.engine, PROFILE.policy, PROFILE.data_parallel) == (
        EngineName.VLLM,
        Policy.LEAST_INFLIGHT,
        "replicas",
    )
    assert not PROFILE.max_model_len_auto


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (None, ()), ("sql=/adapters/sql", ("sql",)), (["sql=/a", "law=/b=c", "sql=/d"], ("sql", "law")),
        ([{"name": "sql", "path": "/a"}, {"path": "/b"}], ("sql",)), ({"name": "sql"}, ("sql",)), ([], ()), ("", ()),
    ],
)  # fmt: skip
def test_adapters_in_all_forms_that_vllm_reads(written: Any, names: tuple[str, ...]) -> None:
    profile = replace(PROFILE, flags={} if written is None else {"lora_modules": written})
    assert profile.adapter_names == names
    assert profile.base_name == "llama-8b"
    assert profile.model_names == ("llama-8b", *names)


def test_an_adapter_with_the_served_name_leaves_the_base_another_one() -> None:
    profile = replace(PROFILE, flags={"lora_modules": ["llama-8b=/a", "law=/b"]})
    assert profile.base_name == "llama-8b-base"
    assert profile.model_names == ("llama-8b", "law", "llama-8b-base")


def test_one_gpu_said_and_unsaid_are_the_same() -> None:
    assert replace(PROFILE, tensor_parallel_size=1, data_parallel_size=1).runs_like(PROFILE)
