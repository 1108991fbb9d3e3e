"""The key of a request's prompt: a chain of hashes over its canonical text, so that two requests share a chain as far as their
prompts are the same. Pure.

Canonical means: the order of an object's keys, white space and escapes do not count; the order of tools and messages does. What
decides the prompt beside its text (model, which is also the LoRA's name in vLLM, `cache_salt`, the chat template's arguments)
is the root of the chain, so that requests that differ there share nothing.

Blocks end where a message ends, because that is where conversations part; where a message is long they end on a grid. Both grow
with the offset, so that 256 KiB are some hundred blocks: near the start a block is 64 to 512 bytes, later 1/128 to 1/16 of what
precedes it.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

TEXT_MAX_BYTES = 256 * 1024
"""Text beyond this is not hashed; it counts as not cached."""
DIGEST_BYTES = 8
"""64 bits: with a million blocks in all mirrors a false match has a chance of 3e-8, and costs one slow prefill."""
BLOCK_MIN_BYTES = 64
BLOCK_MAX_BYTES = 512
_MIN_SHIFT = 7
_MAX_SHIFT = 4
BODY_MAX_BYTES = 4 * 1024 * 1024
"""A larger body has no key: reading it would hold up everybody else (4 MiB take 9 ms, the worst of them 25)."""
MARKS_MAX = 100_000
"""So has a body with more commas and opening brackets than this in one place: it may be that many values (20 ms)."""
ESCAPES_MAX = 250_000
"""And one with more escapes (14 ms): texts are read to their end, however little of them is hashed."""
ITEMS_MAX = 4096
"""Nor are lists and objects with more items than this looked at one by one (8 ms)."""
_SMALL_BYTES = 32 * 1024
"""A value up to this size is decoded whole; a larger one is taken apart, as far as it is hashed."""
_MEDIA_DIGESTS = 128
"""An image, a sound or a video counts for so many hashes of 32 characters: about a thousand tokens, the middle of what vision
models make of one."""
_MEDIA = frozenset({
    "image_url", "input_image", "image", "image_embeds", "image_pil", "input_audio", "audio_url", "audio", "audio_embeds",
    "video_url", "video", "input_video", "file", "input_file", "document",
})  # fmt: skip


class _Body(msgspec.Struct):
    """The fields that make a prompt, of the four APIs vLLM serves (chat, completions, responses, Anthropic messages)."""

    model: msgspec.Raw = msgspec.Raw()
    cache_salt: msgspec.Raw = msgspec.Raw()
    lora_path: msgspec.Raw = msgspec.Raw()
    chat_template: msgspec.Raw = msgspec.Raw()
    chat_template_kwargs: msgspec.Raw = msgspec.Raw()
    mm_processor_kwargs: msgspec.Raw = msgspec.Raw()
    reasoning_effort: msgspec.Raw = msgspec.Raw()
    documents: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


_ROOT = (
    "model", "cache_salt", "lora_path", "chat_template", "chat_template_kwargs", "mm_processor_kwargs",
    "reasoning_effort", "documents",
)  # fmt: skip
_PROMPT = ("tools", "functions", "system", "instructions", "messages", "prompt", "input")
_BODY = msgspec.json.Decoder(_Body)
_ANY = msgspec.json.Decoder()
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_SORTED = msgspec.json.Encoder(order="sorted")
_NUMBERS = re.compile(rb"\[\s*[^\s\"{]")
"""A prompt in tokens, or a list of them: what begins with neither a text nor an object."""


@dataclass(frozen=True)
class PrefixKey:
    """The chain of one prompt."""

    blocks: tuple[bytes, ...]
    """One digest a block; it stands for the block and all before it."""
    ends: tuple[int, ...]
    """Where each block ends, in bytes of canonical text."""
    size_bytes: int
    """All of the text, hashed or not."""


class _Intricate(Exception):
    """Too many values to look at within a request's time."""


def prefix_key(body: bytes | mmap.mmap) -> PrefixKey | None:
    """The key of a JSON body; None: it has no prompt, is not what it should be, or is too much to look at."""
    if len(body) > BODY_MAX_BYTES or body[:].count(b"\\") > ESCAPES_MAX:
        return None
    try:
        fields = _BODY.decode(body)
        root = blake2b(digest_size=DIGEST_BYTES)
        for name in _ROOT:
            value = getattr(fields, name)
            if len(value):
                root.update(b"%b=%b\n" % (name.encode(), b"".join(_canonical(value))))
        chain = _Chain(root)
        for name in _PROMPT:
            value = getattr(fields, name)
            if len(value):
                _feed(chain, name, value)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, _Intricate):
        return None
    return chain.key()


class _Chain:
    """Gathers text, cuts it into blocks, hashes on."""

    __slots__ = ("_at", "_blocks", "_ends", "_hash", "_start", "size")

    def __init__(self, root: blake2b) -> None:
        self._hash = root
        self._blocks: list[bytes] = []
        self._ends: list[int] = []
        self._start = 0
        self._at = 0
        self.size = 0

    def text(self, data: bytes) -> bool:
        """More text; False: what comes now is not hashed any more."""
        self.size += len(data)
        data = data[: TEXT_MAX_BYTES - self._at]
        while True:
            left = max(BLOCK_MAX_BYTES, self._start >> _MAX_SHIFT) - (self._at - self._start)
            if len(data) < left:
                break
            self._hash.update(data[:left])
            self._at += left
            self._cut()
            data = data[left:]
        if data:
            self._hash.update(data)
            self._at += len(data)
        return self._at < TEXT_MAX_BYTES

    def turn(self) -> None:
        """A message ends here."""
        if self._at - self._start >= max(BLOCK_MIN_BYTES, self._start >> _MIN_SHIFT):
            self._cut()

    def _cut(self) -> None:
        self._blocks.append(self._hash.copy().digest())
        self._ends.append(self._at)
        self._start = self._at

    def key(self) -> PrefixKey | None:
        """The chain as it is; None where there was no text."""
        if not self.size:
            return None
        return PrefixKey(tuple(self._blocks), tuple(self._ends), self.size)


def _feed(chain: _Chain, name: str, value: msgspec.Raw) -> None:
    """One field of the prompt: a list turn by turn, as far as it is hashed; the rest only counts."""
    start = bytes(memoryview(value)[:4])
    if start == b"null":
        return
    more = chain.text(name.encode())
    if _NUMBERS.match(value):
        _check(value)
        chain.text(_SORTED.encode(_ANY.decode(value)))
        return
    left = len(value)
    for turn in _items(value) if start[:1] == b"[" else (value,):
        if not more:
            chain.size += left
            return
        left -= len(turn)
        for piece in _canonical(turn):
            more = chain.text(piece)
            if not more:
                break
        chain.turn()


def _items(value: msgspec.Raw) -> list[msgspec.Raw]:
    _check(value)
    items = _LIST.decode(value)
    if len(items) > ITEMS_MAX:
        raise _Intricate
    return items


def _check(value: msgspec.Raw) -> None:
    if len(value) > _SMALL_BYTES:
        text = bytes(value)
        if text.count(b",") + text.count(b"[") + text.count(b"{") > MARKS_MAX:
            raise _Intricate


def _canonical(value: msgspec.Raw) -> Iterable[bytes]:
    """The value's canonical text, in pieces of which each is read when it is asked for; joined they are the same whatever its size."""
    if len(value) <= _SMALL_BYTES:
        return (_SORTED.encode(_without_media(_ANY.decode(value))),)
    return _pieces(value)


def _pieces(value: msgspec.Raw) -> Iterator[bytes]:
    first = bytes(memoryview(value)[:1])
    if first == b"[":
        parts: Iterable[tuple[bytes, msgspec.Raw]] = ((b"", item) for item in _items(value))
        ends = b"[", b"]"
    elif first == b"{":
        _check(value)
        fields = _OBJECT.decode(value)
        if len(fields) > ITEMS_MAX:
            raise _Intricate
        if _is_media(_ANY.decode(fields["type"]) if "type" in fields else None):
            yield _SORTED.encode(_media(bytes(value)))
            return
        parts = ((_SORTED.encode(name) + b":", fields[name]) for name in sorted(fields))
        ends = b"{", b"}"
    else:
        yield _SORTED.encode(_ANY.decode(value))
        return
    before = ends[0]
    for name, inner in parts:
        yield before + name
        yield from _canonical(inner)
        before = b","
    yield ends[1]


def _is_media(kind: Any) -> bool:
    return isinstance(kind, str) and kind in _MEDIA


def _without_media(value: Any) -> Any:
    """The same value with each image, sound and video of a message replaced by its hash."""
    if isinstance(value, dict):
        if _is_media(value.get("type")):
            return _media(_SORTED.encode(value))
        content = value.get("content")
        if isinstance(content, list):
            value["content"] = [_without_media(part) for part in content]
    elif isinstance(value, list):
        return [_without_media(part) for part in value]
    return value


def _media(data: bytes) -> str:
    """A text that stands for it: the length and both ends are hashed, which tell two of them apart."""
    told = b"%d:%b%b" % (len(data), data[:_SMALL_BYTES], data[-_SMALL_BYTES:])
    return blake2b(told, digest_size=16).hexdigest() * _MEDIA_DIGESTS
