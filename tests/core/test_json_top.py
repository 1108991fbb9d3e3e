from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuserved.core import json_top
from gpuserved.core.json_top import DEPTH_MAX, KEYS_MAX, NotJson, read_whole, spans

WANTED = frozenset([b'"model"', b'"user"'])
texts = st.text(st.sampled_from('ab\\"[]{},: \n\u00e9\U0001f600'), max_size=12)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(texts | st.sampled_from(["model", "user", "messages"]), values, max_size=6)


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
