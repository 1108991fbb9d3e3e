from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuserved.core import json_top
from gpuserved.core.json_top import DEPTH_MAX, KEYS_MAX, NotJson, Spans, spans

WANTED = frozenset([b'"model"', b'"user"'])
texts = st.text(st.sampled_from('ab\\"[]{},: \n\u00e9\U0001f600'), max_size=12)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(texts | st.sampled_from(["model", "user", "messages"]), values, max_size=6)


def read_whole(steps: Generator[None, None, Spans]) -> Spans:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            answer: Spans = done.value
            return answer


@pytest.fixture(autouse=True, params=[8, 64])
def short_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So short that every string and bracket is cut in two somewhere."""
    monkeypatch.setattr(json_top, "STEP_BYTES", request.param)
    monkeypatch.setattr(json_top, "_JUMP_BYTES", request.param)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
@settings(deadline=None, max_examples=100, suppress_health_check=[])
@given(objects, st.booleans(), st.sampled_from([None, 1]))
def test_values_are_those_of_a_whole_parse(
    content: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    data = json.dumps(content, ensure_ascii=ascii_only, indent=indent).encode()
    found = {
        key: json.loads(data[start:end]) for key, (start, end) in read_whole(spans(data, WANTED)).items()
    }
    assert found == {f'"{name}"'.encode(): content[name] for name in ("model", "user") if name in content}


@given(objects, st.data())
def test_a_body_that_is_cut_short_is_refused(content: dict[str, Any], data: st.DataObject) -> None:
    whole = json.dumps(content).encode()
    with pytest.raises(NotJson):
        read_whole(spans(whole[: data.draw(st.integers(0, len(whole) - 1))], WANTED))


def test_of_a_key_that_comes_twice_the_last_one_counts() -> None:
    data = b'{"model": "a", "x": {"model": "b"}, "model":"c"}'
    start, end = read_whole(spans(data, WANTED))[b'"model"']
    assert data[start:end] == b'"c"'


@pytest.mark.parametrize(
    "bad",
    [b"", b" ", b"[]", b'"a"', b"{", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a":1 "b":2}', b"{a:1}", b'{"a":1}x', b'{"a":"\\"}',
     b'{"a":[}', b"{" + b" " * 100_000 + b"}", b'{"a":' + b"[" * (DEPTH_MAX + 100) + b"}",
     b'{"a":1' + b',"b":2' * KEYS_MAX + b"}"],
)  # fmt: skip
def test_what_is_broken_at_the_top_is_refused(bad: bytes) -> None:
    with pytest.raises(NotJson):
        read_whole(spans(bad, WANTED))


def where(data: bytes, *keys: bytes) -> dict[bytes, bytes]:
    return {
        key: data[start:end]
        for key, (start, end) in read_whole(spans(data, frozenset(keys) or WANTED)).items()
    }


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[1]", "it is not an object"),
        (b'{"a":1,b:2}', "a key is expected at byte 7"),
        (b'{"a" 1}', "a colon is expected at byte 5"),
        (b'{"a": }', "a value is expected at byte 6"),
        (b'{"a":1;', "a comma or the end is expected at byte 6"),
        (b'{"a":1} x', "something follows the object at byte 8"),
        (b"{} {}", "something follows the object at byte 3"),
        (b' {"a":1 }\n\t 2', "something follows the object at byte 12"),
        (b'{"a"\n1}', "a colon is expected at byte 5"),
        (b'{"a":1 \n"b":2}', "a comma or the end is expected at byte 8"),
        (b'{"a":1, \n2:3}', "a key is expected at byte 9"),
        (b'{"a', "a string does not end"),
        (b'{"a":[1', "an array or object does not end"),
        (b'{"a":"b\\', "a string does not end"),
    ],
)  # fmt: skip
def test_what_is_wrong_and_where(data: bytes, says: str) -> None:
    with pytest.raises(NotJson) as caught:
        read_whole(spans(data, WANTED))
    assert str(caught.value) == says


def test_white_space_is_allowed_everywhere_between() -> None:
    assert where(b' \n{ \t"model" : "a" , "user"\r: [ 1 , "]" ] }\n ') == {
        b'"model"': b'"a"',
        b'"user"': b'[ 1 , "]" ]',
    }
    assert where(b" { } ") == {}
    assert where(b"{}") == {}


@pytest.mark.parametrize("count", [KEYS_MAX - 1, KEYS_MAX, KEYS_MAX + 1])
def test_how_many_keys_there_may_be(count: int) -> None:
    data = b"{" + b",".join(b'"k%d":%d' % (n, n) for n in range(count - 1)) + b',"model":7}'
    if count <= KEYS_MAX:
        assert where(data) == {b'"model"': b"7"}
        return
    with pytest.raises(NotJson, match=f"more than {KEYS_MAX} keys"):
        where(data)


@pytest.mark.parametrize("depth", [DEPTH_MAX - 1, DEPTH_MAX, DEPTH_MAX + 65])
def test_how_deep_it_may_be_give_or_take_a_step(depth: int) -> None:
    data = b'{"user":' + b"[" * depth + b"]" * depth + b"}"
    if depth <= DEPTH_MAX:
        assert len(where(data)[b'"user"']) == 2 * depth
        return
    with pytest.raises(NotJson, match="too deeply"):
        where(data)


def test_the_deepest_that_is_read_may_end_with_a_step() -> None:
    fill = b" " * (
        -(DEPTH_MAX - 1) % 64
    )  # so that a step of either size ends behind the last opening bracket
    data = b'{"user":[' + fill + b"[" * (DEPTH_MAX - 1) + b"]" * DEPTH_MAX + b"}"
    assert len(where(data)[b'"user"']) == 2 * DEPTH_MAX + len(fill)


def test_a_key_may_be_so_long_and_no_longer() -> None:
    for size, found in ((4096, 1), (4097, 0)):
        key = b'"' + b"k" * (size - 2) + b'"'
        assert len(where(b"{" + key + b":1}", key)) == found


@pytest.mark.parametrize(
    "value", [b"-1.5e+10", b"true", b"null", b"1" * 64, b'"\\\\"', b'"\\""', b"{}", b"[]", b'{"a":{"]":"}"}}']
)
def test_values_of_each_kind(value: bytes) -> None:
    assert where(b'{"model":' + value + b',"user":1}') == {b'"model"': value, b'"user"': b"1"}


def test_a_number_is_not_longer_than_any_that_makes_sense() -> None:
    with pytest.raises(NotJson, match="a comma or the end"):
        where(b'{"model":' + b"1" * 65 + b"}")


def steps_of(data: bytes) -> int:
    """How often it gave way."""
    reading, count = spans(data, WANTED), 0
    try:
        while True:
            next(reading)
            count += 1
    except StopIteration:
        return count


def test_it_gives_way_at_every_step() -> None:
    """A step is 8 or 64 bytes here: whatever a value is made of, it takes as many as it has of them."""
    step = json_top.STEP_BYTES
    size = 100 * step
    for value in (
        b'"' + b"a" * size + b'"', b'"' + b"\\n" * (size // 2) + b'"', b"[" + b"1," * (size // 2) + b"1]",
        b"[" + b"[]" * (size // 2) + b"]", b"[" * (size // 2) + b"]" * (size // 2),
    ):  # fmt: skip
        assert 80 <= steps_of(b'{"a":' + value + b"}") <= 210
