from __future__ import annotations

from pathlib import Path

from tests.planner import configs

from gpuserved.core.planner import memory
from gpuserved.core.planner.memory import Measured, Setting
from gpuserved.planning.measured import KEPT, MeasuredStore, key_of

GIB = configs.GIB
FACTS = configs.facts(configs.LLAMA_8B)
H100 = int(configs.TOTALS_GIB[80] * GIB)
FOUND = Measured(int(52.5 * GIB), 0.92, int(14.99 * GIB), int(5.2 * GIB), int(0.5 * GIB), 430_000, "0.32.0")


def test_figures_are_found_again_by_another_process(tmp_path: Path) -> None:
    first, second = MeasuredStore(tmp_path), MeasuredStore(tmp_path)
    assert second.find("a") is None
    first.add("a", "org/model", "H100", FOUND)
    assert second.find("a") == first.find("a") == FOUND
    second.add("b", "org/model", "H100", FOUND)
    assert first.find("a") == first.find("b") == FOUND


def test_a_damaged_file_says_nothing_and_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "measured.json").write_text("{}\nnonsense")
    store = MeasuredStore(tmp_path)
    assert store.find("a") is None
    store.add("a", "org/model", "H100", FOUND)
    assert MeasuredStore(tmp_path).find("a") == FOUND


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    store = MeasuredStore(tmp_path)
    for n in range(KEPT + 3):
        store.add(f"k{n}", "m", "g", FOUND)
    assert store.find("k0") is None
    assert store.find(f"k{KEPT + 2}") == FOUND


def test_a_key_differs_with_all_that_memory_depends_on() -> None:
    profile = configs.profile()
    base = Setting(H100, "H100")
    key = key_of("id", base, profile, "0.32.0")
    others = [
        key_of("other", base, profile, "0.32.0"),
        key_of("id", Setting(H100, "H200"), profile, "0.32.0"),
        key_of("id", Setting(H100, "H100", 2), profile, "0.32.0"),
        key_of("id", base, configs.profile(flags={"enforce_eager": True}), "0.32.0"),
        key_of("id", base, configs.profile(env={"VLLM_ATTENTION_BACKEND": "X"}), "0.32.0"),
        key_of("id", base, profile, "0.33.0"),
    ]
    assert len({key, *others}) == 7
    moved = configs.profile(flags={"gpu_memory_utilization": 0.5}, max_model_len=1)
    assert key_of("id", base, moved, "0.32.0") == key, "these it can be carried over between"


def test_a_measurement_beats_the_estimate_and_moves_with_the_utilisation() -> None:
    same = memory.card(FACTS, Setting(H100, "H100", measured=FOUND))
    assert (same.source, same.kv_cache_bytes) == ("measured", FOUND.kv_cache_bytes)
    assert same.weights_bytes == FOUND.weights_bytes
    less = memory.card(FACTS, Setting(H100, "H100", utilization=0.82, measured=FOUND))
    assert abs(FOUND.kv_cache_bytes - less.kv_cache_bytes - 0.1 * H100) < 1000
    more = memory.card(FACTS, Setting(H100, "H100", utilization=0.95, measured=FOUND))
    assert 0 < more.kv_cache_bytes - FOUND.kv_cache_bytes < 0.03 * H100
    for card in (same, less, more):
        parts = (
            card.weights_bytes + card.activation_bytes + card.graph_bytes + card.non_torch_bytes
            + card.kv_cache_bytes + card.headroom_bytes
        )  # fmt: skip
        assert parts == H100


def test_graphs_that_a_release_captures_from_what_is_left_over_are_not_in_the_budget() -> None:
    """0.26 logs 0.98 GiB of graphs for this model and takes none of it from the KV cache: 56.51 GiB are what it says."""
    found = Measured(int(56.51 * GIB), 0.92, int(15.0 * GIB), graph_bytes=int(0.98 * GIB), version="0.26.0")
    card = memory.card(FACTS, Setting(H100, "H100", measured=found))
    assert card.graph_bytes == 0
    assert card.activation_bytes > GIB
    later = Measured(int(55.5 * GIB), 0.92, int(15.0 * GIB), graph_bytes=int(0.98 * GIB), version="0.32.0")
    assert memory.card(FACTS, Setting(H100, "H100", measured=later)).graph_bytes == int(0.98 * GIB)
