"""YAML with positions, and OmegaConf's interpolations. What is expected here is what OmegaConf 2.4 itself answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.importers.interpolation import Resolver
from gpuserved.importers.yaml_text import parse

ENV = {"LEN": "8192", "NAME": "x"}


def resolved(text: str) -> dict[str, Any]:
    return Resolver(parse(text, "f.yaml"), ENV).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "f.yaml: the file is empty"),
        ("- a\n", "f.yaml:1:1: expected keys and values"),
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3:1: a stands twice, first in line 1"),
        ("a:\n  b: 1\n  b: 2\n", "f.yaml:3:3: b stands twice"),
        ("a: [1, 2\n", "f.yaml:2:1: not valid YAML"),
        ("a: b: c\n", "f.yaml:1:5: not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "f.yaml:1:4: not valid YAML"),
        ("a: &x {b: *x}\n", "f.yaml:1:4"),
        ("1: 2\n", "the key 1 is no text"),
        ("? [a]\n: 2\n", "f.yaml:1:3: a key must be a plain word"),
        ("a: \x01\n", "not valid YAML"),
    ],
)
def test_bad_files_are_refused_with_line_and_column(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text, "f.yaml")
    assert says in caught.value.message


def test_values_are_read_as_omegaconf_reads_them() -> None:
    data = parse("a: 1e-4\nb: 2020-01-01\nc: yes\nd: 0o10\ne: .inf\nf: 1.5\ng: 1_000\n", "f.yaml").data
    assert data == {
        "a": 0.0001, "b": "2020-01-01", "c": True, "d": "0o10", "e": math.inf, "f": 1.5, "g": 1000,
    }  # fmt: skip


def test_every_key_knows_its_place() -> None:
    file = parse("a: 1\nb:\n  c: [1, {d: 2}]\n", "f.yaml")
    assert file.at(("a",)) == "f.yaml:1:1"
    assert file.at(("b", "c", 1, "d")) == "f.yaml:3:11"
    assert file.at(("b", "no")) == "f.yaml:2:1"
    assert file.at(("no",)) is None


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a: ${oc.env:LEN}\n", {"a": "8192"}),
        ("a: ${oc.env:NOPE,4}\nb: ${oc.env:NOPE,null}\n", {"a": "4", "b": None}),
        ('a: ${oc.env:NOPE,"4"}\n', {"a": "4"}),
        ("a: 3\nb: ${a}\nc: x${a}y\n", {"a": 3, "b": 3, "c": "x3y"}),
        ("d: {e: 5, f: '${.e}', g: '${d.e}'}\n", {"d": {"e": 5, "f": 5, "g": 5}}),
        ("a: [1, 2]\nb: ${a[0]}\nc: ${a.1}\n", {"a": [1, 2], "b": 1, "c": 2}),
        ("a: \\${x}\n", {"a": "${x}"}),
        ("a: ${oc.env:LEN}${oc.env:NAME}\n", {"a": "8192x"}),
        ("x: NAME\na: ${oc.env:${x}}\n", {"x": "NAME", "a": "x"}),
        ("a: $x ${ oc.env:LEN }\n", {"a": "$x 8192"}),
        ("a: ${b}\nb: ${c}\nc: {d: 1}\n", {"a": {"d": 1}, "b": {"d": 1}, "c": {"d": 1}}),
    ],
)
def test_interpolations_are_resolved(text: str, values: dict[str, Any]) -> None:
    assert resolved(text) == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: ${oc.env:NOPE}\n", "f.yaml:1:1: a: the environment variable NOPE is not set"),
        ("a: 1\nb: ${nope}\n", "f.yaml:2:1: b: ${nope}: there is no such key"),
        ("a: ${a}\n", "leads back to itself"),
        ("a: ${b}\nb: ${a}\n", "leads back to itself"),
        ("a: ???\n", "has no value yet"),
        (
            "b:\n  a: ${oc.decode:'3'}\n",
            "f.yaml:2:3: b.a: ${oc.decode:'3'}: the resolver oc.decode is not known",
        ),
        ("a: ${oc.env:LEN\n", "is not closed"),
        ("a: ${1+1}\n", "is no reference"),
        ("a: ${...x}\n", "leads above the top"),
    ],
)
def test_what_cannot_be_resolved_is_refused(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        resolved(text)
    assert says in caught.value.message
