"""What an apply says of each replica: the words come from the profile's own declaration, so no setting can be missed."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from tests.core.test_profile import RESTARTS

from gpuserved.core.assignment import Assignment
from gpuserved.core.profile import Profile, Takes
from gpuserved.planning.arrange import changes, difference

OLD = Profile(name="llama", model="/models/llama", served_name="llama-8b")
SHOWN = {"flags": "[vllm] dtype", "env": "[env]"}


def test_every_field_says_what_its_change_takes() -> None:
    assert all(isinstance(each.metadata["takes"], Takes) for each in fields(Profile))
    of_process = {each.name for each in fields(Profile) if each.metadata["takes"] is Takes.PROCESS}
    assert of_process == RESTARTS.keys(), "a new setting of the engine needs an example here"


@pytest.mark.parametrize("name", RESTARTS)
def test_a_replaced_replica_says_which_setting_changed(name: str) -> None:
    new = replace(OLD, **{name: RESTARTS[name]})
    [change] = changes({"llama-0": Assignment("llama-0", OLD)}, [Assignment("llama-0", new)])
    assert (change.action, change.why) == ("replace", f"changed: {SHOWN.get(name, name)}")


def test_one_gpu_said_is_no_change_that_could_be_named() -> None:
    new = replace(OLD, tensor_parallel_size=1, model="/m")
    assert difference(OLD, new) == "changed: model"
