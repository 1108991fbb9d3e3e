"""From results to figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserved.bench.connection import Reply
from gpuserved.bench.figures import Goal, Outcome, Result, percentile, read, spread_ms, summary
from gpuserved.cli.bench import _notes, _table


def ok(ttft_s: float, e2e_s: float, tokens: int, replica: str = "a-0") -> Result:
    return Result(
        Outcome.OK, replica, ttft_s=ttft_s, e2e_s=e2e_s, output_tokens=tokens, prompt_tokens=10, itl_s=(0.1,)
    )


@given(st.lists(st.floats(0, 1e6), min_size=1).map(sorted), st.integers(1, 100))
def test_a_percentile_is_a_value_that_enough_others_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values)
    assert sum(value < found for value in values) < percent / 100 * len(values)


def test_what_nobody_measured_is_none() -> None:
    assert spread_ms([None, None]) is None
    run = summary([Result(Outcome.LOST, why="no answer")], 2.0, 1.0, Goal())
    assert (run["ttft_ms"], run["output_tokens_per_s"], run["goodput_per_s"]) == (None, None, None)
    assert run["lost_pct"] == 100


def test_failures_and_losses_are_percents_of_all() -> None:
    results = [
        ok(0.1, 1.1, 11), ok(0.2, 1.2, 11, "a-1"), Result(Outcome.LOST, "a-1", "cut"),
        Result(Outcome.REFUSED, why="503 busy"),
    ]  # fmt: skip
    run = summary(results, 4.0, 1.0, Goal(ttft_s=0.15))
    assert (run["failed_pct"], run["lost_pct"]) == (50, 25)
    assert run["output_tokens_per_s"] == pytest.approx(5.5)
    assert (run["goodput_per_s"], run["goodput_pct"]) == (0.25, 25)
    assert run["tpot_ms"]["p50"] == pytest.approx(100)
    assert run["replicas"]["a-1"]["requests"] == 2
    assert run["replicas"]["a-1"]["failed"] == 1
    assert run["failures"] == {"lost: cut": 1, "refused: 503 busy": 1}


def test_the_table_shows_two_runs_side_by_side() -> None:
    run = summary([ok(0.1, 1.1, 11)], 2.0, 1.0, Goal())
    shown = _table({"router": run, "direct": run})
    assert "first token" in shown
    assert shown.splitlines()[0].split() == ["router", "direct"]
    assert sum("direct" in line for line in shown.splitlines()) == 5


def test_a_client_that_is_late_says_so() -> None:
    run = summary([Result(Outcome.OK, late_s=0.05, e2e_s=1.0)], 1.0, 1.0, Goal())
    assert any("sent late" in line for line in _notes("router", run))


def reply(*events: bytes, status: int = 200, whole: bool = True) -> Reply:
    return Reply(
        status, "a-0", sse=True, events=[(10.0 + n, data) for n, data in enumerate(events)], whole=whole
    )


CHUNK = b'{"choices":[{"delta":{"content":"x"}}]}'
ROLE = b'{"choices":[{"delta":{"role":"assistant","content":""}}]}'
USAGE = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}'


def test_times_count_from_when_the_request_was_due() -> None:
    result = read(reply(ROLE, CHUNK, CHUNK, USAGE, b"[DONE]"), due=8.0, sent=9.5, ended=15.0)
    assert result.outcome is Outcome.OK
    assert (result.ttft_s, result.e2e_s, result.late_s) == (3.0, 4.0, 1.5)
    assert result.itl_s == (1.0,)
    assert (result.prompt_tokens, result.output_tokens) == (7, 3)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (reply(CHUNK), Outcome.LOST),
        (reply(CHUNK, b"[DONE]", whole=False), Outcome.LOST),
        (reply(CHUNK, b'{"error":{"message":"died"}}', b"[DONE]"), Outcome.ERROR),
        (reply(CHUNK, b"{broken", b"[DONE]"), Outcome.ERROR),
        (reply(status=503), Outcome.REFUSED),
        (reply(status=429), Outcome.REFUSED),
        (reply(status=500), Outcome.ERROR),
        (reply(status=0, whole=False), Outcome.LOST),
    ],
)
def test_every_bad_end_has_its_name(answer: Reply, outcome: Outcome) -> None:
    assert read(answer, due=0, sent=0, ended=1).outcome is outcome
