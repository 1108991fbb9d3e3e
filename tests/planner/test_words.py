"""What a plan and a refusal say, for options put together by hand: no figure here depends on how memory is computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.placement import Gpu, NoFit
from gpuserved.core.planner import explain
from gpuserved.core.planner.kv import KvShape
from gpuserved.core.planner.memory import Card
from gpuserved.core.planner.model import ModelFacts
from gpuserved.core.planner.options import Asked, Option, Place, divides, kv_value_bytes, sizes
from gpuserved.core.planner.room import Room
from gpuserved.core.planner.topology import Group

GIB = configs.GIB
LLAMA = configs.facts(configs.LLAMA_8B)
DEEPSEEK = configs.facts(configs.DEEPSEEK_V3, 688_586_727_753)
GPUS = configs.host(8)


def card(tokens: int = 1000, **more: Any) -> Card:
    given: dict[str, Any] = {
        "total_bytes": 80 * GIB, "utilization": 0.9, "weights_bytes": 16 * GIB, "activation_bytes": 5 * GIB,
        "graph_bytes": GIB, "non_torch_bytes": GIB // 2, "kv_cache_bytes": 40 * GIB, "headroom_bytes": 8 * GIB,
        "margin_bytes": 0, "kv_cache_tokens": tokens, "shape": KvShape(), "source": "estimated",
    } | more  # fmt: skip
    return Card(**given)


def option(size: int, count: int, tokens: int = 1000, **more: Any) -> Option:
    """`count` replicas of `size` GPUs."""
    spans, source = more.pop("spans", False), more.pop("source", "estimated")
    groups = [tuple(GPUS[n * size : (n + 1) * size]) for n in range(count)]
    places = tuple(Place(Group(group, spans), card(tokens, source=source), 8192) for group in groups)
    best = more.pop("best", places[0] if places else None)
    given: dict[str, Any] = {"data_parallel_size": 1, "length": 8192, "concurrency": 10.0} | more
    return Option(tensor_parallel_size=size, places=places, best=best, **given)


def asked(facts: ModelFacts = LLAMA, **profile: Any) -> Asked:
    return Asked(configs.profile(**profile), facts, tuple(GPUS), {}, lambda _: None)


def room(
    allowed: list[Gpu] | None = None,
    free: list[Gpu] | None = None,
    taken: list[tuple[Gpu, str]] | None = None,
) -> Room:
    there = GPUS if allowed is None else allowed
    return Room(tuple(there), tuple(there if free is None else free), tuple(taken or ()))


def codes(question: Asked, chosen: Option, space: Room | None = None) -> list[str]:
    return [one.code for one in explain.warnings(question, chosen, space or room())]


def test_nothing_is_warned_of_where_nothing_is_wrong() -> None:
    assert codes(asked(target_concurrency=10), option(1, 8)) == []
    assert codes(asked(tensor_parallel_size=1), option(1, 8)) == []


@pytest.mark.parametrize(
    ("profile", "chosen", "code"),
    [
        ({"max_model_len": None}, option(1, 8, length=131_072), "max_model_len_unset"),
        (
            {"max_model_len": None, "max_model_len_auto": True},
            option(1, 8, length=131_071),
            "max_model_len_reduced",
        ),
        ({"target_concurrency": 11}, option(1, 8), "target_concurrency_missed"),
        ({}, option(2, 4, spans=True), "tp_spans_islands"),
    ],
)
def test_each_trap_is_named_and_no_other(profile: dict[str, Any], chosen: Option, code: str) -> None:
    assert codes(asked(**profile), chosen) == [code]


def test_one_group_across_islands_is_enough_to_be_warned_of() -> None:
    whole, across = option(2, 4).places, option(2, 4, spans=True).places
    assert codes(asked(), replace(option(2, 4), places=(*whole[:3], across[3]))) == ["tp_spans_islands"]


def test_a_length_that_is_neither_set_nor_cut_is_no_trap() -> None:
    assert codes(asked(max_model_len=None, max_model_len_auto=True), option(1, 8, length=131_072)) == []


def test_memory_that_no_formula_covers_and_gpus_that_are_set_aside() -> None:
    assert codes(asked(replace(LLAMA, uncounted=("a draft model",))), option(1, 8)) == ["memory_not_counted"]
    set_aside = [replace(GPUS[0], blocked="quarantined: Xid 79"), *GPUS[1:]]
    told = explain.warnings(asked(), option(1, 7), room(set_aside))
    assert [one.code for one in told] == ["gpu_quarantined"]
    assert told[0].message.endswith("GPU 0: quarantined: Xid 79")


def test_the_figures_of_the_warnings() -> None:
    question = asked(max_model_len=None, target_concurrency=12)
    unset, reduced, missed = explain.warnings(question, option(1, 8, length=4096, concurrency=9.96), room())
    assert "the model's longest is 131072 tokens, and 4096 are planned" in unset.message
    assert "the model's 131072 tokens does not fit; max_model_len is 4096" in reduced.message
    assert "holds 10.0 requests of 4096 tokens" in missed.message
    assert "target_concurrency is 12" in missed.message


def why(question: Asked, chosen: Option, *others: Option) -> tuple[str, ...]:
    feasible = sorted({chosen, *others}, key=lambda one: one.tensor_parallel_size)
    return explain.why(question, next(one for one in feasible if one == chosen), feasible)


def test_why_a_size_was_chosen() -> None:
    one, two, four = option(1, 8, 1000), option(2, 4, 5000), option(4, 2, 12_000)
    assert why(asked(), one) == ("the model fits on one GPU, so each replica gets one",)
    assert why(asked(), two) == ("2 is the smallest tensor-parallel size that fits",)
    assert why(asked(tensor_parallel_size=2), two, one) == ()
    small, wider = why(asked(), one, two, four)
    assert small.startswith("the model fits on one GPU")
    assert wider.startswith("4 replicas of 2 GPUs would hold 5000 tokens each, 5.0 times the 1000 here")
    (larger,) = why(asked(), two, one, four)
    assert larger.startswith(
        "4 replicas of 2 GPUs and not 8 replicas of 1 GPU: one holds 5.0 times the tokens (5000 against 1000)"
    )
    assert "carry 40 requests of 8192 tokens at once instead of 80" in larger
    (longer,) = why(asked(), replace(two, length=9000), one)
    assert longer.endswith("and takes 9000 tokens a request instead of 8192")
    (none,) = why(asked(), two, option(1, 8, 0))
    assert "one holds more than the tokens (5000 against 0)" in none
    assert why(asked(), option(8, 1, 9), option(4, 2, 9))[0].startswith(
        "1 replica of 8 GPUs and not 2 replicas of 4 GPUs"
    )


def test_why_of_data_parallelism_measurements_and_notes() -> None:
    split = "experts are split over all of them"
    assert split in why(asked(DEEPSEEK, data_parallel="internal"), option(1, 1, data_parallel_size=8))[-1]
    assert (
        "over 8 engines"
        in why(asked(DEEPSEEK, data_parallel="internal"), option(1, 1, data_parallel_size=8))[-1]
    )
    assert (
        "no experts to split" in why(asked(data_parallel="internal"), option(1, 1, data_parallel_size=8))[-1]
    )
    advice = 'data_parallel = "internal" would give each engine its own and split the 256 experts'
    assert why(asked(DEEPSEEK), option(8, 1))[-1].endswith(advice)
    assert not any(advice in each for each in why(asked(DEEPSEEK), option(1, 8)))
    assert not any("MLA" in each for each in why(asked(replace(DEEPSEEK, experts=0)), option(8, 1)))
    moe = configs.facts(configs.QWEN3_30B_A3B)
    assert not any("MLA" in each for each in why(asked(moe), option(8, 1)))
    told = why(
        asked(replace(LLAMA, notes=("a note",)), tensor_parallel_size=1), option(1, 2, source="measured")
    )
    assert told == ("memory as vLLM measured it at an earlier start", "a note")


@pytest.mark.parametrize(
    ("count", "size", "there", "hint"),
    [
        (9, 1, 8, "replicas = 8, or tensor_parallel_size = 0"),
        (3, 4, 8, "replicas = 2, or tensor_parallel_size = 2"),
        (2, 8, 8, "replicas = 1, or tensor_parallel_size = 4"),
        (1, 8, 4, "tensor_parallel_size = 4"),
        (2, 8, 4, "tensor_parallel_size = 4 and replicas = 1"),
    ],
)
def test_too_few_gpus(count: int, size: int, there: int, hint: str) -> None:
    no = explain.too_few(configs.profile(), count, size, there)
    assert no.hint == hint.removesuffix(", or tensor_parallel_size = 0")
    assert f"{count} x {size} GPUs are asked for" in no.message
    assert no.message.endswith(f"has {there} GPUs to use")
    assert explain.too_few(configs.profile(), 2, 1, 1).message.endswith("has 1 GPU to use")


def test_gpus_that_are_held() -> None:
    space = room(free=GPUS[3:], taken=[(GPUS[0], "by a-0"), (GPUS[2], "by b-1")])
    no = explain.overlap(configs.profile(tensor_parallel_size=2), 8, space)
    assert no.message == "p: 8 GPUs are needed and 5 are free; held: GPU 0 by a-0; GPU 2 by b-1"
    assert no.hint.startswith("replicas = 2, or stop what holds them")
    assert no.hint.endswith("profiles share a card where each sets gpu_share")
    assert explain.overlap(configs.profile(tensor_parallel_size=8), 8, space).hint.startswith(
        "stop what holds them"
    )
    assert "gpu_share" not in explain.overlap(configs.profile(gpu_share=0.5), 8, space).hint


@pytest.mark.parametrize(
    ("size", "there", "hint"),
    [(3, 8, "2, or 4"), (5, 8, "2, or 4"), (7, 8, "4, or 8"), (6, 4, "2, or 4"), (12, 16, "8, or 16")],
)
def test_the_nearest_sizes_that_divide(size: int, there: int, hint: str) -> None:
    no = explain.not_divisible(asked(), size, "because", there)
    assert no.hint == f"tensor_parallel_size = {hint}"
    assert no.message == f"p: tensor_parallel_size = {size}: because"


def test_what_divides() -> None:
    assert sizes(LLAMA, 16) == [1, 2, 4, 8, 16]
    assert divides(LLAMA, 3) == "32 attention heads cannot be divided by 3"
    odd = replace(LLAMA, attention_heads=24, kv_heads=6)
    assert divides(odd, 4) == "6 KV heads can be neither divided by 4 nor copied evenly"
    assert sizes(replace(odd, divisible=()), 24) == [1, 2, 3, 6, 12, 24]
    blocked = replace(LLAMA, divisible=(("intermediate_size", 36), ("width", 6)))
    assert divides(blocked, 4) == "width 6 cannot be divided by 4"
    assert divides(replace(LLAMA, attention_heads=0, kv_heads=0), 7) is None
    assert divides(DEEPSEEK, 16) is None, "MLA has no KV heads to divide"


def test_a_length_beyond_the_model_s() -> None:
    def refused(**profile: Any) -> NoFit | None:
        return explain.too_long(asked(**profile))

    assert refused(max_model_len=131_072) is None
    assert refused(max_model_len=None) is None
    no = refused(max_model_len=131_073)
    assert no is not None
    assert "max_model_len = 131073 is 1 tokens more than the model's 131072" in no.message
    assert no.hint.startswith("max_model_len = 131072")
    for flag in ("hf_overrides", "rope_scaling", "rope_theta"):
        assert refused(max_model_len=200_000, flags={flag: {}}) is None
    assert refused(max_model_len=200_000, env={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}) is None
    assert refused(max_model_len=200_000, flags={"dtype": "half"}, env={"A": "1"}) is not None
    assert explain.too_long(asked(replace(LLAMA, max_length=None), max_model_len=10**9)) is None


def test_where_some_replicas_fit_and_not_all() -> None:
    def no(**more: Any) -> NoFit:
        profile = {"replicas": more.pop("replicas", 5), "tensor_parallel_size": 2}
        return explain.none_feasible(
            asked(**profile), [option(2, 3), option(4, 1)], more.pop("space", room())
        )

    assert no().message == "p: 5 replicas of 2 GPUs are asked for, and 3 fit: 4 GPUs are missing"
    assert (no().code, no().hint) == ("does_not_fit", "replicas = 3")
    held = no(space=room(taken=[(GPUS[7], "by a-0")]))
    assert (held.code, held.message.split("; ")[1]) == ("gpu_overlap", "held: GPU 7 by a-0")
    single = explain.none_feasible(asked(replicas=9), [option(1, 8)], room())
    assert single.message == "p: 9 replicas of 1 GPU are asked for, and 8 fit: 1 GPU is missing"


def test_where_no_group_of_that_size_is_there() -> None:
    none = replace(option(4, 0), best=None)
    few = explain.none_feasible(asked(tensor_parallel_size=4), [none], room(GPUS[:2]))
    assert (few.code, few.hint) == ("does_not_fit", "tensor_parallel_size = 2")
    held = explain.none_feasible(
        asked(tensor_parallel_size=4), [none], room(free=GPUS[:2], taken=[(GPUS[2], "by a-0")])
    )
    assert held.code == "gpu_overlap"
    assert held.message.startswith("p: 4 GPUs are needed and 2 are free")
    twice = explain.none_feasible(asked(tensor_parallel_size=4, replicas=2), [none], room(GPUS[:7], GPUS[:2]))
    assert "2 x 4 GPUs are asked for" in twice.message
    engines = replace(none, data_parallel_size=2)
    assert explain.none_feasible(asked(), [engines], room(free=GPUS[:2])).message.startswith(
        "p: 8 GPUs are needed"
    )


def short(
    size: int = 1, *, gpus: list[Gpu] | None = None, taken: list[tuple[Gpu, str]] | None = None, **more: Any
) -> NoFit:
    group = Group(tuple((gpus or GPUS)[:size]))
    place = Place(group, card(**more), 0)
    question = asked(tensor_parallel_size=size)
    return explain.none_feasible(
        question, [replace(option(size, 0), best=place)], room(taken=taken, free=(gpus or GPUS)[:size])
    )


def test_what_is_short_of_what() -> None:
    """Llama 8B keeps 128 KiB a token: 8192 of them are one GiB, and the null block 2 MiB."""
    cache = short(kv_cache_bytes=GIB // 2, tokens=4096)
    assert cache.message.startswith(
        "p: the KV cache is short of 0.50 GiB for one request of 8192 tokens: 0.50 GiB (4096 tokens) are left on one GPU; "
        "weights 16.00 GiB, activations 5.00 GiB, CUDA graphs 1.00 GiB, other 0.50 GiB on one GPU, of 72.00 GiB "
        "(gpu_memory_utilization 0.9 of 80.00 GiB)"
    )
    assert cache.code == "does_not_fit"
    unsure = short(kv_cache_bytes=GIB, margin_bytes=GIB // 4)
    assert "short of 0.25 GiB" in unsure.message
    assert ", less 0.25 GiB that the estimate may be wrong by; weights" in unsure.message
    before = short(kv_cache_bytes=-3 * GIB)
    assert before.message.startswith("p: short of 3.00 GiB before the first token: weights")
    assert "on each of 2 GPUs" in short(2, kv_cache_bytes=-1).message


def test_who_else_is_on_the_card() -> None:
    busy = [replace(GPUS[0], memory_used_bytes=2 * GIB), *GPUS[1:]]
    assert "; GPU 0 is short of 2.00 GiB that others hold" in short(gpus=busy, kv_cache_bytes=-1).message
    little = [replace(GPUS[0], memory_used_bytes=GIB), *GPUS[1:]]
    assert "that others hold" not in short(gpus=little, kv_cache_bytes=-1).message
    held = short(kv_cache_bytes=-1, taken=[(GPUS[5], "by a-0")])
    assert held.message.endswith("; GPU 5 is held by a-0")
    assert held.code == "gpu_overlap", "with that one the model would have had a wider size"
    full = room(GPUS[:1], GPUS[:1], [(GPUS[5], "by a-0")])
    nearest = replace(option(1, 0), best=Place(Group(tuple(GPUS[:1])), card(kv_cache_bytes=-1), 0))
    assert explain.none_feasible(asked(), [nearest], full).code == "does_not_fit"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("auto", None),
        ("bfloat16", None),
        ("fp8", 1),
        ("fp8_e4m3", 1),
        ("fp8_e5m2", 1),
        ("int8", 1),
        ("float32", 4),
    ],
)
def test_bytes_of_a_number_of_the_cache(name: str, size: int | None) -> None:
    assert kv_value_bytes({"kv_cache_dtype": name}) == size
    assert kv_value_bytes({}) is None
