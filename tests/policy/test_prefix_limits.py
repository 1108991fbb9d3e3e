"""How much of a prompt is looked at: the limits that docs/performance.md gives, met exactly, and what does not hang on them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpuserved.core.policy.prefix_key import PrefixKey, prefix_key

HASHED_BYTES = 256 * 1024
"""TEXT_MAX_BYTES, and the rest of the limits that the module has."""
READ_BYTES = 4 * 1024 * 1024
"""BODY_MAX_BYTES."""
ESCAPES = 250_000
"""ESCAPES_MAX."""
VALUES = 100_000
"""MARKS_MAX."""
ITEMS = 4096
"""ITEMS_MAX."""


def some(value: Any, **how: Any) -> PrefixKey:
    key = prefix_key(json.dumps(value, **how).encode())
    assert key is not None
    return key


def test_256_kib_of_text_are_hashed_to_the_last_byte_and_no_more() -> None:
    def with_byte(at: int) -> PrefixKey:
        """`prompt"` is before the text, and a quote behind it."""
        text = "x" * HASHED_BYTES * 2
        return some({"prompt": text[: at - 8] + "y" + text[at - 7 :]})

    plain = some({"prompt": "x" * HASHED_BYTES * 2})
    assert plain.ends[-1] == HASHED_BYTES
    assert with_byte(HASHED_BYTES).blocks != plain.blocks
    assert with_byte(HASHED_BYTES + 1) == plain


def test_the_last_byte_that_is_hashed_may_be_the_first_of_a_message() -> None:
    """A block that begins at 260,112 ends with the message that makes it a 128th of that: here its first byte does, which is also
    the last one that is hashed.
    """
    texts = ["z" * 5000, "x" * (260_112 - 5000 - len('messages""""')), "y" * (260_112 // 128 - 1 - len('""'))]
    one, other = some({"messages": [*texts, {"a": 1}]}), some({"messages": [*texts, ["a"]]})
    assert one.ends[-2:] == other.ends[-2:] == (260_112, HASHED_BYTES)
    assert one.blocks[-2] == other.blocks[-2]
    assert one.blocks[-1] != other.blocks[-1], "a brace, and a bracket"


@pytest.mark.parametrize("size", [HASHED_BYTES + 1000, 1_000_000, READ_BYTES - 100])
def test_a_text_counts_whole_however_little_of_it_is_hashed(size: int) -> None:
    """A replica that gets a million bytes is not free again after a quarter of them."""
    assert some({"prompt": "x" * size}).size_bytes == size + len('prompt""')
    parts = [{"type": "text", "text": "x" * size}]
    assert size < some({"messages": [{"role": "user", "content": parts}]}).size_bytes < size + 100


def test_what_is_beyond_the_limit_is_not_read() -> None:
    """No float is as large as this one: where it is read the body has no key."""
    big, broken = b"x" * HASHED_BYTES, b"1e999"
    assert prefix_key(b'{"messages":["short",%b]}' % broken) is None
    assert prefix_key(b'{"messages":["%b",%b]}' % (big, broken)) is not None
    parts = b'{"messages":[{"content":["%b"],"more":%b}]}'
    assert prefix_key(parts % (b"x" * 40_000, broken)) is None
    assert prefix_key(parts % (big, broken)) is not None


@pytest.mark.parametrize("tokens", [[*range(10, 300)], [[*range(10, 300)], [7, 8]]])
def test_white_space_in_a_list_of_tokens_does_not_count(tokens: list[Any]) -> None:
    assert some({"prompt": tokens}, indent=1000) == some({"prompt": tokens})
    assert some({"prompt": tokens}).size_bytes == len("prompt" + json.dumps(tokens, separators=(",", ":")))


def test_a_list_of_tokens_ends_in_a_block_where_that_is_full() -> None:
    tokens = [1] * 251 + [22]
    assert some({"prompt": tokens}).size_bytes == 6 + 1 + 251 * 2 + 2 + 1 == 512
    assert some({"prompt": tokens}).ends == (512,)
    assert some({"prompt": tokens[1:]}).ends == ()


@pytest.mark.parametrize("escape", [b"\\n", b'\\"'])
def test_250000_escapes_are_read(escape: bytes) -> None:
    assert prefix_key(b'{"prompt":"%b"}' % (escape * ESCAPES)) is not None
    assert prefix_key(b'{"prompt":"%b"}' % (escape * (ESCAPES + 1))) is None


def test_4_mib_are_read() -> None:
    head, tail = b'{"prompt":"x","pad":"', b'"}'
    for size in (READ_BYTES, READ_BYTES + 1):
        body = head + b"x" * (size - len(head) - len(tail)) + tail
        assert (prefix_key(body) is not None) == (size == READ_BYTES)


@pytest.mark.parametrize(("item", "marks"), [("7", 1), ("[]", 2), ("{}", 2)])
def test_100000_commas_and_opening_brackets_are_looked_at(item: str, marks: int) -> None:
    """Of a list of n items n - 1 commas; the list's own bracket makes it n times an item's."""

    def of(count: int) -> PrefixKey | None:
        return prefix_key(b'{"prompt":[[%b]]}' % b",".join([item.encode()] * count))

    most = (VALUES - 1) // marks
    assert of(most) is not None
    assert of(most + 1) is None


def test_an_object_with_too_many_values_is_not_looked_at_either() -> None:
    def of(each: int) -> PrefixKey | None:
        fields = {f"k{n}": [1] * each for n in range(3000)}
        return prefix_key(json.dumps({"messages": [{"content": fields}]}).encode())

    assert of(30) is not None
    assert of(40) is None
    alone = {"system": {f"k{n}": [1] * 40 for n in range(3000)}}
    assert prefix_key(json.dumps(alone).encode()) is None
    messages = [{"content": [1] * 40}] * 3000
    assert prefix_key(json.dumps({"messages": messages[:2000]}).encode()) is not None
    assert prefix_key(json.dumps({"messages": messages}).encode()) is None


@pytest.mark.parametrize("items", [ITEMS, ITEMS + 1])
def test_4096_items_are_looked_at_one_by_one(items: int) -> None:
    assert (prefix_key(json.dumps({"messages": ["a"] * items}).encode()) is not None) == (items == ITEMS)


def test_a_number_of_a_million_digits_is_no_prompt() -> None:
    assert prefix_key(b'{"prompt":%b}' % (b"1" * 1_000_000)) is None
    assert prefix_key(b'{"messages":[%b]}' % (b"1" * 1_000_000)) is None


def test_of_a_large_image_32_kib_at_either_end_tell_it_from_others() -> None:
    def picture(changed: int | None = None) -> PrefixKey:
        image = bytearray(b'{"type":"image_url","data":"' + b"x" * 200_000 + b'"}')
        if changed is not None:
            image[changed : changed + 1 or None] = b"y"
        key = prefix_key(b'{"messages":[{"content":[%b]}]}' % bytes(image))
        assert key is not None
        return key

    end = 32 * 1024
    assert [picture(at) == picture() for at in (end - 1, end, -end - 1, -end)] == [False, True, True, False]


def test_a_digest_has_64_bits() -> None:
    """Routers tell each other what they sent in rows of eight bytes a block."""
    assert {len(digest) for digest in some({"prompt": "x" * 5000}).blocks} == {8}
