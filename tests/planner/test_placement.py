from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuserved.core.placement import Gpu, Lease, NoFit, Placements, simulated, with_simulated
from gpuserved.core.planner.decide import place
from gpuserved.core.profile import EngineName, Profile

GIB = 1024**3


def host(count: int, links: bool = False) -> list[Gpu]:
    return [
        Gpu(n, f"GPU-{n}", "H100", 80 * GIB, tuple(m for m in (n ^ 4,) if links), memory_used_bytes=0)
        for n in range(count)
    ]


def profile(replicas: int | None = None, size: int | None = None, **more: object) -> Profile:
    given: dict[str, object] = {
        "name": "p", "model": "a/b", "served_name": "p", "max_model_len": 8192, "replicas": replicas,
        "tensor_parallel_size": size,
    } | more  # fmt: skip
    return Profile(**given)  # type: ignore[arg-type]  # the table above is the signature


def indexes(answer: Placements | NoFit) -> list[tuple[int, ...]]:
    assert isinstance(answer, Placements), answer
    return [tuple(gpu.index for gpu in one.gpus) for one in answer.replicas]


def refusal(answer: Placements | NoFit) -> NoFit:
    assert isinstance(answer, NoFit), answer
    return answer


def test_auto_is_one_replica_per_gpu_or_group() -> None:
    assert indexes(place(profile(), host(8))) == [(n,) for n in range(8)]
    assert indexes(place(profile(size=2), host(5))) == [(0, 1), (2, 3)]


def test_a_group_is_made_of_linked_gpus() -> None:
    assert indexes(place(profile(2, 2), host(8, links=True))) == [(0, 4), (1, 5)]


def test_without_gpus_replicas_go_to_the_cpu() -> None:
    unseen = place(profile(), [])
    assert indexes(unseen) == [()]
    assert isinstance(unseen, Placements)
    assert [warning.code for warning in unseen.warnings] == ["no_gpu"]
    meant = place(profile(gpus=()), [])
    assert isinstance(meant, Placements)
    assert meant.warnings == ()
    assert indexes(place(profile(2, gpus=()), host(4))) == [(), ()]
    assert indexes(place(profile(engine=EngineName.LLAMACPP), host(4))) == [()]


def test_too_many_replicas_do_not_fit_and_the_hint_does() -> None:
    no = refusal(place(profile(5, 2), host(8)))
    assert (no.code, no.hint) == ("does_not_fit", "replicas = 4, or tensor_parallel_size = 1")
    assert isinstance(place(profile(4, 2), host(8)), Placements)
    assert isinstance(place(profile(5, 1), host(8)), Placements)
    assert refusal(place(profile(None, 8), host(4))).hint == "tensor_parallel_size = 4"


def test_gpus_that_others_hold_are_named() -> None:
    leases = [Lease("GPU-0", "other-0"), Lease("GPU-1", "other-1")]
    no = refusal(place(profile(4), host(4), leases))
    assert no.code == "gpu_overlap"
    assert "GPU 0 by other-0" in no.message
    assert "replicas = 2" in no.hint
    assert indexes(place(profile(), host(4), leases)) == [(2,), (3,)]
    assert refusal(place(profile(gpus=("0", "1")), host(4), leases)).code == "gpu_overlap"


def test_gpus_are_named_by_index_or_uuid() -> None:
    assert indexes(place(profile(gpus=("GPU-3", "1")), host(4))) == [(1,), (3,)]
    no = refusal(place(profile(gpus=("7",)), host(4)))
    assert no.code == "does_not_fit"
    assert "7" in no.message


def test_a_replica_stays_where_it_is() -> None:
    keep = {"p-0": ["GPU-3"], "p-1": ["GPU-0"], "p-2": ["GPU-9"]}
    assert indexes(place(profile(3), host(4), keep=keep)) == [(3,), (0,), (1,)]


def test_simulated_gpus_are_for_the_look_alike_alone() -> None:
    sim = profile(engine=EngineName.SIM, flags={"gpus": 2, "gpu_memory_gib": 40})
    inventory = with_simulated(host(2), [sim, sim])
    assert [gpu.uuid for gpu in inventory] == ["GPU-0", "GPU-1", "SIM-0", "SIM-1"]
    assert [gpu.index for gpu in inventory] == [0, 1, 2, 3]
    assert simulated(sim)[0].memory_total_bytes == 40 * GIB
    assert indexes(place(sim, inventory)) == [(2,), (3,)]
    assert indexes(place(profile(), inventory)) == [(0,), (1,)]


def test_an_unset_length_is_warned_of() -> None:
    answer = place(profile(max_model_len=None), host(1))
    assert isinstance(answer, Placements)
    assert [warning.code for warning in answer.warnings] == ["max_model_len_unset"]


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(0, 16),
    replicas=st.none() | st.integers(0, 20),
    size=st.none() | st.integers(1, 8),
    allowed=st.none() | st.sets(st.integers(0, 17), max_size=8),
    held=st.sets(st.integers(0, 15), max_size=8),
    links=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_no_gpu_is_given_twice_and_the_order_of_the_input_does_not_matter(
    count: int,
    replicas: int | None,
    size: int | None,
    allowed: set[int] | None,
    held: set[int],
    links: bool,
    order: Random,
) -> None:
    gpus = host(count, links)
    leases = [Lease(f"GPU-{n}", f"other-{n}") for n in sorted(held)]
    wanted = profile(replicas, size, gpus=None if allowed is None else tuple(str(n) for n in sorted(allowed)))
    answer = place(wanted, gpus, leases)
    shuffled, turned = list(gpus), list(leases)
    order.shuffle(shuffled)
    order.shuffle(turned)
    assert place(wanted, shuffled, turned) == answer
    if isinstance(answer, NoFit):
        assert answer.message
        assert answer.hint
        return
    used = Counter(gpu.uuid for one in answer.replicas for gpu in one.gpus)
    assert all(times == 1 for times in used.values())
    assert not used.keys() & {lease.uuid for lease in leases}
    assert all(len(one.gpus) in {0, size or 1} for one in answer.replicas)
    assert replicas is None or len(answer.replicas) == replicas
    if allowed is not None:
        assert {gpu.index for one in answer.replicas for gpu in one.gpus} <= allowed
