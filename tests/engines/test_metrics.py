"""Each engine's names for its figures, and what is read by them."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import pytest

from gpuserved.core.load import HISTOGRAMS, Scrape
from gpuserved.core.profile import EngineName
from gpuserved.engines.registry import Engines
from gpuserved.engines.vllm.like import VLLM_METRICS
from gpuserved.telemetry.metrics_text import scrape


@pytest.mark.parametrize("name", list(EngineName))
def test_an_engine_names_figures_that_there_are(name: EngineName, folder: Path) -> None:
    assert Engines(folder).named(name).metrics.keys() <= {each.name for each in fields(Scrape)}


def test_vllm_has_every_figure() -> None:
    assert VLLM_METRICS.keys() == {each.name for each in fields(Scrape)}
    assert {"ttft", "itl"} == HISTOGRAMS


def test_a_scrape_has_what_the_text_has_and_nothing_else() -> None:
    text = (
        b'vllm:num_requests_running{engine="0"} 2\n'
        b'vllm:kv_cache_usage_perc{engine="0"} 0.5\n'
        b'vllm:prompt_tokens_total{engine="0"} 30\n'
        b'vllm:time_to_first_token_seconds_bucket{le="1.0"} 3\n'
        b'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 4\n'
    )
    found = scrape(text, VLLM_METRICS)
    assert found == Scrape(
        running=2.0, kv_cache_ratio=0.5, prompt_tokens=30.0, ttft={1.0: 3.0, math.inf: 4.0}
    )
    assert found.kv_cache_pct == 50.0
    assert scrape(text, {"running": "other"}) == Scrape()
