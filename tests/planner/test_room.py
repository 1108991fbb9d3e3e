"""Which GPUs there are for a profile, which of them go together, and what is said of those that are taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.placement import (
    Foreign,
    Gpu,
    Lease,
    NoFit,
    Placed,
    Placements,
    simulated,
    with_simulated,
)
from gpuserved.core.planner import plain, topology
from gpuserved.core.planner.decide import place, unmeasured
from gpuserved.core.planner.memory import Setting
from gpuserved.core.planner.model import Unknown
from gpuserved.core.planner.room import (
    allowed,
    foreigners,
    room,
)
from gpuserved.core.profile import EngineName

GIB = configs.GIB


def gpu(index: int, *links: int, **more: Any) -> Gpu:
    given: dict[str, Any] = {"memory_total_bytes": 100 * GIB, "memory_used_bytes": 0, "nvlink": links} | more
    return Gpu(index, f"GPU-{index}", "H100", **given)


def indexes(gpus: Any) -> list[int]:
    return [one.index for one in gpus]


def obstacles(leases: list[Lease], first: Gpu | None = None, **profile: Any) -> list[str]:
    return [why for _, why in room(configs.profile(**profile), [first or gpu(0)], leases).taken]


def test_which_gpus_a_profile_may_use() -> None:
    there = [gpu(2), gpu(0), gpu(1), Gpu(3, "SIM-0", "S")]
    assert indexes(allowed(configs.profile(), there)) == [0, 1, 2]
    assert indexes(allowed(configs.profile(engine=EngineName.SIM), there)) == [3]
    assert allowed(configs.profile(engine=EngineName.LLAMACPP), there) == []
    assert indexes(allowed(configs.profile(engine=EngineName.LLAMACPP, gpus=("1",)), there)) == [1]
    assert indexes(allowed(configs.profile(gpus=("GPU-2", "2", "0")), there)) == [0, 2], "named twice is one"
    no = allowed(configs.profile(gpus=("7", "0", "GPU-9")), there)
    assert isinstance(no, NoFit)
    assert no.message == "p: gpus names 7, GPU-9, which this host does not have"
    assert no.hint == 'GPUs here: 0 (H100), 1 (H100), 2 (H100); correct gpus, or use gpus = "all"'
    none = allowed(configs.profile(gpus=("7",)), [])
    assert isinstance(none, NoFit)
    assert none.hint.startswith("GPUs here: none;")


@pytest.mark.parametrize(
    ("held", "share", "why"),
    [
        ([], None, []),
        ([1.0], None, ["by a-0"]),
        ([0.995], None, ["by a-0"]),
        ([0.98], None, ["by a-0, 0.02 of it is free"]),
        ([0.5], 0.5, []),
        ([0.3, 0.3, 0.3], 0.1, []),
        ([0.5], 0.51, ["by a-0, 0.50 of it is free"]),
        ([0.3, 0.2], 0.6, ["by a-0, b-0, 0.50 of it is free"]),
    ],
)
def test_shares_of_a_card(held: list[float], share: float | None, why: list[str]) -> None:
    leases = [Lease("GPU-0", f"{'ab'[n % 2]}-0", part) for n, part in enumerate(held)]
    assert obstacles([*leases, Lease("GPU-5", "c-0")], gpu_share=share) == why


def test_what_is_blocked_says_why_whoever_holds_it() -> None:
    assert obstacles([Lease("GPU-0", "a-0")], gpu(0, blocked="lost")) == ["lost"]
    space = room(configs.profile(), [gpu(0), gpu(1), gpu(2)], [Lease("GPU-1", "a-0")])
    assert (indexes(space.allowed), indexes(space.free), indexes(one for one, _ in space.taken)) == (
        [0, 1, 2],
        [0, 2],
        [1],
    )


def test_who_holds_memory() -> None:
    known = (
        Foreign(12, "anna", 1024**3),
        Foreign(13, None, 5 * 1024**2 + 1),
        Foreign(14, "bob", None),
        Foreign(15),
    )
    assert (
        foreigners(gpu(0, foreign=known))
        == "PID 12 of anna (1024 MiB), PID 13 (5 MiB), PID 14 of bob, PID 15"
    )
    assert foreigners(gpu(0, memory_used_bytes=None)) == "processes that are not ours (0 MiB)"


def test_islands_are_what_is_connected_however_many_links_away() -> None:
    chain = [gpu(0, 1), gpu(1, 0, 2), gpu(2, 1), gpu(3), gpu(4, 5), gpu(5, 4, 9)]
    assert [indexes(island) for island in topology.islands(chain)] == [[0, 1, 2], [3], [4, 5]]
    assert [indexes(island) for island in topology.islands(chain[::-1])] == [[0, 1, 2], [3], [4, 5]]
    nodes = [gpu(0, numa_node=1), gpu(1, numa_node=0), gpu(2, numa_node=1), gpu(3), gpu(4)]
    assert [indexes(island) for island in topology.islands(nodes)] == [[0, 2], [1], [3, 4]]


def grouped(gpus: list[Gpu], size: int) -> list[tuple[list[int], bool]]:
    return [(indexes(group.gpus), group.spans) for group in topology.groups(gpus, size)]


def test_groups_are_whole_inside_islands_first_and_then_across() -> None:
    islands = [gpu(0, 1, 2), gpu(1, 0, 2), gpu(2, 0, 1), gpu(3, 4, 5), gpu(4, 3, 5), gpu(5, 3, 4)]
    assert grouped(islands, 2) == [([0, 1], False), ([3, 4], False), ([2, 5], True)]
    assert grouped(islands, 3) == [([0, 1, 2], False), ([3, 4, 5], False)]
    assert grouped(islands, 4) == [([0, 1, 2, 3], True)]
    assert grouped(islands[::-1], 1) == [([n], False) for n in range(6)]
    assert grouped(islands, 7) == []


def test_the_nearest_go_together() -> None:
    ring = [gpu(0, 1, 3), gpu(1, 0, 2), gpu(2, 1, 3), gpu(3, 2, 0)]
    assert grouped(ring, 2) == [([0, 1], False), ([2, 3], False)]
    far = [gpu(0, 3), gpu(1, 2), gpu(2, 1, 3), gpu(3, 0, 2)]
    assert grouped(far, 2) == [([0, 3], False), ([1, 2], False)]
    assert grouped(far, 3) == [([0, 1, 3], False)], "linked first, then by index"
    rest = [gpu(0, 9, numa_node=0), gpu(1, 8, numa_node=1), gpu(2, 7, numa_node=0)]
    assert grouped(rest, 2) == [([0, 2], True)], "the same NUMA node before a lower index"


def test_who_may_stay() -> None:
    def kept(size: int, **keep: list[str]) -> dict[str, list[int]]:
        return {
            name: indexes(group)
            for name, group in topology.kept_groups([gpu(n) for n in range(4)], size, keep).items()
        }

    assert kept(2, b=["GPU-1", "GPU-0"], a=["GPU-2", "GPU-3"]) == {"a": [2, 3], "b": [1, 0]}
    assert kept(2, a=["GPU-0"]) == {}, "another size"
    assert kept(1, a=["GPU-9"]) == {}, "a GPU that is gone"
    assert kept(1, a=["GPU-0"], b=["GPU-0"]) == {"a": [0]}, "one GPU for two"
    assert kept(1, a=["GPU-0", "GPU-0"]) == {"a": [0]}, "named twice"


def test_simulated_gpus_come_after_the_real_ones() -> None:
    sim = configs.profile(engine=EngineName.SIM, flags={"gpus": 2, "gpu_memory_gib": 0.5})
    (first, second) = simulated(sim)
    assert (first.index, first.uuid, first.name, first.memory_used_bytes) == (0, "SIM-0", "Simulated GPU", 0)
    assert (first.memory_total_bytes, second.uuid) == (GIB // 2, "SIM-1")
    assert simulated(replace(sim, flags={"gpus": 1}))[0].memory_total_bytes == 80 * GIB
    odd: list[dict[str, Any]] = [{}, {"gpus": True}, {"gpus": 1.5}, {"gpus": 2, "gpu_memory_gib": "80"}]
    for flags in odd:
        assert simulated(replace(sim, flags=flags)) == []
    assert simulated(replace(sim, engine=EngineName.VLLM)) == []
    more = replace(sim, flags={"gpus": 3})
    found = with_simulated([gpu(4), gpu(1)], [sim, more])
    assert [(one.index, one.uuid) for one in found] == [
        (1, "GPU-1"), (4, "GPU-4"), (5, "SIM-0"), (6, "SIM-1"), (7, "SIM-2"),
    ]  # fmt: skip
    assert [one.memory_total_bytes for one in found[2:]] == [GIB // 2, GIB // 2, 80 * GIB]
    assert [one.index for one in with_simulated([], [sim])] == [0, 1]
    assert with_simulated(found, [more]) == found, "those that are there stay as they are"


def test_a_profile_with_what_was_decided_in_it() -> None:
    placed = Placed("p-0", (gpu(0),), 2, 4, max_model_len=4096, utilization=0.9)
    profile = configs.profile(max_model_len=None, flags={"dtype": "half"})
    done = placed.resolved(profile)
    assert (done.tensor_parallel_size, done.data_parallel_size, done.max_model_len) == (2, 4, 4096)
    assert done.flags == {"dtype": "half", "gpu_memory_utilization": 0.9}
    assert profile.flags == {"dtype": "half"}
    assert replace(placed, utilization=None).resolved(profile).flags == {"dtype": "half"}
    assert replace(placed, max_model_len=None).resolved(replace(profile, max_model_len=7)).max_model_len == 7
    fixed = replace(profile, flags={"kv_cache_memory_bytes": 5})
    assert placed.resolved(fixed).flags == {"kv_cache_memory_bytes": 5}


def placed(answer: Placements | NoFit) -> list[list[int]]:
    assert isinstance(answer, Placements), answer
    return [indexes(one.gpus) for one in answer.replicas]


def test_placement_by_numbers_alone() -> None:
    gpus, lease = [gpu(n) for n in range(4)], Lease("GPU-0", "a-0")
    assert placed(place(configs.profile(), gpus, [lease])) == [[1], [2], [3]], (
        "what others hold is left alone"
    )
    assert isinstance(place(configs.profile(gpus=("0", "1")), gpus, [lease]), NoFit), (
        "unless its GPUs are named"
    )
    assert placed(place(configs.profile(data_parallel="internal"), gpus)) == [[0]]
    assert placed(place(configs.profile(replicas=0), gpus)) == []
    wide = place(configs.profile(tensor_parallel_size=2, data_parallel_size=2), gpus)
    assert placed(wide) == [[0, 1, 2, 3]]
    assert isinstance(wide, Placements)
    assert (wide.replicas[0].tensor_parallel_size, wide.replicas[0].data_parallel_size) == (2, 2)
    assert isinstance(
        place(configs.profile(tensor_parallel_size=3), gpus, [lease, Lease("GPU-1", "b-0")]), NoFit
    )


def test_without_gpus_as_many_as_are_asked_for_run_on_the_cpu() -> None:
    assert placed(place(configs.profile(replicas=3), [])) == [[], [], []]
    assert placed(place(configs.profile(replicas=0), [])) == []
    one = place(configs.profile(tensor_parallel_size=2), [])
    assert isinstance(one, Placements)
    assert one.replicas[0].tensor_parallel_size == 2


def test_gpus_that_are_set_aside_leave_fewer_replicas() -> None:
    gpus = [gpu(0, blocked="lost"), gpu(1), gpu(2), gpu(3)]
    fewer = place(configs.profile(replicas=4), gpus)
    assert placed(fewer) == [[1], [2], [3]]
    assert isinstance(fewer, Placements)
    assert [one.code for one in fewer.warnings] == ["gpu_quarantined"]
    assert placed(place(configs.profile(replicas=2, tensor_parallel_size=2), gpus)) == [[1, 2]]
    held = [Lease("GPU-1", "a-0")]
    assert isinstance(place(configs.profile(replicas=4), gpus, held), NoFit), "not for what others hold"
    assert isinstance(place(configs.profile(replicas=1, tensor_parallel_size=4), gpus), NoFit)


def test_the_share_of_a_replica_is_that_of_its_fullest_gpu() -> None:
    gpus = [gpu(0, memory_used_bytes=40 * GIB), gpu(1, memory_used_bytes=20 * GIB), gpu(2), gpu(3)]
    answer = place(configs.profile(tensor_parallel_size=2), gpus)
    assert isinstance(answer, Placements)
    assert [one.utilization for one in answer.replicas] == [0.55, None]
    other = place(configs.profile(tensor_parallel_size=2, engine=EngineName.COMMAND), gpus)
    assert isinstance(other, Placements)
    assert [one.utilization for one in other.replicas] == [None, None]


@pytest.mark.parametrize(
    ("engine", "profile", "codes"),
    [
        (EngineName.VLLM, {}, []),
        (EngineName.VLLM, {"max_model_len": None}, ["max_model_len_unset"]),
        (EngineName.VLLM, {"max_model_len": None, "max_model_len_auto": True}, []),
        (EngineName.COMMAND, {"max_model_len": None}, []),
    ],
)
def test_what_is_warned_of(engine: EngineName, profile: dict[str, Any], codes: list[str]) -> None:
    answer = place(configs.profile(engine=engine, **profile), [gpu(0)])
    assert isinstance(answer, Placements)
    assert [one.code for one in answer.warnings] == codes
    unseen = place(configs.profile(engine=engine, **profile), [])
    assert isinstance(unseen, Placements)
    assert [one.code for one in unseen.warnings] == (["no_gpu"] if engine is EngineName.VLLM else []) + codes


def test_a_model_that_nobody_knows() -> None:
    unknown = Unknown("unknown_architecture", "novel: cannot be planned", "do this")
    answer = place(configs.profile(), [gpu(0)], facts=unknown)
    assert isinstance(answer, Placements)
    assert [(one.code, one.message) for one in answer.warnings] == [
        ("unknown_architecture", "p: novel: cannot be planned. do this")
    ]
    other = place(configs.profile(engine=EngineName.COMMAND), [gpu(0)], facts=unknown)
    assert isinstance(other, Placements)
    assert other.warnings == ()
    space = room(configs.profile(gpus=()), [], [])
    cpu = plain.place(configs.profile(gpus=()), space, {}, unknown)
    assert isinstance(cpu, Placements)
    assert cpu.warnings == (), "on the CPU its memory is not planned anyway"
    assert unmeasured(Setting(1)) is None


def test_gpus_whose_memory_nobody_knows_are_placed_by_numbers() -> None:
    facts = configs.facts(configs.LLAMA_70B)
    assert placed(place(configs.profile(), [gpu(0), gpu(1, memory_total_bytes=None)], facts=facts)) == [
        [0],
        [1],
    ]


def test_only_its_own_replicas_stay() -> None:
    keep = {"p-0": ["GPU-1"], "other-0": ["GPU-0"], "p-1": ["GPU-3"]}
    gpus = [gpu(n) for n in range(4)]
    assert placed(place(configs.profile(replicas=3), gpus, keep=keep)) == [[1], [3], [0]]
    assert placed(place(configs.profile(name="p-x", replicas=2), gpus, keep={"p-0": ["GPU-3"]})) == [[0], [1]]


def test_the_names_of_replicas_where_gpus_are_set_aside() -> None:
    assert topology.names("p", 3, ["p-2"], blocked=False) == ["p-0", "p-1", "p-2"]
    assert topology.names("p", 3, ["p-10", "p-2"], blocked=True) == ["p-0", "p-2", "p-10"]
    assert topology.names("p", 2, ["p-10", "p-2", "p-3"], blocked=True) == ["p-2", "p-3"], (
        "the lowest numbers stay"
    )
    assert topology.names("p", 2, [], blocked=True) == ["p-0", "p-1"]
