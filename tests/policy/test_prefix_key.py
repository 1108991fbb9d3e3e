"""The key of a prompt: equal exactly where the prompts are, shared exactly as far as they are the same."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.traffic import prose

from gpuserved.core.policy.prefix_key import (
    BLOCK_MAX_BYTES,
    ITEMS_MAX,
    MARKS_MAX,
    TEXT_MAX_BYTES,
    PrefixKey,
    prefix_key,
)

words = st.text(max_size=300)
part = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": words})
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": words | st.lists(part, max_size=3)},
    optional={"name": st.text(max_size=9), "tool_calls": st.lists(st.dictionaries(words, words, max_size=2), max_size=2)},
)  # fmt: skip
conversation = st.fixed_dictionaries(
    {"model": st.sampled_from(["m", "lora"]), "messages": st.lists(message, min_size=1, max_size=6)},
    optional={"tools": st.lists(st.dictionaries(words, words, max_size=3), max_size=3), "cache_salt": words},
)


def key_of(value: Any, **how: Any) -> PrefixKey | None:
    return prefix_key(json.dumps(value, **how).encode())


def some(value: Any) -> PrefixKey:
    key = key_of(value)
    assert key is not None
    return key


def turned(value: Any, rng: random.Random) -> Any:
    """The same value with its objects' keys in another order."""
    if isinstance(value, dict):
        items = [(key, turned(inner, rng)) for key, inner in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [turned(inner, rng) for inner in value] if isinstance(value, list) else value


@given(conversation, st.randoms(use_true_random=False), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_order_of_keys_white_space_and_escapes_do_not_count(
    value: Any, rng: random.Random, indent: Any, ascii_: bool
) -> None:
    other = {"temperature": 0.5, **turned(value, rng), "stream": True}
    assert key_of(other, indent=indent, ensure_ascii=ascii_) == key_of(value)


@given(conversation, conversation)
def test_keys_are_equal_exactly_where_the_prompts_are(one: Any, other: Any) -> None:
    # Below 64 bytes there is no block that could tell them apart.
    for value in (one, other):
        value["messages"].append({"role": "user", "content": "x" * 100})
    assert (some(one) == some(other)) == (one == other)


@given(conversation, conversation)
def test_chains_are_shared_as_far_as_the_messages_are(one: Any, more: Any) -> None:
    longer = {**one, "messages": one["messages"] + more["messages"]}
    short, long = some(one), some(longer)
    assert long.blocks[: len(short.blocks)] == short.blocks
    assert long.ends[: len(short.ends)] == short.ends


@given(conversation, st.sampled_from(["model", "cache_salt", "chat_template_kwargs", "lora_path"]))
def test_what_does_not_share_a_cache_shares_no_block(value: Any, field: str) -> None:
    value["messages"].append({"role": "user", "content": "x" * 100})
    other = {**value, field: {"another": 1} if field == "chat_template_kwargs" else "another"}
    assert not set(some(value).blocks) & set(some(other).blocks)


@pytest.mark.parametrize("size", [50, 30_000, 40_000, 300_000])
def test_large_values_are_taken_apart_into_the_same_text(size: int) -> None:
    text = prose(random.Random(size), size // 4)
    plain = {
        "model": "m",
        "messages": [{"role": "system", "content": [{"type": "text", "text": text}], "n": [1, {"a": 2}]}],
    }
    # White space makes one of them larger than what is decoded whole, and the other not.
    compact, wide = key_of(plain, separators=(",", ":")), key_of(plain, indent=4000)
    assert compact == wide
    assert compact is not None
    assert compact.size_bytes >= min(size, TEXT_MAX_BYTES)


@given(st.integers(1, 400_000))
def test_blocks_grow_with_the_offset_and_end_at_the_limit(size: int) -> None:
    key = some({"model": "m", "prompt": "a" * size})
    starts = (0, *key.ends)
    sizes = [end - start for start, end in zip(starts, key.ends, strict=False)]
    assert all(n <= max(BLOCK_MAX_BYTES, start // 16) for start, n in zip(starts, sizes, strict=False))
    assert len(key.blocks) < 300
    assert all(end <= TEXT_MAX_BYTES for end in key.ends)


def test_images_are_told_apart_and_cost_the_same() -> None:
    def asked(data: str, kind: str = "image_url") -> PrefixKey:
        image = {"type": kind, kind: {"url": "data:image/png;base64," + data}}
        return some(
            {
                "model": "m",
                "messages": [{"role": "user", "content": [image, {"type": "text", "text": "What?"}]}],
            }
        )

    for n in (100, 100_000, 3_000_000):
        one, other = asked("A" * n), asked("A" * (n - 1) + "B")
        assert one == asked("A" * n)
        assert one.blocks != other.blocks
        assert 4096 < one.size_bytes < 4400


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"7", b'{"model":"m"}', b'{"model":"m","messages":null}', b'{"messages":[{]}', b'{"messages":"\xff"}',
        b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages":[{"content":[' + b"1," * MARKS_MAX + b"1]}]}",
        b'{"messages":[' + b"{}," * (20 * ITEMS_MAX) + b"{}]}",
    ],
)  # fmt: skip
def test_what_has_no_prompt_or_too_many_pieces_has_no_key(body: bytes) -> None:
    assert prefix_key(body) is None


def test_tokens_and_lists_of_prompts_have_keys() -> None:
    tokens = list(range(5000))
    assert some({"prompt": tokens}).blocks[:4] == some({"prompt": [*tokens, 7]}).blocks[:4]
    texts = ["one " * 50, "two " * 50]
    assert some({"input": texts}).blocks[0] == some({"input": texts[:1]}).blocks[0]
