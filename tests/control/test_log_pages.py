"""Logs as a screen reads them: pages towards the past, and a stream that counts what it leaves out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuserved.api.errors import Invalid
from gpuserved.api.inspect import LogBatch
from gpuserved.control.logfeed import LINES_MAX, LogFeed
from gpuserved.control.logpage import Cursor, page


def write_segments(folder: Path, segments: list[list[str]]) -> list[Path]:
    paths = []
    for number, lines in enumerate(segments):
        path = folder / f"{number}.log"
        path.write_text("".join(f"{line}\n" for line in lines))
        paths.append(path)
    return paths


def walk_back(paths: list[Path], count: int, match: str | None = None) -> list[str]:
    found: list[str] = []
    before: str | None = None
    for _ in range(10_000):
        one = page(paths, Cursor.parse(before) if before else None, count, match)
        found = [*one.lines, *found]
        before = one.before
        if before is None:
            return found
    raise AssertionError("paging back never came to an end")


words = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(words, max_size=20), min_size=1, max_size=4), st.integers(1, 9))
def test_paging_back_gives_every_line_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, segments: list[list[str]], count: int
) -> None:
    paths = write_segments(tmp_path_factory.mktemp("log"), segments)
    assert walk_back(paths, count) == [line for segment in segments for line in segment]


def test_a_cursor_survives_rotation(tmp_path: Path) -> None:
    live = tmp_path / "1.log"
    live.write_text("".join(f"line {n}\n" for n in range(100)))
    first = page([live], None, 10)
    assert first.lines == [f"line {n}" for n in range(90, 100)]
    rotated = tmp_path / "1.log.1"
    live.rename(rotated)
    live.write_text("new\n")
    assert first.before is not None
    second = page([rotated, live], Cursor.parse(first.before), 10)
    assert second.lines == [f"line {n}" for n in range(80, 90)]
    rotated.unlink()
    assert page([live], Cursor.parse(first.before), 10).lines == []


def test_blocks_of_long_lines_are_put_together(tmp_path: Path) -> None:
    lines = [f"{n} " + "x" * 9000 for n in range(60)]
    (path,) = write_segments(tmp_path, [lines])
    assert walk_back([path], 7) == lines


def test_a_search_finds_what_is_far_back(tmp_path: Path) -> None:
    lines = [f"line {n}" for n in range(20_000)]
    lines[17] = "CUDA Error here"
    paths = write_segments(tmp_path, [lines, ["quiet"] * 1000])
    assert walk_back(paths, 5, "cuda error") == ["CUDA Error here"]


@pytest.mark.parametrize("text", ["", "7", "7.", ".7", "a.b", "7.-1", "7.8.9"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        Cursor.parse(text)


def test_a_flood_is_counted_and_its_end_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "1.log"
    path.write_text("before\n")
    feed = LogFeed({"a-0": lambda: [path]}, 10)
    assert [batch.lines for batch in feed.look()] == [["before"]]
    with path.open("a") as log:
        log.write("".join(f"line {n}\n" for n in range(50_000)))
    (batch,) = feed.look()
    assert batch.lines == [f"line {n}" for n in range(50_000 - LINES_MAX, 50_000)]
    assert batch.dropped == 50_000 - LINES_MAX
    assert feed.look() == []
    feed.close()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 2000), max_size=5), max_size=4))
def test_shown_and_dropped_are_all_that_was_written(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[int]]
) -> None:
    """Whatever is written in whatever pieces, over rotations: nothing is lost without being counted."""
    folder = tmp_path_factory.mktemp("log")
    live = folder / "1.log"
    live.touch()
    names = [live]
    feed = LogFeed({"a-0": lambda: [path for path in names if path.exists()]}, 0)
    feed.look()
    written = seen = 0
    for bursts in rounds:
        for burst in bursts:
            with names[-1].open("a") as log:
                log.write("x\n" * burst)
            written += burst
            seen += sum(len(batch.lines) + batch.dropped for batch in feed.look())
        names.append(folder / f"{len(names) + 1}.log")
        names[-1].touch()
    feed._asked.clear()
    seen += sum(len(batch.lines) + batch.dropped for batch in feed.look())
    feed.close()
    assert seen == written


def test_lines_between_two_looks_come_once_also_half_ones(tmp_path: Path) -> None:
    path = tmp_path / "1.log"
    path.write_text("whole\nhal")
    feed = LogFeed({"a-0": lambda: [path]}, 10)
    first = feed.look()
    with path.open("a") as log:
        log.write("f\nnext\n")
    found: list[LogBatch] = [*first, *feed.look()]
    assert [line for batch in found for line in batch.lines] == ["whole", "half", "next"]
    feed.close()
    assert not [name for name in os.listdir("/proc/self/fd") if _is(name, path)]


def _is(descriptor: str, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == str(path)
    except OSError:
        return False
