"""Row 27: the supervisor is killed at its own steps. `make failpoints` does this for every step, many times over."""

from __future__ import annotations

import concurrent.futures
import os
from pathlib import Path

import pytest
from tests.failpoints.__main__ import play
from tests.failpoints.census import Census
from tests.failpoints.script import ALL

AT_ONCE = 3
STEPS = (
    "spawn.leased", "spawn.told", "spawn.answered", "save.renamed", "act.saved", "exit.recorded", "stop.signalled",
    "adopt.stray", "roll.saved", "down.begun",
    "upgrade.launched", "router.serving",
)  # fmt: skip
"""One of each room; what each of them once found is in the changelog."""


@pytest.mark.fault(27)
@pytest.mark.timeout(400)
def test_the_supervisor_dies_at_a_step_and_its_successor_has_all_under_control(tmp_path: Path) -> None:
    census = Census()
    census.start()
    seeds = [ALL.index(step) for step in STEPS]
    try:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            results = list(pool.map(lambda seed: play(seed, census, tmp_path), seeds))
    finally:
        census.end()
    wrong = {(r.script.seed, r.script.point): (r.wrong, r.log[-4000:]) for r in results if r.wrong}
    assert not wrong
    assert all(result.struck for result in results), [r.script for r in results if not r.struck]
    assert not [name for name in os.listdir("/proc") if _is_of(name, [r.top for r in results])]


def _is_of(name: str, tops: list[str]) -> bool:
    """Is this process one of a run that has ended?"""
    try:
        return name.isdigit() and any(
            os.fsencode(top) in Path(f"/proc/{name}/environ").read_bytes() for top in tops
        )
    except OSError:
        return False
