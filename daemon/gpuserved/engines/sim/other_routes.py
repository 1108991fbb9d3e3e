"""Everything that is not chat or completions: models, tokens, vectors, responses, messages, figures, development."""

from __future__ import annotations

import math
import random
import secrets
import time
from typing import Any

from gpuserved.engines.sim.body import read_json, read_messages, read_sampling
from gpuserved.engines.sim.context import Server
from gpuserved.engines.sim.engine_client import EngineDead
from gpuserved.engines.sim.errors import ApiError, engine_dead, invalid, missing
from gpuserved.engines.sim.flags import VLLM_VERSION
from gpuserved.engines.sim.generation import request_id, text_tokens, usage
from gpuserved.engines.sim.httpd import Reply, Request, forever
from gpuserved.engines.sim.tokens import decode, encode_chat, fingerprint, token_bytes

_VECTOR_SIZE = 64
METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


async def health(server: Server, request: Request, reply: Reply) -> None:
    """200 unless the engine is known to be dead. A hung engine is not."""
    del request
    status = server.sabotage.health()
    if status == 0:
        await forever()
    await reply.send(503 if server.engine.dead else status or 200)


async def version(server: Server, request: Request, reply: Reply) -> None:
    """Say vLLM's version."""
    del server, request
    await reply.json(200, {"version": VLLM_VERSION})


async def load(server: Server, request: Request, reply: Reply) -> None:
    """Requests under way; 0 where they are not tracked."""
    del request
    await reply.json(200, {"server_load": server.load})


async def metrics(server: Server, request: Request, reply: Reply) -> None:
    """The Prometheus text."""
    del request
    text = server.metrics.text()
    kind = server.sabotage.faults.bad_metrics
    if kind == "malformed":
        text = "vllm:num_requests_running{engine=\n{{{ not prometheus \x01\nvllm:num_requests_waiting one\n"
    elif kind == "nan":
        text = "".join(
            f"{line.rpartition(' ')[0]} NaN\n" if line.startswith("vllm:") else line + "\n"
            for line in text.splitlines()
        )
    elif kind == "duplicate":
        text += text.replace(" 0.0\n", " 7.0\n")
    elif kind == "huge":
        text += "# " + "x" * (8 << 20) + "\n"
    elif kind == "endless":
        await reply.start(METRICS_TYPE)
        while True:
            await reply.chunk(text.encode())
    await reply.send(200, text.encode(), METRICS_TYPE)


async def models(server: Server, request: Request, reply: Reply) -> None:
    """The one model."""
    del request
    options = server.options
    permission = {
        "id": "modelperm-" + secrets.token_hex(8), "object": "model_permission", "created": int(time.time()),
        "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True, "allow_search_indices": False,
        "allow_view": True, "allow_fine_tuning": False, "organization": "*", "group": None, "is_blocking": False,
    }  # fmt: skip
    card = {
        "id": options.served_model_name, "object": "model", "created": int(time.time()), "owned_by": "vllm",
        "root": options.model, "parent": None, "max_model_len": options.max_model_len, "permission": [permission],
    }  # fmt: skip
    await reply.json(200, {"object": "list", "data": [card]})


async def tokenize(server: Server, request: Request, reply: Reply) -> None:
    """Text or a conversation to tokens, as a generating request would count them."""
    body = read_json(request)
    server.check_model(body)
    if "messages" in body:
        tokens = encode_chat(
            read_messages(body), generation_prompt=bool(body.get("add_generation_prompt", True))
        )
    elif isinstance(body.get("prompt"), str):
        tokens = text_tokens(body["prompt"])
    else:
        raise invalid(missing("prompt", body), missing("messages", body))
    strings = [token_bytes(token).decode(errors="replace") for token in tokens]
    await reply.json(
        200,
        {
            "count": len(tokens),
            "max_model_len": server.options.max_model_len,
            "tokens": tokens,
            "token_strs": strings if body.get("return_token_strs") else None,
        },
    )


async def detokenize(server: Server, request: Request, reply: Reply) -> None:
    """Tokens to text."""
    body = read_json(request)
    server.check_model(body)
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise invalid(missing("tokens", body))
    await reply.json(200, {"prompt": decode(tokens)})


async def embeddings(server: Server, request: Request, reply: Reply) -> None:
    """A unit vector for each input that follows from its tokens."""
    body = read_json(request)
    server.check_model(body)
    given = body.get("input")
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
        raise invalid(missing("input", body))
    data, counted = [], 0
    for at, item in enumerate(items):
        tokens = text_tokens(item)
        counted += len(tokens)
        draw = random.Random(fingerprint(tokens))
        vector = [draw.gauss(0.0, 1.0) for _ in range(_VECTOR_SIZE)]
        norm = math.sqrt(sum(value * value for value in vector))
        data.append({"index": at, "object": "embedding", "embedding": [value / norm for value in vector]})
    await reply.json(
        200,
        {
            "id": "embd-" + request_id(request),
            "object": "list",
            "created": int(time.time()),
            "model": server.options.served_model_name,
            "data": data,
            "usage": usage(counted, 0, prompt_tokens_details=None),
        },
    )


async def create_response(server: Server, request: Request, reply: Reply) -> None:
    """`/v1/responses`, not streamed; kept for GET unless `store` is false."""
    body = read_json(request)
    server.check_model(body)
    if body.get("stream"):
        raise ApiError(400, "The look-alike does not stream responses.", "BadRequestError", "stream")
    given = body.get("input")
    conversation = [("user", given)] if isinstance(given, str) else read_messages(body, "input")
    prompt = encode_chat(conversation)
    wanted = read_sampling(
        body, len(prompt), server.options, limit_names=("max_output_tokens",), default_max=None
    )
    name = "resp_" + request_id(request)
    try:
        choice = (await server.generator.whole(name, [prompt], wanted))[0]
    except EngineDead as error:
        raise engine_dead(str(error)) from error
    cut = choice.finish_reason == "length"
    text: dict[str, Any] = {"annotations": [], "text": choice.text, "type": "output_text", "logprobs": None}
    output = {
        "id": "msg_" + secrets.token_hex(8), "content": [text], "role": "assistant", "status": "completed",
        "type": "message", "phase": None,
    }  # fmt: skip
    content = _response_object(server, name, body, wanted.sampling.max_tokens)
    content["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
    content["status"] = "incomplete" if cut else "completed"
    content["output"] = [output]
    content["usage"] = {
        "input_tokens": len(prompt),
        "input_tokens_details": {
            "cached_tokens": 0, "cache_write_tokens": 0, "input_tokens_per_turn": [], "cached_tokens_per_turn": [],
        },
        "output_tokens": choice.tokens,
        "output_tokens_details": {
            "reasoning_tokens": 0, "tool_output_tokens": 0, "output_tokens_per_turn": [], "tool_output_tokens_per_turn": [],
        },
        "total_tokens": len(prompt) + choice.tokens,
    }  # fmt: skip
    if body.get("store", True):
        server.store_response(name, content)
    await reply.json(200, content)


def _response_object(server: Server, name: str, body: dict[str, Any], max_tokens: int) -> dict[str, Any]:
    """All fields of a response, in vLLM's order; what the engine decides is filled in later."""
    return {
        "id": name, "created_at": int(time.time()), "incomplete_details": None, "instructions": body.get("instructions"),
        "metadata": body.get("metadata"), "model": server.options.served_model_name, "object": "response", "output": [],
        "parallel_tool_calls": True, "temperature": float(body.get("temperature") or 1.0), "tool_choice": "none", "tools": [],
        "top_p": float(body.get("top_p") or 1.0), "background": False, "max_output_tokens": max_tokens, "max_tool_calls": None,
        "previous_response_id": body.get("previous_response_id"), "prompt": None, "reasoning": None, "service_tier": "auto",
        "status": "in_progress", "text": None, "top_logprobs": None, "truncation": "disabled", "usage": None,
        "user": body.get("user"), "presence_penalty": 0.0, "frequency_penalty": 0.0, "kv_transfer_params": None,
        "ec_transfer_params": None, "input_messages": None, "output_messages": None,
    }  # fmt: skip


async def get_response(server: Server, request: Request, reply: Reply) -> None:
    """A stored response; another replica's is unknown here."""
    name = request.path.rpartition("/")[2]
    await reply.json(200, server.stored_response(name))


async def cancel_response(server: Server, request: Request, reply: Reply) -> None:
    """A response that was not made in the background cannot be cancelled."""
    del reply
    name = request.path.split("/")[3]
    server.stored_response(name)
    raise ApiError(400, "Cannot cancel a synchronous response.", "invalid_request_error", "response_id")
