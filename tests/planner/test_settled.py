"""A daemon that starts finds what was decided before, and often less to decide it by: it must not refuse what runs."""

from __future__ import annotations

import pytest
from tests.planner import configs

from gpuserved.core.placement import Gpu
from gpuserved.core.profile import Profile
from gpuserved.planning.arrange import Arranged, Inputs, Solution, Wanted, arrange

H100 = Gpu(
    0,
    "GPU-0",
    "NVIDIA H100 80GB HBM3",
    85_520_809_984,
    memory_used_bytes=503_316_480,
    memory_reserved_bytes=503_316_480,
)
LLAMA = configs.facts(configs.LLAMA_8B)


def half(name: str) -> Profile:
    return configs.profile(name=name, gpu_share=0.5, max_model_len=8192)


def utilizations(found: Arranged) -> list[object]:
    return [each.profile.flags.get("gpu_memory_utilization") for each in found.assignments]


def test_what_was_planned_with_the_model_is_taken_up_without_it() -> None:
    """Nobody reads the model's files for replicas that run; a vocabulary of unknown size leaves less of a share."""
    new = {name: Wanted("", "", half(name)) for name in ("a", "b")}
    known = {name: Inputs(LLAMA, version="0.26.0") for name in new}
    planned = arrange(new, [H100], {}, known)
    solved = planned.solutions()
    settled = {name: Wanted("", "", half(name), solved=solved[name]) for name in new}
    held = {each.replica: each.gpu_uuids for each in planned.assignments}
    assert utilizations(arrange(settled, [H100], held)) == utilizations(planned) == [0.44, 0.44]


@pytest.mark.parametrize("utilization", [0.47, 0.5, 0.995])
def test_what_an_earlier_version_planned_is_taken_up_by_one_that_would_plan_less(utilization: float) -> None:
    settled = {"a": Wanted("", "", half("a"), solved=Solution(1, utilization=utilization))}
    assert utilizations(arrange(settled, [H100], {"a-0": ("GPU-0",)})) == [utilization]
