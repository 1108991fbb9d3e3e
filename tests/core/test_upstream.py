"""Which servers take requests, by their health checks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuserved.core.upstream import SILENT_MAX, Check, UpstreamRow, admitted, observe

CHECKS = st.lists(st.sampled_from(Check), max_size=30)


def after(checks: list[Check]) -> UpstreamRow:
    row = UpstreamRow()
    for check in checks:
        row = observe(row, check)
    return row


@given(CHECKS)
def test_the_last_word_counts_and_silence_only_when_it_lasts(checks: list[Check]) -> None:
    assert after([*checks, Check.OK]).up
    assert not after([*checks, Check.REFUSED]).up
    assert not after([*checks, Check.FAILING]).up
    assert after([*checks, Check.OK, *[Check.SILENT] * (SILENT_MAX - 1)]).up
    assert not after([*checks, Check.OK, *[Check.SILENT] * SILENT_MAX]).up


def test_silence_does_not_bring_a_server_up() -> None:
    assert not after([Check.SILENT]).up
    assert not after([Check.OK, Check.REFUSED, Check.SILENT]).up


@given(st.dictionaries(st.integers(), CHECKS, max_size=5))
def test_a_refusing_server_is_never_chosen_and_a_silent_one_only_as_the_last_resort(
    seen: dict[int, list[Check]],
) -> None:
    rows = {key: after(checks) for key, checks in seen.items()}
    chosen = admitted(rows)
    if any(row.up for row in rows.values()):
        assert chosen == {key for key, row in rows.items() if row.up}
    else:
        assert all(rows[key].said is Check.SILENT for key in chosen)
    assert not any(rows[key].said in {Check.REFUSED, Check.FAILING, None} for key in chosen)


def test_the_third_silent_check_in_a_row_takes_a_server_out() -> None:
    silent = [Check.SILENT, Check.SILENT]
    assert after([Check.OK, *silent]).up
    assert after([Check.OK, *silent, Check.OK, *silent]).up, "an answer between them begins a new row"
    assert not after([Check.OK, *silent, Check.SILENT]).up
