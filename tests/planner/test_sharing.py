"""Several profiles on a box, processes of others, and GPUs that are set aside."""

from __future__ import annotations

from dataclasses import replace

from tests.planner import configs

from gpuserved.core.placement import Foreign, Gpu, Lease, NoFit, Placements
from gpuserved.core.planner import topology
from gpuserved.core.planner.decide import place

GIB = configs.GIB
SMALL = configs.facts(configs.QWEN3_06B)
LLAMA = configs.facts(configs.LLAMA_8B)
BIG = configs.facts(configs.LLAMA_70B)


def placed(answer: Placements | NoFit) -> list[list[int]]:
    assert isinstance(answer, Placements), answer
    return [[gpu.index for gpu in one.gpus] for one in answer.replicas]


def busy(gpu: Gpu, gib: float) -> Gpu:
    used = int(gib * GIB)
    return replace(gpu, memory_used_bytes=used, foreign=(Foreign(4711, "anna", used),))


def test_shares_of_a_card_must_be_explicit_and_add_up() -> None:
    gpus = configs.host(1)
    half = configs.profile(gpu_share=0.5)
    first = place(half, gpus, facts=SMALL)
    assert isinstance(first, Placements)
    assert first.replicas[0].utilization == 0.43, "what vLLM has beside its budget is in the share, too"
    leases = [Lease("GPU-0", "a-0", 0.5)]
    assert placed(place(half, gpus, leases, facts=SMALL)) == [[0]]
    for share in (None, 0.6):
        no = place(configs.profile(gpu_share=share), gpus, leases, facts=SMALL)
        assert isinstance(no, NoFit)
        assert no.code == "gpu_overlap"
        assert "GPU 0 by a-0, 0.50 of it is free" in no.message
        assert ("gpu_share" in no.hint) == (share is None)


def test_a_foreign_process_is_named_and_refused_only_where_the_sum_does_not_fit() -> None:
    light, heavy = busy(configs.host(1)[0], 2), busy(configs.host(1)[0], 70)
    assert placed(place(configs.profile(), [light], facts=SMALL)) == [[0]]
    beside = place(configs.profile(), [busy(light, 30)], facts=LLAMA)
    assert isinstance(beside, Placements)
    assert beside.replicas[0].utilization == 0.57, "vLLM wants its share to be free"
    no = place(configs.profile(), [heavy], facts=LLAMA)
    assert isinstance(no, NoFit)
    assert "GPU 0 is short of 70.00 GiB that others hold" in no.message
    fixed = place(configs.profile(flags={"gpu_memory_utilization": 0.9}), [heavy], facts=LLAMA)
    assert isinstance(fixed, NoFit)
    assert fixed.code == "gpu_overlap"
    assert "PID 4711 of anna (71680 MiB)" in fixed.message


def test_a_busy_gpu_is_left_out_and_the_others_are_not_cut_down() -> None:
    gpus = configs.host(4)
    gpus[1] = busy(gpus[1], 60)
    answer = place(configs.profile(max_model_len=None), gpus, facts=LLAMA)
    assert placed(answer) == [[0], [2], [3]]


def test_quarantined_gpus_leave_fewer_replicas_and_a_warning() -> None:
    gpus = configs.host(4)
    gpus[2] = replace(gpus[2], blocked="quarantined: PID 12 of replica p-2 will not die")
    for profile in (configs.profile(replicas=4), configs.profile()):
        answer = place(profile, gpus, facts=LLAMA)
        assert placed(answer) == [[0], [1], [3]]
        assert isinstance(answer, Placements)
        assert "GPU 2: quarantined" in next(w.message for w in answer.warnings if w.code == "gpu_quarantined")
    assert placed(place(configs.profile(replicas=4, tensor_parallel_size=1), gpus)) == [[0], [1], [3]]
    pairs = place(configs.profile(max_model_len=4096, replicas=2, tensor_parallel_size=2), gpus, facts=LLAMA)
    assert placed(pairs) == [[0, 1]]


def test_groups_stay_inside_islands() -> None:
    two = [*configs.host(3), *configs.host(3, first=3)]
    assert [[g.index for g in island] for island in topology.islands(two)] == [[0, 1, 2], [3, 4, 5]]
    assert placed(place(configs.profile(tensor_parallel_size=2), two, facts=LLAMA)) == [[0, 1], [3, 4]]
    nodes = [replace(gpu, numa_node=gpu.index // 3) for gpu in configs.host(6, linked=False)]
    assert placed(place(configs.profile(tensor_parallel_size=2), nodes, facts=LLAMA)) == [[0, 1], [3, 4]]
    wide = place(configs.profile(tensor_parallel_size=4), two, facts=BIG)
    assert isinstance(wide, Placements)
    assert "tp_spans_islands" in [warning.code for warning in wide.warnings]


def test_a_replica_stays_where_it_is_and_new_ones_go_around_it() -> None:
    keep = {"p-0": ["GPU-3"], "p-1": ["GPU-1"]}
    assert placed(place(configs.profile(replicas=3), configs.host(4), keep=keep, facts=LLAMA)) == [
        [3],
        [1],
        [0],
    ]


def test_one_length_for_all_replicas() -> None:
    mixed = [*configs.host(1, 80, linked=False), *configs.host(1, 48, linked=False, first=1)]
    answer = place(configs.profile(max_model_len=None, max_model_len_auto=True), mixed, facts=LLAMA)
    assert isinstance(answer, Placements)
    assert {one.max_model_len for one in answer.replicas} == {131_072}


def test_internal_data_parallel_is_one_server_over_all_gpus() -> None:
    deepseek = configs.facts(configs.DEEPSEEK_V3, 688_586_727_753)
    profile = configs.profile(data_parallel="internal", tensor_parallel_size=1)
    answer = place(profile, configs.host(8, 141), facts=deepseek)
    assert isinstance(answer, Placements)
    one = answer.replicas[0]
    assert (len(answer.replicas), one.tensor_parallel_size, one.data_parallel_size, len(one.gpus)) == (
        1,
        1,
        8,
        8,
    )
    assert "experts are split" in " ".join(answer.why)
    dense = place(configs.profile(data_parallel="internal"), configs.host(4), facts=LLAMA)
    assert isinstance(dense, Placements)
    assert "no experts to split" in " ".join(dense.why)
    replicas = place(configs.profile(), configs.host(8, 141), facts=deepseek)
    assert isinstance(replicas, Placements)
    assert "would give each engine its own" in " ".join(replicas.why)


def test_a_cache_of_a_fixed_size() -> None:
    small = configs.profile(flags={"kv_cache_memory_bytes": 4 * GIB})
    answer = place(small, configs.host(1, 24), facts=LLAMA)
    assert isinstance(answer, Placements)
    card = answer.replicas[0].card
    assert card is not None
    assert card.kv_cache_bytes == 4 * GIB
    too_much = configs.profile(flags={"kv_cache_memory_bytes": 9 * GIB})
    assert isinstance(place(too_much, configs.host(1, 24), facts=LLAMA), NoFit)
