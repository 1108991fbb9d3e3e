"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import time
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from gpuserved.engines.sim.body import Wanted, read_json, read_messages, read_sampling
from gpuserved.engines.sim.context import Server
from gpuserved.engines.sim.engine_client import EngineDead
from gpuserved.engines.sim.errors import bad_parameter, engine_dead
from gpuserved.engines.sim.flags import VLLM_VERSION
from gpuserved.engines.sim.generation import Piece, request_id, text_tokens, usage
from gpuserved.engines.sim.httpd import Reply, Request, dumps
from gpuserved.engines.sim.tokens import decode, encode_chat

SSE = "text/event-stream; charset=utf-8"
_CHAT_LIMITS = ("max_completion_tokens", "max_tokens")
_COMPLETION_DEFAULT_TOKENS = 16
"""OpenAI's and vLLM's default of max_tokens for completions."""


def fingerprint(server: Server) -> str:
    """`vllm-VERSION-HASH` of the configuration."""
    digest = zlib.crc32(f"{server.options.model} {server.options.max_model_len}".encode())
    return f"vllm-{VLLM_VERSION}-{digest:08x}"


async def stream_events(reply: Reply, events: AsyncGenerator[dict[str, Any], None]) -> None:
    """Send events as SSE. An engine that dies on the way ends the stream with an error event and `[DONE]`."""
    started = False
    try:
        async with aclosing(events) as ready:
            async for event in ready:
                if not started:
                    await reply.start(SSE)
                    started = True
                await reply.chunk(f"data: {dumps(event)}\n\n".encode())
    except EngineDead as error:
        if not started:
            raise
        body = f'{{"error": {{"message": "{error}", "type": "InternalServerError", "param": null, "code": 500}}}}'
        await reply.chunk(f"data: {body}\n\n".encode())
    await reply.chunk(b"data: [DONE]\n\n")
    await reply.end()


async def chat_completions(server: Server, request: Request, reply: Reply) -> None:
    """Answer a conversation."""
    body = read_json(request)
    server.check_model(body)
    prompt = encode_chat(read_messages(body))
    wanted = read_sampling(body, len(prompt), server.options, limit_names=_CHAT_LIMITS, default_max=None)
    name = "chatcmpl-" + request_id(request)
    if wanted.stream:
        await stream_events(reply, _chat_chunks(server, name, prompt, wanted))
        return
    try:
        choices = await server.generator.whole(name, [prompt], wanted)
    except EngineDead as error:
        raise engine_dead(str(error)) from error
    content = {
        "id": name,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": server.options.served_model_name,
        "choices": [
            {
                "index": at,
                "message": {
                    "role": "assistant", "content": choice.text, "refusal": None, "annotations": None, "audio": None,
                    "function_call": None, "reasoning": None,
                },
                "logprobs": None,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                "token_ids": None,
                "routed_experts": None,
            }
            for at, choice in enumerate(choices)
        ],
        "service_tier": None,
        "system_fingerprint": fingerprint(server),
        "usage": _full_usage(len(prompt), sum(choice.tokens for choice in choices)),
        "prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None, "kv_transfer_params": None,
        "ec_transfer_params": None, "metrics": None,
    }  # fmt: skip
    await reply.json(200, content)


def _full_usage(prompt: int, completion: int) -> dict[str, object]:
    return usage(prompt, completion, prompt_tokens_details=None, completion_tokens_details=None)


class _Ends:
    """Where the fingerprint goes: into the last content chunk, or into the usage chunk where there is one."""

    def __init__(self, server: Server, wanted: Wanted, choices: int) -> None:
        self._fingerprint = fingerprint(server)
        self._include_usage = wanted.include_usage
        self._open = choices

    def of(self, piece: Piece) -> dict[str, str]:
        """What this piece's chunk carries."""
        if piece.finish_reason:
            self._open -= 1
        last = piece.finish_reason and self._open == 0 and not self._include_usage
        return {"system_fingerprint": self._fingerprint} if last else {}

    def usage_chunk(self, base: dict[str, Any], prompt: int, completion: int) -> dict[str, Any]:
        """The chunk with usage alone."""
        return {
            **base,
            "choices": [],
            "usage": usage(prompt, completion),
            "system_fingerprint": self._fingerprint,
        }


async def _chat_chunks(
    server: Server, name: str, prompt: list[int], wanted: Wanted
) -> AsyncGenerator[dict[str, Any], None]:
    base = {
        "id": name,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": server.options.served_model_name,
    }
    said = 0
    ends = _Ends(server, wanted, wanted.n)

    def running() -> dict[str, Any]:
        count = usage(len(prompt), said, completion_tokens_details=None)
        return {"usage": count} if wanted.continuous_usage else {}

    async with aclosing(server.generator.pieces(name, [prompt], wanted)) as pieces:
        async for piece in pieces:
            if said == 0:
                for at in range(wanted.n):
                    delta = {"role": "assistant", "content": ""}
                    first = {"index": at, "delta": delta, "logprobs": None, "finish_reason": None}
                    extra = {"prompt_token_ids": None, "prompt_text": None}
                    yield {**base, "choices": [first], **running(), **extra}
            said += piece.tokens
            choice: dict[str, Any] = {
                "index": piece.choice,
                "delta": {"content": piece.text},
                "logprobs": None,
            }
            choice["finish_reason"] = piece.finish_reason
            if piece.finish_reason:
                choice["stop_reason"] = piece.stop_reason
            choice["token_ids"] = None
            yield {**base, "choices": [choice], **running(), **ends.of(piece)}
    if wanted.include_usage:
        yield ends.usage_chunk(base, len(prompt), said)


def _prompts(body: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """(text, tokens) of each prompt; a prompt is text, tokens, or a list of either."""
    prompt = body.get("prompt")
    if prompt in (None, "", []):
        text = "Either prompt or prompt_embeds must be provided and non-empty."
        raise bad_parameter(text, "prompt")
    items = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    found = []
    for item in items:
        if isinstance(item, str):
            found.append((item, text_tokens(item)))
        elif isinstance(item, list) and all(isinstance(token, int) for token in item):
            found.append((decode(item), item))
        else:
            raise bad_parameter("prompt must be text or tokens.", "prompt")
    return found


async def completions(server: Server, request: Request, reply: Reply) -> None:
    """Continue one or several prompts."""
    body = read_json(request)
    server.check_model(body)
    prompts = _prompts(body)
    longest = max(len(tokens) for _, tokens in prompts)
    wanted = read_sampling(
        body, longest, server.options, limit_names=("max_tokens",), default_max=_COMPLETION_DEFAULT_TOKENS
    )
    name = "cmpl-" + request_id(request)
    echo = [text for text, _ in prompts for _ in range(wanted.n)] if body.get("echo") else None
    tokens = [ids for _, ids in prompts]
    if wanted.stream:
        await stream_events(reply, _completion_chunks(server, name, tokens, wanted, echo))
        return
    try:
        choices = await server.generator.whole(name, tokens, wanted)
    except EngineDead as error:
        raise engine_dead(str(error)) from error
    content = {
        **_completion_base(server, name),
        "choices": [
            {
                "index": at, "text": (echo[at] if echo else "") + choice.text, "logprobs": None,
                "finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason, "token_ids": None,
                "prompt_logprobs": None, "prompt_token_ids": None, "routed_experts": None,
            }
            for at, choice in enumerate(choices)
        ],
        "service_tier": None,
        "system_fingerprint": fingerprint(server),
        "usage": _full_usage(sum(len(ids) for ids in tokens), sum(choice.tokens for choice in choices)),
        "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None,
    }  # fmt: skip
    await reply.json(200, content)


def _completion_base(server: Server, name: str) -> dict[str, Any]:
    created = int(time.time())
    return {
        "id": name,
        "object": "text_completion",
        "created": created,
        "model": server.options.served_model_name,
    }


async def _completion_chunks(
    server: Server, name: str, prompts: list[list[int]], wanted: Wanted, echo: list[str] | None
) -> AsyncGenerator[dict[str, Any], None]:
    base = _completion_base(server, name)
    ends = _Ends(server, wanted, len(prompts) * wanted.n)
    prompt_tokens = sum(len(ids) for ids in prompts)
    said = 0
    echoed: set[int] = set()
    async with aclosing(server.generator.pieces(name, prompts, wanted)) as pieces:
        async for piece in pieces:
            text = piece.text
            if echo and piece.choice not in echoed:
                echoed.add(piece.choice)
                text = echo[piece.choice] + text
            said += piece.tokens
            choice = {
                "index": piece.choice, "text": text, "logprobs": None, "finish_reason": piece.finish_reason,
                "stop_reason": piece.stop_reason, "prompt_token_ids": None, "token_ids": None,
            }  # fmt: skip
            count = {"usage": usage(prompt_tokens, said)} if wanted.continuous_usage else {}
            yield {**base, "choices": [choice], **count, **ends.of(piece)}
    if wanted.include_usage:
        yield ends.usage_chunk(base, prompt_tokens, said)
