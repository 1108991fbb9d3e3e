"""KV cache that vLLM 0.26.0 reported on an H100, against the plan for the same flags.

`measured_rows.json` says how each row was measured, and whether the memory model was made with it or planned it beforehand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.planner import configs

from gpuserved.core.placement import Gpu, NoFit, Placements
from gpuserved.core.planner import architecture, kv, memory
from gpuserved.core.planner.architecture import Files
from gpuserved.core.planner.decide import place, unmeasured
from gpuserved.core.planner.memory import Card
from gpuserved.core.planner.model import ModelFacts
from gpuserved.core.planner.options import Asked
from gpuserved.core.planner.weights import as_started

DATA: dict[str, Any] = json.loads((Path(__file__).parent / "measured_rows.json").read_text())
ROWS: list[dict[str, Any]] = DATA["rows"]
SOURCE = DATA["source"]
CARD = Gpu(
    0, "GPU-0", SOURCE["gpu"], SOURCE["memory_total_bytes"], memory_used_bytes=0, memory_reserved_bytes=SOURCE["memory_reserved_bytes"]
)  # fmt: skip
each_row = pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])


def model(row: dict[str, Any]) -> ModelFacts:
    files = Files(row["file_bytes"], "index") if "file_bytes" in row else None
    found = architecture.read(row["config"], files, row["name"])
    assert isinstance(found, ModelFacts), found
    return found


def planned(
    row: dict[str, Any], version: str | None = SOURCE["vllm"], **more: Any
) -> tuple[ModelFacts, Card]:
    flags = {name: value for name, value in row["flags"].items() if name != "max_model_len"} | more
    profile = configs.profile(flags=flags, max_model_len=row["flags"]["max_model_len"])
    facts = as_started(model(row), flags)
    asked = Asked(profile, facts, (CARD,), {}, unmeasured, version)
    return facts, memory.card(facts, asked.setting(CARD, 1))


@each_row
def test_kv_bytes_are_within_a_twentieth_and_never_above(row: dict[str, Any]) -> None:
    reported = row["reported"]["kv_cache_bytes"]
    open_facts, as_is = planned(row)
    assert 0.95 * reported <= as_is.kv_cache_bytes <= reported
    facts, given = planned(row, gpu_memory_utilization=row["flags"].get("gpu_memory_utilization", 0.92))
    assert 0.95 * reported <= given.kv_cache_bytes <= reported
    assert given.margin_bytes >= 0.002 * CARD.memory_total_bytes if CARD.memory_total_bytes else False
    assert facts == open_facts


@each_row
def test_requests_at_once_are_never_more_than_vllm_counts(row: dict[str, Any]) -> None:
    """Models with windows among them: two batches are under way at once, and a window keeps the tokens of both."""
    facts, card = planned(row)
    length, reported = row["flags"]["max_model_len"], row["reported"]["concurrency"]
    assert 0.95 * reported <= card.concurrency(facts, length) <= reported + 0.005


@each_row
def test_what_is_said_to_fit_is_what_vllm_would_take(row: dict[str, Any]) -> None:
    facts, card = planned(row)
    longest = card.longest(facts, facts.max_length or 0)
    assert longest > 0
    assert kv.request_bytes(facts, card.shape, longest) <= row["reported"]["kv_cache_bytes"]
    profile = configs.profile(flags=row["flags"], max_model_len=longest)
    assert isinstance(place(profile, [CARD], facts=model(row), version=SOURCE["vllm"]), Placements)


@each_row
def test_other_releases_are_planned_no_higher(row: dict[str, Any]) -> None:
    """Later ones count what 0.26 leaves out, and without a version the most that any takes is kept free."""
    reported = row["reported"]["kv_cache_bytes"]
    _, measured = planned(row)
    for version in ("0.27.0", "0.32.0+cpu", None):
        _, card = planned(row, version)
        assert card.kv_cache_bytes <= min(reported, measured.kv_cache_bytes)


def test_a_length_at_the_edge_is_refused_rather_than_promised() -> None:
    """vLLM gave this model 8800 tokens; asked for 8704 with so little to spare, the plan says no, and by how much."""
    row = next(row for row in ROWS if row["name"] == "qwen3-32b-edge")
    profile = configs.profile(flags=row["flags"], max_model_len=8704)
    no = place(profile, [CARD], facts=model(row), version=SOURCE["vllm"])
    assert isinstance(no, NoFit)
    assert "short of" in no.message
    shorter = configs.profile(flags=row["flags"], max_model_len=int(no.hint.split()[-1]))
    assert isinstance(place(shorter, [CARD], facts=model(row), version=SOURCE["vllm"]), Placements)


def test_rows_that_were_planned_before_they_were_measured_are_there() -> None:
    roles = [row["role"] for row in ROWS]
    assert roles.count("held") >= 8
    assert set(roles) == set(SOURCE["roles"])
