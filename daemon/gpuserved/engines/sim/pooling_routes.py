"""Routes of pooling models: scores, ranks, classes and vectors, all of which follow from the tokens. The look-alike serves them beside
chat; vLLM serves either these or those, as its `--runner` says.
"""

from __future__ import annotations

import math
import random
import time
from typing import Any

from gpuserved.engines.sim.body import read_json
from gpuserved.engines.sim.context import Server
from gpuserved.engines.sim.errors import invalid, missing
from gpuserved.engines.sim.generation import request_id, text_tokens, usage
from gpuserved.engines.sim.httpd import Reply, Request
from gpuserved.engines.sim.tokens import fingerprint

_LABELS = ("LABEL_0", "LABEL_1")
_VECTOR_SIZE = 64


def _texts(body: dict[str, Any], *names: str) -> list[str]:
    """The first of these fields that is there, as a list."""
    for name in names:
        given = body.get(name)
        items = [given] if isinstance(given, str) else given
        if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
            return items
    raise invalid(missing(names[0], body))


def _score(one: str, other: str) -> float:
    """Between 0 and 1, the same for the same pair: their common words, and a little of chance."""
    ours, theirs = set(one.lower().split()), set(other.lower().split())
    shared = len(ours & theirs) / max(1, len(ours | theirs))
    draw = random.Random(fingerprint(text_tokens(one + "\0" + other)))
    return round(0.9 * shared + 0.1 * draw.random(), 6)


def _listed(server: Server, name: str, data: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    return {
        "id": name, "object": "list", "created": int(time.time()), "model": server.options.served_model_name, "data": data,
        "usage": usage(tokens, 0, prompt_tokens_details=None),
    }  # fmt: skip


async def score(server: Server, request: Request, reply: Reply) -> None:
    """`/score`: every pair, or one against all."""
    body = read_json(request)
    server.check_model(body)
    left = _texts(body, "text_1", "queries", "data_1")
    right = _texts(body, "text_2", "documents", "items", "data_2")
    if len(left) == 1:
        left *= len(right)
    if len(left) != len(right):
        raise invalid(missing("text_2", body))
    pairs = list(zip(left, right, strict=True))
    data = [{"index": at, "object": "score", "score": _score(*pair)} for at, pair in enumerate(pairs)]
    tokens = sum(len(text_tokens(text)) for pair in pairs for text in pair)
    await reply.json(200, _listed(server, "score-" + request_id(request), data, tokens))


async def rerank(server: Server, request: Request, reply: Reply) -> None:
    """`/rerank`, as Jina's and Cohere's: the best first."""
    body = read_json(request)
    server.check_model(body)
    query = body.get("query")
    if not isinstance(query, str):
        raise invalid(missing("query", body))
    documents = _texts(body, "documents")
    wanted = body.get("top_n") or len(documents)
    ranked = sorted(enumerate(documents), key=lambda row: -_score(query, row[1]))
    tokens = sum(len(text_tokens(query)) + len(text_tokens(text)) for text in documents)
    results = [
        {"index": at, "document": {"text": text, "multi_modal": None}, "relevance_score": _score(query, text)}
        for at, text in ranked[:wanted]
    ]
    await reply.json(
        200,
        {
            "id": "rerank-" + request_id(request),
            "model": server.options.served_model_name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": results,
        },
    )


async def classify(server: Server, request: Request, reply: Reply) -> None:
    """`/classify`: two classes."""
    body = read_json(request)
    server.check_model(body)
    data, counted = [], 0
    for at, text in enumerate(_texts(body, "input")):
        tokens = text_tokens(text)
        counted += len(tokens)
        first = random.Random(fingerprint(tokens)).random()
        probs = [first, 1.0 - first]
        label = _LABELS[probs.index(max(probs))]
        data.append({"index": at, "label": label, "probs": probs, "num_classes": len(probs)})
    await reply.json(200, _listed(server, "classify-" + request_id(request), data, counted))


async def pooling(server: Server, request: Request, reply: Reply) -> None:
    """`/pooling`: the vector of each token."""
    body = read_json(request)
    server.check_model(body)
    data, counted = [], 0
    for at, text in enumerate(_texts(body, "input")):
        tokens = text_tokens(text)
        counted += len(tokens)
        data.append({"index": at, "object": "pooling", "data": [_unit_vector(token) for token in tokens]})
    await reply.json(200, _listed(server, "pool-" + request_id(request), data, counted))


def _unit_vector(seed: int) -> list[float]:
    draw = random.Random(seed)
    vector = [draw.gauss(0.0, 1.0) for _ in range(_VECTOR_SIZE)]
    norm = math.sqrt(sum(value * value for value in vector))
    return [value / norm for value in vector]
