"""The way back through several logs: nothing twice, nothing left out, in the order of the times that lines state."""

from __future__ import annotations

import calendar

from hypothesis import given
from hypothesis import strategies as st

from gpuserve_tui.model.logbuffer import LogBuffer, LogLine, log_line
from gpuserve_tui.model.logpast import Past, Trail, fetch, stamp
from gpuserved.api.inspect import LogBatch, LogPage

NOW = calendar.timegm((2026, 11, 24, 12, 0, 0))


def stamped(seconds: int, text: str) -> str:
    return f"(EngineCore pid=1) INFO 11-24 {seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02} [a.py:1] {text}"


class Files:
    """Logs whose cursors count lines."""

    def __init__(self, logs: dict[str, list[str]]) -> None:
        self.logs = logs
        self.most = 0

    def page(self, source: str, before: str, lines: int) -> LogPage:
        end = int(before)
        start = max(0, end - lines)
        self.most = max(self.most, lines)
        return LogPage(lines=self.logs[source][start:end], before=str(start) if start else None)

    def past(self) -> Past:
        return Past({name: str(len(text)) if text else None for name, text in self.logs.items()}, NOW)


def everything(past: Past, files: Files, step: int) -> list[LogLine]:
    found: list[LogLine] = []
    while not past.done:
        page = fetch(past, step, files.page)
        assert page, "a step always goes on"
        found = page + found
    return found


logs = st.dictionaries(
    st.sampled_from(["a-0", "a-1", "b-0"]),
    st.lists(st.one_of(st.none(), st.integers(0, 3000)), max_size=200),
    max_size=3,
)


@given(logs, st.integers(1, 150))
def test_every_line_comes_once_and_each_log_keeps_its_order(
    made: dict[str, list[int | None]], step: int
) -> None:
    """Also where clocks go backwards, and where lines state no time."""
    files = Files({
        name: [f"{n} no time" if at is None else stamped(at, str(n)) for n, at in enumerate(times)]
        for name, times in made.items()
    })  # fmt: skip
    found = everything(files.past(), files, step)
    for name, text in files.logs.items():
        assert [line.text for line in found if line.source == name] == text


@given(st.lists(st.lists(st.integers(0, 3000), max_size=120).map(sorted), max_size=4), st.integers(1, 90))
def test_clocks_that_only_go_forward_give_one_order(made: list[list[int]], step: int) -> None:
    files = Files({f"a-{n}": [stamped(at, "x") for at in times] for n, times in enumerate(made)})
    found = everything(files.past(), files, step)
    times = [stamp(line.text, NOW) for line in found]
    assert times == sorted(times)  # type: ignore[type-var]  # every line states one


def test_a_traceback_stays_with_its_line() -> None:
    files = Files({
        "a-0": [stamped(10, "first"), stamped(20, "boom"), "Traceback", "  File x", "ValueError", stamped(40, "last")],
        "b-0": [stamped(5, "before"), stamped(30, "between")],
    })  # fmt: skip
    words = [line.text.split()[-1] for line in everything(files.past(), files, 3)]
    assert words == ["before", "first", "boom", "Traceback", "x", "ValueError", "between", "last"]


def test_times_as_engines_write_them() -> None:
    assert stamp("INFO 11-24 02:02:42 [x.py:1] y", NOW) == calendar.timegm((2026, 11, 24, 2, 2, 42))
    assert stamp("INFO 12-31 23:59:59 [x.py:1] y", NOW) == calendar.timegm((2025, 12, 31, 23, 59, 59))
    assert stamp("[2024-02-29T01:02:03.5Z] y", NOW) == calendar.timegm((2024, 2, 29, 1, 2, 3)) + 0.5
    assert stamp("2026-11-24 01:02:03,250 - y", NOW) == calendar.timegm((2026, 11, 24, 1, 2, 3)) + 0.25
    for text in (
        "no time",
        "13-45 02:02:42",
        "x" * 90 + "11-24 02:02:42",
        "INFO:     127.0.0.1:1 - GET /health",
    ):
        assert stamp(text, NOW) is None


def go_back(buffer: LogBuffer, trail: Trail, files: Files) -> None:
    """To the beginning: then everything is there, once."""
    while not trail.past.done:
        buffer.prepend(fetch(trail.past, 500, files.page))
        trail.page(buffer.first)
    shown = [buffer.line(number) for number in buffer.shown]
    for name, text in files.logs.items():
        assert [line.text for line in shown if line.source == name] == text


def test_what_fell_off_the_ring_is_read_again() -> None:
    """Lines of two logs run through a full ring; going back from what is left finds all that went, once."""
    files = Files({"a-0": [], "b-0": []})
    buffer, trail = LogBuffer(kept=1000), Trail()

    def write(name: str, lines: int) -> LogBatch:
        text = files.logs[name]
        before, fresh = (
            len(text),
            [stamped(len(files.logs["a-0"]) + len(files.logs["b-0"]), f"{name} {n}") for n in range(lines)],
        )
        text += fresh
        return LogBatch(
            source=name, at=0.0, lines=fresh, before=str(before) if before else None, after=str(len(text))
        )

    files.logs["a-0"] += [stamped(0, "long ago")] * 10
    buffer.append(trail.open(buffer.end, [write("a-0", 40), write("b-0", 3)], NOW))
    for number in range(45):
        each = write("a-0" if number % 3 else "b-0", 70)
        trail.add(buffer.end, each)
        oldest = buffer.first
        buffer.append(log_line(each.source, raw, 0.0) for raw in each.lines)
        if buffer.first != oldest:
            trail.cut(buffer.first, NOW)
    assert len(buffer) < 3000
    go_back(buffer, trail, files)
    # And what was paged in and falls off again is found again.
    oldest = buffer.first
    each = write("b-0", 1)
    trail.add(buffer.end, each)
    buffer.append(log_line(each.source, raw, 0.0) for raw in each.lines)
    assert buffer.first > oldest
    trail.cut(buffer.first, NOW)
    go_back(buffer, trail, files)
