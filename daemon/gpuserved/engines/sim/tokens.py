"""What is said, and how it is counted: a small, exact tokenizer, and readable sentences that follow from the prompt and the seed alone.

Frequent words are one token, everything else up to three bytes a token. Every text has one encoding, and decoding gives the same
text back, so that `/tokenize`, `/detokenize` and `usage` agree.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

SPECIALS = (
    "<|begin|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|other|>",
    "<|end|>",
    "<|eos|>",
)
BEGIN, SYSTEM, USER, ASSISTANT, TOOL, OTHER, END, EOS = range(len(SPECIALS))
_ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": TOOL}

_WORD_LIST = """
    a about after again all also an and any are as ask at back be because been before but by call can carrier change check
    city come contact could customer date day days delay delayed delivery details do does done email every few find first
    for from get give good had has have help here home how hours i if in inform into is it its item items just know last late
    less let like line list little long look made mail make many may me message minutes more most move much my name need
    new next no not note now number of off offer office on once one only open or order other our out over own package page
    parcel past people phone place plan please point price problem quick read reason refund reply report request right
    same see send sent service shipment should show since small so some soon sorry start status stay step still store
    system take team tell text than thank that the their them then there these they thing think this time to today
    together tomorrow track tracking travel try two under until up update us use very wait want was water way we week well
    what when where which while who why will with word work world would write year yes you your
"""
WORDS = tuple(_WORD_LIST.split())
_PUNCTUATION = (".", ",", "!", "?", "\n", ":", ";", "'", '"', "-", "(", ")", " ")
_PACKED = 4096
"""Ids from here on hold one to three bytes: the length and the bytes themselves."""


def _vocabulary() -> dict[str, int]:
    pieces = [*_PUNCTUATION, *WORDS, *(word.capitalize() for word in WORDS)]
    pieces += [" " + piece for piece in pieces if piece[0].isalpha()]
    return {piece: len(SPECIALS) + at for at, piece in enumerate(dict.fromkeys(pieces))}


_ID_OF = _vocabulary()
_PIECE_OF = {token: piece for piece, token in _ID_OF.items()}
_SPLIT = re.compile(r" ?[A-Za-z]+|\s|[^A-Za-z\s]+")
VOCABULARY_SIZE = _PACKED + (3 << 24)


def _pack(chunk: bytes) -> int:
    return _PACKED + ((len(chunk) - 1) << 24) + int.from_bytes(chunk, "big")


def encode(text: str) -> list[int]:
    """The tokens of `text`. Lone surrogates become question marks."""
    tokens: list[int] = []
    for piece in _SPLIT.findall(text):
        known = _ID_OF.get(piece)
        if known is not None:
            tokens.append(known)
            continue
        raw = piece.encode(errors="replace")
        tokens += [_pack(raw[at : at + 3]) for at in range(0, len(raw), 3)]
    return tokens


def token_bytes(token: int) -> bytes:
    """What one token stands for; nothing for an id outside the vocabulary."""
    if token in _PIECE_OF:
        return _PIECE_OF[token].encode()
    if 0 <= token < len(SPECIALS):
        return SPECIALS[token].encode()
    packed = token - _PACKED
    size = (packed >> 24) + 1
    if packed < 0 or size > 3:
        return b""
    return (packed & 0xFFFFFF).to_bytes(3, "big")[3 - size :]


def decode(tokens: Iterable[int]) -> str:
    """The text of `tokens`."""
    return b"".join(token_bytes(token) for token in tokens).decode(errors="replace")


def encode_chat(messages: Sequence[tuple[str, str]], *, generation_prompt: bool = True) -> list[int]:
    """The tokens of a conversation of (role, text) under the chat template."""
    tokens = [BEGIN]
    for role, text in messages:
        tokens += [_ROLES.get(role, OTHER), *encode(text), END]
    return [*tokens, ASSISTANT] if generation_prompt else tokens


def word_token(word: str) -> int:
    """The token of one piece of the vocabulary, its leading space included."""
    return _ID_OF[word]


def without_space(token: int) -> int:
    """The token of the same word at the start of a text."""
    return _ID_OF[_PIECE_OF[token].lstrip(" ")]


_SENTENCES = tuple(
    [word_token(" " + word if word[0].isalpha() else word) for word in line.split()]
    for line in (
        "Thank you for the message .",
        "Sorry that your order is late .",
        "We will check the status of the shipment today .",
        "Please send us the number of your order .",
        "The carrier may need a few more days .",
        "You can track the parcel on this page .",
        "If it is not there by tomorrow , we will send a new one .",
        "Our team will call you back in a few minutes .",
        "Most of the time the delay is small .",
        "Let us know what you would like to do next .",
        "We can also offer a refund .",
        "There is no need to wait at home .",
        "I will write to the delivery office now .",
        "Yes , we could change the date .",
    )
)
_SHORTEST, _LONGEST = 24, 64
"""Tokens after which an answer ends at its next full stop, unless the request says otherwise."""


def fingerprint(prompt: Sequence[int]) -> int:
    """A number that stands for the prompt."""
    return zlib.crc32(b"".join(token.to_bytes(4, "big", signed=False) for token in prompt))


def answer(prompt: Sequence[int], seed: int, *, min_tokens: int, ignore_eos: bool) -> Iterator[int]:
    """The tokens of the answer, ending with EOS; endless where `ignore_eos`."""
    choose = random.Random(fingerprint(prompt) ^ (seed * 0x9E3779B1 & 0xFFFFFFFF))
    enough = choose.randint(_SHORTEST, _LONGEST)
    said = 0
    last = -1
    while True:
        pick = choose.randrange(len(_SENTENCES) - 1)
        last = pick + 1 if pick >= last >= 0 else pick  # never the same sentence twice in a row
        for at_word, token in enumerate(_SENTENCES[last]):
            yield without_space(token) if said == at_word == 0 else token
            said += 1
        if not ignore_eos and said >= max(enough, min_tokens):
            yield EOS
            return
