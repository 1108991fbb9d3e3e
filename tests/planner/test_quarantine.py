"""Placement around GPUs that are set aside: who stays, who moves, who waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuserved.api.errors import Refused
from gpuserved.core.placement import Gpu
from gpuserved.core.profile import EngineName, Profile
from gpuserved.planning.arrange import Arranged, Solution, Wanted, arrange

GIB = 1024**3


def gpus(count: int) -> list[Gpu]:
    return [Gpu(n, f"SIM-{n}", "Simulated GPU", 80 * GIB, memory_used_bytes=0) for n in range(count)]


def wanted(replicas: int | None, size: int = 1, **more: object) -> dict[str, Wanted]:
    given_: dict[str, object] = {
        "name": "p", "model": "m", "served_name": "p", "engine": EngineName.SIM, "replicas": replicas,
        "tensor_parallel_size": size, "max_model_len": 8192,
    } | more  # fmt: skip
    profile = Profile(**given_)  # type: ignore[arg-type]  # the table above is the signature
    return {"p": Wanted("", "", profile, solved=Solution(size))}


def held_by(arranged: Arranged) -> dict[str, tuple[str, ...]]:
    return {each.replica: each.gpu_uuids for each in arranged.assignments}


def test_only_the_replica_of_the_quarantined_gpu_is_touched() -> None:
    """With `replicas = "auto"` and every GPU taken: it waits, and the others keep their names and GPUs."""
    for profile in (wanted(None), wanted(4)):
        before = held_by(arrange(profile, gpus(4), {}))
        after = held_by(arrange(profile, gpus(4), before, quarantined={"SIM-1": "quarantined: fan"}))
        assert after == before, "the replica keeps the GPU that it waits for"
        found = arrange(profile, gpus(4), before, quarantined={"SIM-1": "quarantined: fan"})
        placed = [one.replica for one in found.placements["p"].replicas]
        assert placed == ["p-0", "p-2", "p-3"]
        assert [w.code for w in found.warnings] == ["gpu_quarantined"]
        assert "GPU 1: quarantined: fan" in found.warnings[0].message


def test_a_free_gpu_takes_the_replica_over() -> None:
    before = held_by(arrange(wanted(3), gpus(4), {}))
    after = held_by(arrange(wanted(3), gpus(4), before, quarantined={"SIM-1": "x"}))
    assert after == {"p-0": ("SIM-0",), "p-1": ("SIM-3",), "p-2": ("SIM-2",)}
    again = held_by(arrange(wanted(3), gpus(4), after))
    assert again == after, "after the release nobody moves back"


def test_a_group_with_one_bad_gpu_waits_or_moves_as_a_whole() -> None:
    before = held_by(arrange(wanted(2, 2), gpus(4), {}))
    assert before == {"p-0": ("SIM-0", "SIM-1"), "p-1": ("SIM-2", "SIM-3")}
    assert held_by(arrange(wanted(2, 2), gpus(4), before, quarantined={"SIM-3": "x"})) == before
    spare = held_by(arrange(wanted(2, 2), gpus(5), before, quarantined={"SIM-3": "x"}))
    assert spare == {"p-0": ("SIM-0", "SIM-1"), "p-1": ("SIM-2", "SIM-4")}


def test_a_fleet_without_a_single_good_gpu_waits_and_is_no_error() -> None:
    """Else a daemon that is restarted beside a dead GPU would not start at all."""
    before = held_by(arrange(wanted(1), gpus(1), {}))
    assert held_by(arrange(wanted(1), gpus(1), before, quarantined={"SIM-0": "x"})) == before


def test_a_new_profile_is_refused_where_only_quarantined_gpus_are_left() -> None:
    fresh = {"p": Wanted("", "", wanted(1)["p"].profile)}
    with pytest.raises(Refused, match="quarantined: fan"):
        arrange(fresh, gpus(1), {}, quarantined={"SIM-0": "quarantined: fan"})


def test_who_waits_gives_way_to_who_runs() -> None:
    """p-1 waits for GPUs of which p-0 got one meanwhile: when they are good again, p-0 stays and p-1 goes elsewhere, or waits on."""
    profile = wanted(None, 2)
    held = {"p-0": ("SIM-1", "SIM-3"), "p-1": ("SIM-2", "SIM-3")}
    for blocked, other in (({"SIM-0": "x"}, ("SIM-2", "SIM-3")), ({}, ("SIM-0", "SIM-2"))):
        found = held_by(arrange(profile, gpus(4), held, quarantined=blocked, waiting=["p-1"]))
        assert found == {"p-0": ("SIM-1", "SIM-3"), "p-1": other}


def sim(name: str, replicas: int, size: int = 1) -> Wanted:
    found = wanted(replicas, size)["p"]
    return replace(found, profile=replace(found.profile, name=name))


def test_a_profile_that_grows_does_not_push_another_one_off_its_gpus() -> None:
    """Whichever of them was applied first: a grows around b, or not at all."""
    before = {"a-0": ("SIM-0",), "b-0": ("SIM-1",)}
    small, large = {"a": sim("a", 1), "b": sim("b", 1)}, {"a": sim("a", 2), "b": sim("b", 1)}
    assert held_by(arrange(small, gpus(3), before)) == before
    assert held_by(arrange(large, gpus(3), before)) == before | {"a-1": ("SIM-2",)}
    with pytest.raises(Refused, match="GPU 1 by b-0"):
        arrange(large, gpus(2), before)
    anew = large | {"a": replace(large["a"], solved=None)}
    assert held_by(arrange(anew, gpus(3), before)) == before | {"a-1": ("SIM-2",)}


def test_one_that_waits_goes_on_waiting_where_its_other_gpus_were_given_away() -> None:
    """b waited for GPU 1 of its two, and a got GPU 0 meanwhile: the release of GPU 1 is no error, and takes nothing from a."""
    both = {"b": sim("b", 1, 2), "a": sim("a", 1)}
    held = {"b-0": ("SIM-0", "SIM-1"), "a-0": ("SIM-0",)}
    found = arrange(both, gpus(2), held, waiting=["b-0"])
    assert held_by(found) == held
    assert [one.replica for one in found.placements["b"].replicas] == []


@settings(deadline=None)
@given(
    count=st.integers(1, 8),
    replicas=st.none() | st.integers(1, 8),
    size=st.integers(1, 3),
    bad=st.lists(st.sets(st.integers(0, 7), max_size=8), min_size=1, max_size=6),
)
def test_whatever_is_set_aside_and_released(
    count: int, replicas: int | None, size: int, bad: list[set[int]]
) -> None:
    """Nobody is placed on a bad GPU, none is given twice, those on good GPUs never move, and all come back in the end."""
    if size > count or (replicas or 1) * size > count:
        return
    profile = wanted(replicas, size)
    held = held_by(arrange(profile, gpus(count), {}))
    everybody = running = set(held)
    for each in [*bad, set()]:
        blocked = {f"SIM-{n}": "x" for n in each}
        found = arrange(profile, gpus(count), held, quarantined=blocked, waiting=everybody - running)
        placed = {one.replica: {gpu.uuid for gpu in one.gpus} for one in found.placements["p"].replicas}
        used = [uuid for uuids in placed.values() for uuid in uuids]
        assert len(used) == len(set(used))
        assert not set(used) & set(blocked)
        for name, before in held.items():
            if name in running and not set(before) & set(blocked):
                assert placed.get(name) == set(before), (name, before, placed)
        held, running = held_by(found), set(placed)
        assert set(held) == everybody
    assert running == everybody
