"""What the model says: readable sentences that follow from the prompt and the seed alone."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence

from gpuserved.engines.sim.tokens import EOS, without_space, word_token

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
