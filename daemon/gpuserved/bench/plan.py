"""What is asked and when: decided before the first request, from a seed, so that a run can be repeated."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family",
    "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system", "program", "question",
    "work", "government", "number", "night", "point", "home", "water", "room", "mother", "area", "money", "story", "fact", "month",
    "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side", "kind", "head", "house", "service", "friend",
    "father", "power", "hour", "game", "line", "end", "member", "law",
)  # fmt: skip
"""Common English nouns: with a space before it each is one token in the usual vocabularies, so that words count tokens."""


@dataclass(frozen=True)
class Lengths:
    """A whole number, drawn evenly from `low` to `high`, both included."""

    low: int
    high: int

    def draw(self, chance: random.Random) -> int:
        """One of them."""
        return chance.randint(self.low, self.high)


@dataclass(frozen=True)
class Shape:
    """The load."""

    rate_per_s: float
    requests: int
    poisson: bool = True
    """False: at equal distances."""
    prompt: Lengths = Lengths(128, 128)
    output: Lengths = Lengths(64, 64)
    prefix_tokens: int = 0
    """First tokens that prompts share with others; part of `prompt`'s length."""
    prefixes: int = 1
    """How many different shared prefixes there are."""
    stream: bool = True
    seed: int = 1


@dataclass(frozen=True)
class Planned:
    """One request."""

    at_s: float
    """When it is due, from the start."""
    body: bytes


def arrivals(shape: Shape) -> Iterator[float]:
    """Seconds from the start at which requests are due. Poisson: gaps are exponential with mean 1 / rate."""
    chance = random.Random(f"arrivals {shape.seed}")
    at = 0.0
    for number in range(shape.requests):
        yield at if shape.poisson else number / shape.rate_per_s
        at += chance.expovariate(shape.rate_per_s)


def plan(shape: Shape, model: str) -> list[Planned]:
    """All requests, in the order in which they are due."""
    chance = random.Random(f"prompts {shape.seed}")
    shared = [
        _words(random.Random(f"prefix {shape.seed} {n}"), shape.prefix_tokens) for n in range(shape.prefixes)
    ]
    planned = []
    for at_s in arrivals(shape):
        length = shape.prompt.draw(chance)
        words = chance.choice(shared)[:length]
        words += _words(chance, length - len(words))
        request = {
            "model": model,
            "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": shape.output.draw(chance),
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": shape.stream,
        }
        if shape.stream:
            request["stream_options"] = {"include_usage": True}
        planned.append(Planned(at_s, json.dumps(request).encode()))
    return planned


def _words(chance: random.Random, count: int) -> list[str]:
    return chance.choices(WORDS, k=count)
