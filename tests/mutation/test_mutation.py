"""The mutation run itself: what it changes, and that it tells apart what tests notice and what they do not."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from tests.mutation import mutants, report

ROOT = Path(__file__).resolve().parents[2]
CODE = '''
from dataclasses import dataclass
from functools import cached_property

LIMIT = 3
WORDS = ("a", "b", "c", "d", "e", "f")


def over(n: int) -> bool:
    """Is it?"""
    return n > LIMIT


def loose(n: int) -> bool:
    return n > 10


def spin(n: int) -> int:
    while n > 0:
        n -= 1
    return n


def unused() -> int:
    return 1


@dataclass
class Box:
    room: int = 8


class Thing:
    def __init__(self, size: int = 2) -> None:
        self.size = size

    @property
    def half(self) -> float:
        return self.size / 2

    @cached_property
    def double(self) -> int:
        return self.size * 2
'''
TESTS = """
import tiny


def test_over() -> None:
    assert tiny.over(4) and not tiny.over(3)


def test_loose() -> None:
    assert tiny.loose(100) and not tiny.loose(0)


def test_spin() -> None:
    assert tiny.spin(2) == 0


def test_box() -> None:
    assert tiny.Box() == tiny.Box(8)


def test_thing() -> None:
    assert (tiny.Thing().half, tiny.Thing().double) == (1.0, 4)
"""


def changes(source: str, tmp_path: Path) -> list[str]:
    path = tmp_path / "module.py"
    path.write_text(dedent(source))
    return [one.change for one in mutants.of_module("module", path)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", ["a < b -> a <= b", "a < b -> a >= b"]),
        ("a is None", ["a is None -> a is not None"]),
        ("a and not b", ["a and (not b) -> a or not b", "a and (not b) -> a and b"]),
        ("a + b", ["a + b -> a - b"]),
        ("'a' + b", ["'a' + b -> 'a?' + b"]),
        ("f'{a} of {b + 1:.2f}'", ["f'{a} of {b + 1:.2f}' -> f'{a} of {b - 1:.2f}'", "f'{a} of {b + 1:.2f}' -> f'{a} of {b + 2:.2f}'"]),
        ("True", ["True -> False"]),
        ("'two words'", []),
        ("0.0", ["0.0 -> 1.0"]),
        ("min(a)", ["min(a) -> max(a)"]),
    ],
)  # fmt: skip
def test_a_mistake_of_each_kind(tmp_path: Path, source: str, expected: list[str]) -> None:
    found = changes(f"x = {source}", tmp_path)
    assert [one.replace("x = ", "") for one in found] == expected


def test_statements_and_what_is_left_alone(tmp_path: Path) -> None:
    source = """
        class Word(str, Enum):
            A = "a"

        @dataclass(frozen=True)
        class Row:
            '''One.'''
            size: int = 5

        Alias = Union["int", "str"]
        T = TypeVar("T", bound="int")

        def f(a: "int" = 1):
            '''Not a change.'''
            assert a > 0
            for one in a:
                if one or a:
                    break
                g(one)
            return a
    """
    assert changes(source, tmp_path) == [
        "size: int = 5 -> size: int = 6", "a: 'int'=1 -> a: 'int'=2", "one or a -> one and a", "one or a -> not (one or a)", "break -> continue",
        "g(one) -> pass", "return a -> return None",
    ]  # fmt: skip


def test_every_mutant_of_the_core_compiles_to_other_code_and_leaves_the_tree_as_it_was() -> None:
    every = mutants.of_package(ROOT / "daemon", "gpuserved.core")
    assert len({one.name for one in every}) == len(every)
    for one in every[::100]:
        before = ast.dump(one.tree)
        one.compiled()
        assert ast.dump(one.tree) == before
        back = one.edit.swap()
        assert ast.dump(one.tree) != before
        back.swap()


def test_a_sample_stays_when_other_functions_change(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("\n".join(f"def f{n}(a):\n    return a + {n}\n" for n in range(20)))
    before = mutants.sampled(mutants.of_module("module", path), 10, 7)
    path.write_text("import os\n\n" + path.read_text())
    after = mutants.sampled(mutants.of_module("module", path), 10, 7)
    assert [one.name for one in after] == [one.name for one in before]
    assert [one.name for one in mutants.sampled(mutants.of_module("module", path), 10, 8)] != [
        one.name for one in after
    ]


def test_a_sample_says_what_all_of_them_may_score() -> None:
    assert report.upper_bound_pct(80.0, 100) == pytest.approx(86.7, abs=0.1)  # Wilson, 95 %
    assert 80.0 < report.upper_bound_pct(80.0, 1000) < 83.0


def test_a_run_tells_what_tests_notice_from_what_they_do_not(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "tiny.py").write_text(CODE)
    (tmp_path / "test_tiny.py").write_text(TESTS)
    records, text = tmp_path / "records.jsonl", tmp_path / "record.md"
    run = subprocess.run(
        [
            sys.executable, "-m", "tests.mutation", "--root", tmp_path, "--source", "src", "--package", "tiny",
            "--tests", "test_tiny.py", "--records", records, "--record", text, "--jobs", "2",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    rows = {
        row["name"].removeprefix("tiny:"): row for row in map(json.loads, records.read_text().splitlines())
    }
    outcomes = {name: row["outcome"] for name, row in rows.items()}
    assert outcomes["over: return n > LIMIT -> return n >= LIMIT"] == "killed"
    assert rows["over: return n > LIMIT -> return n >= LIMIT"]["by"] == "test_tiny.py::test_over"
    assert outcomes["-: LIMIT = 3 -> LIMIT = 4"] == "killed"
    assert outcomes["-: room: int = 8 -> room: int = 9"] == "killed", "by a test that does not name the field"
    assert outcomes["Thing.__init__: self, size: int=2 -> self, size: int=3"] == "killed"
    assert outcomes["Thing.half: return self.size / 2 -> return self.size * 2"] == "killed"
    assert outcomes["Thing.double: return self.size * 2 -> return self.size * 3"] == "killed"
    assert outcomes["spin: n -= 1 -> n += 1"] == "timeout"
    assert outcomes["loose: return n > 10 -> return n >= 10"] == "survived"
    assert outcomes["unused: return 1 -> return 2"] == "not reached"
    assert not any(name.startswith("-: WORDS") for name in outcomes), "a table of strings is data"
    assert "broken" not in outcomes.values()
    assert "tiny.py:15  loose: return n > 10 -> return n >= 10" in text.read_text()
    assert "===== mutants failed: " in run.stdout
