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
    BODY_MAX_BYTES,
    ESCAPES_MAX,
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


def sized(text_bytes: int) -> PrefixKey:
    """A prompt whose canonical text, with its field's name and quotes, has so many bytes."""
    return some({"model": "m", "prompt": "a" * (text_bytes - len('prompt""'))})


def test_where_blocks_end() -> None:
    assert sized(63).ends == ()
    assert sized(64).ends == (64,), "a message of 64 bytes is a block"
    assert sized(511).ends == (511,)
    assert sized(512).ends == (512,)
    assert sized(512 + 63).ends == (512,)
    assert sized(512 + 64).ends == (512, 576)
    long = sized(20_000)
    assert long.size_bytes == 20_000
    assert long.ends[:17] == tuple(512 * (n + 1) for n in range(17)), "up to 8 KiB a block is 512 bytes"
    assert long.ends[17] == 8704 + 8704 // 16
    last = long.ends[-2]
    assert 20_000 - last >= last // 128
    whole, more = sized(TEXT_MAX_BYTES), sized(TEXT_MAX_BYTES + 5000)
    assert more.ends[: len(whole.ends) - 1] == whole.ends[:-1]
    assert (whole.ends[-1], more.ends[-1]) == (TEXT_MAX_BYTES, TEXT_MAX_BYTES)


def test_late_messages_need_a_hundredth_of_what_precedes_them_for_a_block() -> None:
    """At 64 KiB a block has 512 bytes at least: what is shorter joins the next message."""

    def with_last(size: int) -> PrefixKey:
        return some({"messages": ["x" * 65_526, "y" * size]})

    first = with_last(1).ends[-1]
    assert first == 8 + 65_528
    assert with_last(first // 128 - 3).ends[-1] == first
    assert with_last(first // 128 - 2).ends[-1] == first + first // 128


def test_what_is_beyond_the_limit_counts_and_is_not_hashed() -> None:
    big, tail = "x" * TEXT_MAX_BYTES, ["y" * 100, {"role": "user"}]
    short, long = some({"messages": [big]}), some({"messages": [big, *tail]})
    assert short.blocks == long.blocks
    encoded = json.dumps([big, *tail]).encode()
    assert len(encoded) <= long.size_bytes <= len(encoded) + 20


@pytest.mark.parametrize(("items", "found"), [(ITEMS_MAX, True), (ITEMS_MAX + 1, False)])
def test_how_many_items_are_looked_at(items: int, found: bool) -> None:
    assert (key_of({"messages": ["a"] * items}) is not None) == found
    wide = {f"k{n}": "a" * 10 for n in range(items)}
    assert (key_of({"messages": [wide]}) is not None) == found
    assert (key_of({"messages": [{"content": ["a" * 10] * items}]}) is not None) == found


@pytest.mark.parametrize("item", ["1", "[]"])
def test_how_many_values_are_looked_at(item: str) -> None:
    """Commas and opening brackets count: those of the list and one less comma than items make as many as the items have."""

    def tokens(count: int) -> PrefixKey | None:
        return prefix_key(f'{{"prompt":[{",".join([item] * count)}]}}'.encode())

    most = MARKS_MAX // (1 + item.count("["))
    assert tokens(most) is not None
    assert tokens(most + 1) is None


def test_how_large_a_body_is_read() -> None:
    def body(size: int) -> bytes:
        head = b'{"prompt":"' + b"a" * 100 + b'","pad":"'
        return head + b"x" * (size - len(head) - 2) + b'"}'

    assert len(body(BODY_MAX_BYTES)) == BODY_MAX_BYTES
    assert prefix_key(body(BODY_MAX_BYTES)) is not None
    assert prefix_key(body(BODY_MAX_BYTES + 1)) is None


@pytest.mark.parametrize(("escapes", "found"), [(ESCAPES_MAX, True), (ESCAPES_MAX + 1, False)])
def test_how_many_escapes_are_read(escapes: int, found: bool) -> None:
    assert (prefix_key(b'{"prompt":"' + b"\\n" * escapes + b'"}') is not None) == found


def picture(kind: Any, data: str) -> PrefixKey:
    return some({"messages": [{"content": [{"type": kind, "data": data}]}]})


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video", "file", "document"])
def test_media_count_for_a_fixed_size(kind: str) -> None:
    empty = some({"messages": [{"content": [""]}]}).size_bytes
    for size in (1, 1000, 100_000):
        assert picture(kind, "x" * size).size_bytes == empty + 4096
    assert picture("text", "x" * 1000).size_bytes < empty + 1100
    assert picture(7, "x" * 1000).size_bytes < empty + 1100


def test_large_media_are_told_apart_by_their_length_and_both_ends() -> None:
    size = 200_000
    plain = "x" * size
    same = picture("image_url", plain)
    for at in (10, size - 10):
        assert picture("image_url", plain[:at] + "y" + plain[at + 1 :]).blocks != same.blocks
    assert picture("image_url", plain + "x").blocks != same.blocks
    middle = plain[: size // 2] + "y" + plain[size // 2 + 1 :]
    assert picture("image_url", middle).blocks == same.blocks, (
        "128 KiB and more are not hashed for every request"
    )
    small = "x" * 60_000
    assert (
        picture("image_url", small[:30_000] + "y" + small[30_001:]).blocks
        != picture("image_url", small).blocks
    )


@pytest.mark.parametrize(
    "field", ["model", "cache_salt", "lora_path", "chat_template", "reasoning_effort", "documents"]
)
def test_each_field_that_decides_the_prompt_parts_the_chains(field: str) -> None:
    one, other, none = (some({"prompt": "x" * 200, **more}) for more in ({field: "a"}, {field: "b"}, {}))
    assert len({one.blocks[0], other.blocks[0], none.blocks[0]}) == 3
    assert one.size_bytes == none.size_bytes, "it is not text of the prompt"


@pytest.mark.parametrize(
    "field", ["tools", "functions", "system", "instructions", "messages", "prompt", "input"]
)
def test_each_field_of_the_prompt_is_text(field: str) -> None:
    key = some({field: "x" * 200})
    assert key.size_bytes == len(field) + 202
    assert key_of({field: None}) is None
    assert some({field: "x" * 200, "temperature": 1}) == key
