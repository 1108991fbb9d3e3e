"""The policies in front of real processes: look-alikes with a prefix cache, judged by their own counters."""

from __future__ import annotations

from tests.e2e.box import Box
from tests.e2e.texts import SERVED
from tests.policy.live import Load, measure, sim_profile


def test_prefix_finds_more_in_the_engines_caches_than_least_inflight(box: Box) -> None:
    profile, load = (
        sim_profile(4, kv_cache_tokens=9000),  # of two, chance alone finds half of what was said before
        Load(conversations=12, systems=12, turns=6, think_s=0.1),
    )
    box.up({SERVED: profile})
    plain = measure(box, profile, "least_inflight", load, 1)
    tied = measure(box, profile, "prefix", load, 2)
    assert sum(plain.requests) == sum(tied.requests) == load.conversations * load.turns
    assert tied.hit_pct > plain.hit_pct + 8  # 18 to 33 were seen
    assert min(tied.requests) > 0
