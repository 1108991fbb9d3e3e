"""The pure half of the screen: cells, columns, filters, the log ring, shares of a height, what a question says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from tests.tui.fleets import NOW, SCENES, many, normal, replica, status

from gpuserve_tui import cells
from gpuserve_tui.model.actions import BY_ID
from gpuserve_tui.model.board import arranged
from gpuserve_tui.model.changes import question, replica_intent, scale_intent
from gpuserve_tui.model.filters import BadFilter, parse
from gpuserve_tui.model.logbuffer import LogBuffer, LogLine, compact, log_line
from gpuserve_tui.settings import load
from gpuserve_tui.view.bars import alerts, rollout_line
from gpuserve_tui.view.gpus import GPU_NARROW, gpu_rows
from gpuserve_tui.view.layout import choose, header_cells, row_cells, share
from gpuserve_tui.view.replicas import (
    REPLICA_NARROW,
    REPLICA_WIDE,
    busiest,
    imbalanced,
    queueing,
    replica_rows,
)
from gpuserved.api.errors import Invalid
from gpuserved.api.types import ModelView, RolloutView

anything = st.text(max_size=60)


@given(anything, st.integers(0, 40), st.booleans())
def test_a_fitted_text_has_exactly_its_width(text: str, width: int, right: bool) -> None:
    assert cell_len(cells.fit(cells.plain(text), width, right=right)) == width


@given(anything, st.integers(5, 40))
def test_the_middle_goes_and_both_ends_stay(text: str, width: int) -> None:
    text = cells.plain(text)
    fitted = cells.fit_middle(text, width)
    assert cell_len(fitted) == width
    if cell_len(text) <= width:
        assert fitted.rstrip() == text.rstrip()


@given(anything)
def test_what_is_shown_cannot_drive_a_terminal(text: str) -> None:
    shown = cells.plain(text)
    assert shown.isprintable()
    assert "\n" not in shown


def test_escape_sequences_go_whole() -> None:
    assert cells.plain("a\x1b[31mred\x1b[0m\x1b]52;c;aGk=\x07 b\tc\x00") == "ared b c·"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (87.4, "87"), (999, "999"), (999.9, "1.0k"), (2811, "2.8k"), (18_400, "18k"), (1_250_000, "1.2M")],
)  # fmt: skip
def test_rates_are_short(value: float | None, text: str) -> None:
    assert cells.short(value) == text
    assert len(cells.short(value)) <= 4


def test_bars_and_sparks_stay_in_their_cells() -> None:
    assert cells.spark([-245.0, None, -1.0], 5, cells.UNICODE, 100.0) == "  ▁ ▁", (
        "a nonsensical figure stops no screen"
    )
    for share_of in (None, -1.0, 0.0, 0.37, 1.0, 9.0):
        assert len(cells.bar(share_of, 8, cells.UNICODE)) == 8
    assert cells.spark([None, 0.0, 5.0, 10.0], 6, cells.UNICODE) == "   ▁▅█"
    assert cells.spark([], 4, cells.UNICODE) == "    "
    assert cells.spark([0.0, 0.0], 2, cells.ASCII) == "__"


@given(st.integers(20, 200), st.sampled_from([GPU_NARROW, REPLICA_NARROW, REPLICA_WIDE]))
def test_lines_of_a_table_are_as_wide_as_their_columns(width: int, spec: object) -> None:
    columns = choose(spec, width)  # type: ignore[arg-type]  # one of the three above
    wide = spec is REPLICA_WIDE
    rows = replica_rows(
        normal().replicas, cells.UNICODE, wide=wide, marked=frozenset(), uneven=frozenset(), busy={}, now=NOW
    )
    if spec is GPU_NARROW:
        rows = gpu_rows(SCENES["gpu-lost"]().gpus, normal().replicas, cells.UNICODE, wide=False)
    total = sum(cell_len(cell.text) for cell in header_cells(columns))
    least = sum(column.width + 1 for column in spec if column.rank == 0)  # type: ignore[attr-defined]
    assert total <= max(width, least) + 1
    for row in rows:
        assert sum(cell_len(cell.text) for cell in row_cells(row, columns, total)) == total


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", 8), ("qwen-3", 1), ("QWEN", 8), ("!qwen-3", 7), ("state:failed", 1), ("gpu:5", 1), ("state:ready !gpu:1", 4),
        ("/qwen-[12]/", 2), ("cuda", 1), ("model:qwen3", 8), ("nosuch:3", 0),
    ],
)  # fmt: skip
def test_filters(text: str, found: int) -> None:
    assert len(arranged(normal().replicas, parse(text), "id", descending=False)) == found


def test_a_broken_expression_is_named() -> None:
    with pytest.raises(BadFilter, match="no regular expression"):
        parse("/[/")


@given(st.integers(1, 120), st.integers(20, 200), st.integers(0, 70), st.integers(0, 70))
def test_no_line_is_given_away_twice(height: int, width: int, gpus: int, replicas: int) -> None:
    lines = share(height, width, gpus, replicas)
    assert min(lines) >= 0
    assert sum(lines) <= max(height, 1)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"current": "qwen-4"}, "change 1 of 8 (10s)  qwen-4: loading weights 38%, then canary"),
        ({"current": "qwen-6", "done": 3}, "change 4 of 8 (10s)  qwen-6: drains, 3 in flight"),
        ({"done": 3, "reason": "waits: qwen-4 is DRAINING"}, "change 3 of 8 (10s)  waits: qwen-4 is DRAINING"),
        ({"current": "qwen-9"}, "change 1 of 8 (10s)"),
        ({"current": "qwen-0", "direction": "back", "reason": "boom"}, "rolling back 1 of 8 (10s)  qwen-0: ready  boom"),
        ({"outcome": "done"}, ""),
    ],
)  # fmt: skip
def test_the_steps_of_a_rolling_change(more: dict[str, Any], says: str) -> None:
    values: dict[str, Any] = {"direction": "forward", "done": 0, "total": 8, "began_at": 90.0}
    roll = RolloutView(profile="qwen", **values | more)
    line = rollout_line(msgspec.structs.replace(normal(), rollouts=[roll]), 100.0)
    text = "".join(cell.text for cell in line)
    assert text.endswith(says)
    assert bool(text) == bool(says)


def test_the_models_with_the_longest_queues_have_rows() -> None:
    models = [
        ModelView(name=f"m{n}", replicas=1, ready=1, queued=queued)
        for n, queued in enumerate((0, 5, None, 7))
    ]
    assert [model.name for model in busiest(models, 2)] == ["m1", "m3"]
    assert busiest(models[:1], 5) == []
    assert queueing(models) == 2


def test_what_goes_first() -> None:
    assert share(21, 80, 8, 8) == (9, 10, 1, 1)
    assert share(19, 80, 8, 8).trends == 0
    assert share(17, 80, 8, 8)[2:] == (0, 0)
    assert share(13, 60, 8, 8) == (0, 10, 0, 3)


lines = st.lists(st.text(max_size=8), max_size=30)


@given(st.lists(st.tuples(st.booleans(), lines), max_size=8), st.sampled_from(["", "a", "!a"]))
def test_the_ring_shows_what_the_filter_lets_through(
    steps: list[tuple[bool, list[str]]], wanted: str
) -> None:
    """Against a plain list, over appends, pages of the past and trims."""
    buffer = LogBuffer(kept=40)
    test = parse(wanted)
    buffer.filter((lambda line: test.matches(line.text)) if wanted else None)
    model: list[str] = []
    for older, texts in steps:
        made = [LogLine("a-0", text, None) for text in texts]
        if older:
            buffer.prepend(made)
            model = texts + model
        else:
            buffer.append(made)
            model = model + texts
    model = model[-len(buffer) :] if len(buffer) else []
    assert [buffer.line(n).text for n in buffer.shown] == [text for text in model if test.matches(text)]
    buffer.filter(None)
    assert [buffer.line(n).text for n in buffer.shown] == model


def test_the_ring_forgets_the_oldest_and_counts_what_it_never_saw() -> None:
    buffer = LogBuffer(kept=1000)
    trimmed = buffer.append((LogLine("a-0", str(n), None) for n in range(5000)), dropped=812)
    assert trimmed == 4001
    assert len(buffer) == 1000
    assert buffer.dropped == 812
    buffer.append([], dropped=3)
    assert "3 lines not shown" in buffer.line(buffer.shown[-1]).text


def test_lines_as_vllm_writes_them() -> None:
    raw = "(EngineCore pid=4711) WARNING 11-24 02:02:43 [scheduler.py:90] preempted [/]"
    line = log_line("a-0", raw, 1.0)
    assert line.level == 2
    assert compact(line) == "02:02:43 WARN  scheduler: preempted [/]"
    assert log_line("a-0", "Loading: 10%\rLoading: 90%\r", None).text == "Loading: 90%"
    assert log_line("a-0", "nothing about ERRORS here", None).level is None
    assert len(log_line("a-0", "x" * 10_000, None).text) == 4096


def test_imbalance_is_against_the_median() -> None:
    idle_one = [replica(0, in_flight=0), *(replica(n, in_flight=20) for n in range(1, 5))]
    assert imbalanced(idle_one) == frozenset(), "one idle replica makes nobody else overloaded"
    assert imbalanced([*idle_one, replica(5, in_flight=90)]) == {"qwen-5"}
    assert imbalanced([replica(0, in_flight=0), replica(1, in_flight=99)]) == frozenset(), "two are no crowd"


def test_alerts_begin_with_the_worst() -> None:
    found = [alert.text for alert in alerts(SCENES["gpu-lost"]())]
    assert found[0] == "GPU 7 LOST"
    assert "qwen-5 KV 97% + 14 preemptions/min" in found
    assert alerts(status([], [])) == []


def test_a_change_is_about_those_that_can() -> None:
    fleet = normal()
    asked = replica_intent(BY_ID["start"], fleet, fleet.replicas)
    assert [name for name, _ in asked.targets] == ["qwen-7"]
    assert question(asked, fleet) is None


def test_scaling_to_nothing_wants_the_name() -> None:
    one = status([], [replica(0)])
    down = question(scale_intent(BY_ID["scale_down"], one, "qwen"), one)
    assert down is not None
    assert down.typed == "qwen"
    up = question(scale_intent(BY_ID["scale_up"], one, "qwen"), one)
    assert up is not None
    assert up.typed is None


def test_scaling_counts_from_those_that_are_to_stay() -> None:
    """One that is on its way out is neither had back by `-` nor counted by `+`."""
    going = msgspec.structs.replace(replica(2), state="DRAINING", leaving=True)
    fleet = status([], [replica(0), replica(1), going])
    assert scale_intent(BY_ID["scale_down"], fleet, "qwen").replicas == 1
    assert scale_intent(BY_ID["scale_up"], fleet, "qwen").replicas == 3


def test_many_names_are_cut() -> None:
    fleet = msgspec.structs.replace(many(20), generation=1)
    asked = question(replica_intent(BY_ID["restart"], fleet, fleet.replicas), fleet)
    assert asked is not None
    assert "and 14 more" in asked.lines[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("theme = 'blue'", "theme: expected one of dark, light"),
        ("colour = 1", "colour: there is no such setting"),
        ("refresh_s = 0", "refresh_s: expected a number from 0.25 to 60"),
        ("ascii = 1", "ascii: expected true or false"),
        ("keys = 3", "keys: expected a table"),
        ("[keys]\nstop = 's'", "'s' is the key of both start and stop"),
        ("[keys]\nstop = []", "keys.stop: expected a key"),
        ("theme = ", "Invalid value"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "tui.toml"
    path.write_text(text)
    with pytest.raises(Invalid) as caught:
        load(path)
    assert str(path) in caught.value.message
    assert problem in caught.value.message


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "tui.toml"
    assert load(path).theme == "dark"
    with pytest.raises(Invalid):
        load(path, required=True)
    path.write_text('theme = "light"\nrefresh_s = 2\n[keys]\nstop = ["ctrl+k", "K"]\n')
    found = load(path)
    assert found.theme == "light"
    assert found.keys_of("stop") == ("ctrl+k", "K")
    assert found.keys_of("start") == ("s",)
