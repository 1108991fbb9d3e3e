"""Each tensor-parallel size as an option: what its card is computed for, which replicas it has, and how long a request may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.placement import Gpu
from gpuserved.core.planner.memory import Measured, Setting
from gpuserved.core.planner.options import Asked, Option, Place, option
from gpuserved.core.planner.topology import Group
from gpuserved.core.planner.utilization import free_bytes

GIB = configs.GIB
SMALL = configs.facts(configs.QWEN3_06B)
LLAMA = configs.facts(configs.LLAMA_8B)
DEEPSEEK = configs.facts(configs.DEEPSEEK_V3, 688_586_727_753)


def asked(
    gpus: list[Gpu], facts: Any = SMALL, keep: dict[str, list[str]] | None = None, **profile: Any
) -> Asked:
    return Asked(configs.profile(**profile), facts, tuple(gpus), keep or {}, lambda _: None)


def indexes(found: Option) -> list[list[int]]:
    return [[gpu.index for gpu in place.group.gpus] for place in found.places]


def test_the_setting_of_a_card() -> None:
    (gpu,) = configs.host(1)
    flags: dict[str, Any] = {
        "gpu_memory_utilization": 0.8, "max_num_seqs": 64, "max_num_batched_tokens": 4096, "kv_cache_memory_bytes": 5,
        "kv_cache_dtype": "fp8", "enforce_eager": True,
    }  # fmt: skip
    found = asked([gpu], flags=flags).setting(gpu, 2, 4)
    assert (found.memory_total_bytes, found.gpu_name) == (gpu.memory_total_bytes, gpu.name)
    assert (found.tensor_parallel_size, found.data_parallel_size) == (2, 4)
    assert (found.utilization, found.kv_value_bytes, found.kv_cache_bytes, found.graphs) == (0.8, 1, 5, False)
    assert (found.max_num_seqs, found.max_num_batched_tokens) == (64, 4096)
    bare = asked([gpu]).setting(gpu, 1)
    assert (
        bare.data_parallel_size,
        bare.utilization,
        bare.kv_value_bytes,
        bare.kv_cache_bytes,
        bare.graphs,
    ) == (1, None, None, None, True)
    assert (bare.max_num_seqs, bare.max_num_batched_tokens, bare.measured) == (None, None, None)
    for odd in (0, -1, True, "64", 1.5):
        assert asked([gpu], flags={"max_num_seqs": odd}).setting(gpu, 1).max_num_seqs is None
    assert asked([gpu], flags={"max_num_seqs": 1}).setting(gpu, 1).max_num_seqs == 1


def test_what_a_start_measured_is_looked_up_by_the_setting() -> None:
    (gpu,) = configs.host(1)
    known = Measured(7 * GIB, 0.9)
    seen: list[Setting] = []

    def lookup(setting: Setting) -> Measured | None:
        seen.append(setting)
        return known if setting.tensor_parallel_size == 2 else None

    question = Asked(configs.profile(), SMALL, (gpu,), {}, lookup)
    assert question.setting(gpu, 2).measured == known
    assert question.setting(gpu, 1).measured is None
    assert [one.measured for one in seen] == [None, None]


def test_the_length_that_is_aimed_at() -> None:
    assert asked([], max_model_len=100).limit == 100
    assert asked([], max_model_len=None).limit == 40_960
    nameless = configs.facts(configs.llama(max_position_embeddings=None), 10**9)
    assert asked([], nameless, max_model_len=None).limit == 2048


@pytest.mark.parametrize(
    ("size", "linked", "apart"),
    [(1, 1.0, 1.0), (2, 0.9, 0.75), (4, 0.9**2, 0.75**2), (8, 0.9**3, 0.75**3), (6, 0.9**3, 0.75**3)],
)
def test_a_wider_group_loses_with_each_doubling(size: int, linked: float, apart: float) -> None:
    def of(gpus: list[Gpu], spans: bool = False) -> float:
        card = option(asked(configs.host(1)), 1).places[0].card
        return Option(size, 1, (Place(Group(tuple(gpus), spans), card, 1),), None, 1, 1.0).efficiency()

    assert of(configs.host(2)) == pytest.approx(linked)
    assert of(configs.host(2, linked=False)) == pytest.approx(apart)
    assert of(configs.host(2), spans=True) == pytest.approx(apart)


def test_replicas_of_each_size() -> None:
    eight = configs.host(8)
    assert indexes(option(asked(eight), 1)) == [[n] for n in range(8)]
    assert indexes(option(asked(eight), 4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert indexes(option(asked(eight, replicas=3), 2)) == [[0, 1], [2, 3], [4, 5]]
    assert indexes(option(asked(eight[:3]), 4)) == []
    assert option(asked(eight[:3]), 4).best is None
    found = option(asked(eight), 2)
    assert found.carried == 4 * found.concurrency
    assert found.best == found.places[0]


def test_groups_that_span_islands_are_left_out_where_others_are_there() -> None:
    two = [*configs.host(3), *configs.host(3, first=3)]
    assert indexes(option(asked(two), 2)) == [[0, 1], [3, 4]]
    assert indexes(option(asked(two, replicas=3), 2)) == [[0, 1], [3, 4], [2, 5]], "unless they are asked for"
    assert indexes(option(asked(two), 4)) == [[0, 1, 2, 3]], "or there are no others"


def test_a_replica_stays_in_its_group() -> None:
    keep = {"p-0": ["GPU-3", "GPU-2"], "p-1": ["GPU-9", "GPU-0"]}
    assert indexes(option(asked(configs.host(6), keep=keep, replicas=2), 2)) == [[3, 2], [0, 1]]


def test_data_parallel_inside_one_server() -> None:
    def internal(count: int, size: int, **profile: Any) -> Option:
        return option(asked(configs.host(count), data_parallel="internal", **profile), size)

    assert indexes(internal(8, 2)) == [list(range(8))]
    assert internal(8, 2).data_parallel_size == 4
    assert internal(7, 2).data_parallel_size == 3
    assert internal(8, 2, replicas=2).data_parallel_size == 2
    assert indexes(internal(8, 2, replicas=2)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert internal(8, 2, data_parallel_size=3).data_parallel_size == 3
    assert indexes(internal(8, 2, data_parallel_size=3)) == [[0, 1, 2, 3, 4, 5]]
    alone = option(asked(configs.host(1)), 1)
    assert internal(4, 1).concurrency == pytest.approx(4 * alone.concurrency, rel=0.2)
    assert option(asked(configs.host(8), data_parallel_size=3), 2).data_parallel_size == 1, (
        "replicas share nothing"
    )


def test_the_replica_with_the_least_room_counts() -> None:
    mixed = [*configs.host(1, 80, linked=False), *configs.host(1, 24, linked=False, first=1)]
    found = option(asked(mixed), 1)
    assert [place.card.total_bytes for place in found.places] == [gpu.memory_total_bytes for gpu in mixed]
    assert found.concurrency == found.places[1].card.concurrency(SMALL, 8192)
    assert found.best == found.places[0]
    pair = option(asked(mixed), 2)
    assert pair.places[0].card.total_bytes == mixed[1].memory_total_bytes, "of a group the tightest GPU does"


def test_one_length_for_all_that_hold_half_of_the_longest() -> None:
    def length(*sizes: int, **profile: Any) -> tuple[int, int]:
        gpus = [gpu for n, size in enumerate(sizes) for gpu in configs.host(1, size, linked=False, first=n)]
        found = option(asked(gpus, LLAMA, **profile), 1)
        return len(found.places), found.length

    assert length(80, 48, 24, max_model_len=None) == (2, 131_072), "the smallest holds too little of it"
    assert length(24, 24, max_model_len=None)[0] == 2
    assert 8192 <= length(24, max_model_len=None)[1] < 131_072
    assert length(80, 48, 24, max_model_len=8192) == (3, 8192), "a length that is set is set"
    assert length(24, max_model_len=131_072) == (0, 0)
    big = configs.facts(configs.LLAMA_70B)
    assert option(asked(configs.host(2), big, max_model_len=None), 1).length == 0


def test_a_length_that_most_of_the_cards_hold_is_kept_by_those_that_hold_half_of_it() -> None:
    """A 24 GB card holds 36,000 tokens beside an 8B model: of 65,536 more than a half, and then all get its length."""

    def found(longest: int) -> tuple[int, int]:
        facts = configs.facts(configs.llama(max_position_embeddings=longest))
        gpus = [*configs.host(1, 80, linked=False), *configs.host(1, 24, linked=False, first=1)]
        each = option(asked(gpus, facts, max_model_len=None), 1)
        assert each.length <= min(place.longest for place in each.places)
        return len(each.places), each.length

    assert found(131_072) == (1, 131_072)
    both, length = found(65_536)
    assert (both, 30_000 < length < 40_000) == (2, True)


def test_a_model_of_few_tokens_fits_with_all_of_them() -> None:
    for longest in (1, 1000, 2048):
        facts = configs.facts(configs.llama(max_position_embeddings=longest))
        assert option(asked(configs.host(1), facts, max_model_len=None), 1).length == longest
        none = option(asked([], facts, max_model_len=None), 1)
        assert (none.length, none.places, none.concurrency, none.carried) == (0, (), 0.0, 0.0)


def test_a_group_is_as_roomy_as_the_gpu_of_it_that_others_use_most() -> None:
    first, second = configs.host(2)
    for used in ({"memory_used_bytes": 30 * GIB}, {"memory_total_bytes": 40 * GIB}):
        fuller = replace(second, **used)  # type: ignore[arg-type]  # the fields of a Gpu
        both = option(asked([replace(first, **used), fuller]), 2).places[0].card  # type: ignore[arg-type]
        pair = option(asked([first, fuller]), 2).places[0].card
        assert pair == both
        assert option(asked([fuller, first]), 2).places[0].card == pair


def test_gpus_that_differ_only_in_what_the_driver_keeps_have_cards_of_their_own() -> None:
    first, second = configs.host(2, linked=False)
    more = replace(second, memory_reserved_bytes=4 * GIB)
    places = option(replace(asked([first, more]), version="0.26.0"), 1).places
    assert places[0].card.kv_cache_bytes - places[1].card.kv_cache_bytes > 2 * GIB


def test_what_nobody_knows_of_a_gpu_is_no_room() -> None:
    unknown = replace(configs.host(1)[0], memory_total_bytes=None, memory_used_bytes=None)
    assert asked([]).setting(unknown, 1).memory_total_bytes == 0
    assert free_bytes(unknown) == 0
    assert free_bytes(replace(unknown, memory_total_bytes=10)) == 10
    assert free_bytes(replace(unknown, memory_total_bytes=10, memory_used_bytes=3)) == 7


def test_one_group_without_links_makes_an_option_a_slow_one() -> None:
    linked, apart = configs.host(2), configs.host(2, linked=False, first=2)
    assert option(asked([*linked, *apart], replicas=2), 2).efficiency() == pytest.approx(0.75)
    assert option(asked(linked), 2).efficiency() == pytest.approx(0.9)


def test_engines_of_one_server_share_what_there_is() -> None:
    def internal(count: int, size: int, **profile: Any) -> Option:
        return option(asked(configs.host(count), data_parallel="internal", **profile), size)

    assert internal(1, 1).data_parallel_size == 1
    assert internal(3, 2, replicas=2).data_parallel_size == 1, "two of them do not fit, and say so"
    assert indexes(internal(8, 1, data_parallel_size=3)) == [[0, 1, 2]], "one server, however many would fit"


def test_async_scheduling_is_on_unless_it_is_turned_off() -> None:
    (gpu,) = configs.host(1)
    found = [
        asked([gpu], flags=flags).setting(gpu, 1).async_scheduling
        for flags in ({}, {"async_scheduling": True}, {"async_scheduling": False})
    ]
    assert found == [True, True, False]
    assert Setting(1) == Setting(1, graphs=True, async_scheduling=True)
