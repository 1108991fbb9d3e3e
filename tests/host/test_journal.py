"""Lines on disk: bounded, whole after a kill, and never in the way of whoever writes them."""

from __future__ import annotations

import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gpuserved.host.journal import WAITING_MAX, Journal, older, read_lines


def written(path: Path, lines: list[bytes], max_bytes: int = 1 << 20) -> Journal:
    journal = Journal(path, max_bytes=max_bytes)
    for line in lines:
        journal.append(line)
    journal.close()
    return journal


@given(st.lists(st.binary(min_size=1, max_size=40).filter(lambda line: b"\n" not in line), max_size=30))
def test_what_is_appended_is_read_in_order(tmp_path_factory: object, lines: list[bytes]) -> None:
    folder: Path = tmp_path_factory.mktemp("j")  # type: ignore[attr-defined]  # pytest's factory has no public type
    half = len(lines) // 2
    written(folder / "x", lines[:half])
    written(folder / "x", lines[half:])
    assert list(read_lines(folder / "x")) == lines


def test_two_files_bound_it_and_the_newest_lines_stay(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for number in range(100):
        written(path, [b"%04d" % number], max_bytes=50)
    kept = list(read_lines(path))
    assert kept[-1] == b"0099"
    assert 10 <= len(kept) <= 20
    assert older(path).stat().st_mode & 0o777 == 0o600
    assert {each.name for each in tmp_path.iterdir()} <= {"x", "x.1"}


def test_half_a_line_of_a_killed_writer_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"whole\nha")
    assert list(read_lines(path)) == [b"whole"]
    written(path, [b"next"])
    assert list(read_lines(path)) == [b"whole", b"ha", b"next"]


def test_a_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    journal = written(path, [b"one"])
    path.unlink()
    written(path, [b"two"])
    assert list(read_lines(path)) == [b"two"]
    assert journal.lost == 0


def test_a_disk_that_refuses_costs_the_lines_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x"
    assert written(path, [b"one", b"two"]).lost == 2
    path.parent.mkdir()
    (path.parent / "elsewhere").touch()
    path.symlink_to(path.parent / "elsewhere")
    assert written(path, [b"three"]).lost == 1, "another's file is not written through a link"
    assert (path.parent / "elsewhere").read_bytes() == b""


def test_too_many_at_once_are_counted_and_nobody_waits(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x", max_bytes=1 << 20)
    journal._thread = threading.Thread()  # a writer that hangs in its disk
    for _ in range(WAITING_MAX + 5):
        journal.append(b"x")
    assert journal.lost == 5
    journal.close(timeout_s=0.05)
    assert not (tmp_path / "x").exists()
