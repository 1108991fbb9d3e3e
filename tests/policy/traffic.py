"""Who asks what, and when: three shapes of traffic, each the same for every policy."""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import msgspec

BYTES_PER_TOKEN = 4
_SYLLABLES = (
    "an",
    "be",
    "co",
    "da",
    "el",
    "fo",
    "gi",
    "ho",
    "in",
    "ka",
    "lu",
    "me",
    "no",
    "or",
    "pe",
    "ra",
    "so",
    "ti",
    "ul",
    "va",
)


def prose(rng: random.Random, tokens: int) -> str:
    """Text of so many tokens: four letters each, the last of them a blank."""
    return "".join(
        f"{_SYLLABLES[n % 20]}{chr(97 + n // 20 % 26)} " for n in (rng.randrange(520) for _ in range(tokens))
    )


@dataclass
class Conversation:
    """A client: sends, reads the answer, thinks, and sends again with all that went before."""

    name: str
    starts_at_s: float
    messages: list[dict[str, Any]]
    turns: list[tuple[str, int, float]]
    """What is said, how many tokens the answer has, how long the client thinks afterwards."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    answers: random.Random = field(default_factory=random.Random)

    def body(self) -> bytes:
        """The request as it goes over the wire."""
        fields: dict[str, Any] = {"model": "m", "messages": self.messages, "stream": True, "user": self.name}
        if self.tools:
            fields["tools"] = self.tools
        return msgspec.json.encode(fields)

    def prompt(self) -> Iterator[str]:
        """What a chat template makes of it, message by message."""
        if self.tools:
            yield msgspec.json.encode(self.tools).decode()
        for message in self.messages:
            yield f"<|{message['role']}|>{message['content']}<|e|>"


Traffic = Callable[[int], list[Conversation]]


def chat(seed: int, conversations: int = 200) -> list[Conversation]:
    """Multi-turn chat: 20 system prompts of 1k to 3k tokens, the first ones asked for most; 4 to 12 turns."""
    rng = random.Random(seed)
    systems = [prose(rng, rng.randint(1000, 3000)) for _ in range(20)]
    zipf = list(accumulate(1 / (rank + 1) for rank in range(20)))
    at, found = 0.0, []
    for n in range(conversations):
        at += rng.expovariate(conversations / 180.0)
        system = systems[bisect.bisect(zipf, rng.random() * zipf[-1])]
        turns = [
            (prose(rng, rng.randint(20, 370)), rng.randint(50, 370), rng.expovariate(1 / 5.0))
            for _ in range(rng.randint(4, 12))
        ]
        found.append(
            Conversation(
                f"c{n}",
                at,
                [{"role": "system", "content": system}],
                turns,
                answers=random.Random(seed * 1000 + n),
            )
        )
    return found


def agents(seed: int, conversations: int = 120) -> list[Conversation]:
    """Agents: 6 prompts of 40 KB with tools, then a few steps whose results are long; no thinking in between."""
    rng = random.Random(seed)
    kinds = []
    for kind in range(6):
        tools = [
            {
                "type": "function",
                "function": {"name": f"tool_{kind}_{t}", "description": prose(rng, 150), "parameters": {"type": "object", "properties": {"q": {"type": "string", "description": prose(rng, 60)}}}},
            }
            for t in range(12)
        ]  # fmt: skip
        kinds.append((tools, prose(rng, 7500)))
    at, found = 0.0, []
    for n in range(conversations):
        at += rng.expovariate(conversations / 150.0)
        tools, system = kinds[min(rng.randrange(6), rng.randrange(6))]
        turns = [
            (prose(rng, rng.randint(100, 900)), rng.randint(30, 200), rng.expovariate(1 / 1.5))
            for _ in range(rng.randint(3, 10))
        ]
        found.append(
            Conversation(
                f"a{n}",
                at,
                [{"role": "system", "content": system}],
                turns,
                tools,
                random.Random(seed * 1000 + n),
            )
        )
    return found


def strangers(seed: int, requests: int = 1200) -> list[Conversation]:
    """Nothing is shared: one-off prompts of 200 to 4,000 tokens, two thirds of what four replicas can compute."""
    rng = random.Random(seed)
    at, found = 0.0, []
    for n in range(requests):
        at += rng.expovariate(12.0)
        prompt = prose(rng, rng.randint(200, 4000))
        found.append(
            Conversation(f"s{n}", at, [], [(prompt, rng.randint(50, 400), 0.0)], answers=random.Random(n))
        )
    return found
