"""Anthropic's Messages API, as vLLM offers it: `/v1/messages`."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from gpuserved.engines.sim.body import Wanted, read_json, read_messages, read_sampling
from gpuserved.engines.sim.chat import SSE
from gpuserved.engines.sim.context import Server
from gpuserved.engines.sim.engine_client import EngineDead
from gpuserved.engines.sim.errors import ApiError, engine_dead
from gpuserved.engines.sim.generation import request_id
from gpuserved.engines.sim.httpd import Reply, Request, dumps
from gpuserved.engines.sim.tokens import encode_chat


def _anthropic(error: ApiError) -> dict[str, Any]:
    return {"type": "error", "error": {"type": error.kind, "message": error.message}}


async def messages(server: Server, request: Request, reply: Reply) -> None:
    """Anthropic's Messages API."""
    try:
        await _messages(server, request, reply)
    except ApiError as error:
        await reply.json(error.status, _anthropic(error))


async def _messages(server: Server, request: Request, reply: Reply) -> None:
    body = read_json(request)
    server.check_model(body)
    system = body.get("system")
    conversation = read_messages(body)
    prompt = encode_chat([("system", system), *conversation] if isinstance(system, str) else conversation)
    wanted = read_sampling(body, len(prompt), server.options, limit_names=("max_tokens",), default_max=None)
    name = "chatcmpl-" + request_id(request)
    base: dict[str, Any] = {"id": name, "type": "message", "role": "assistant"}
    model = server.options.served_model_name
    try:
        if wanted.stream:
            head = {**base, "content": [], "model": model, "stop_reason": None, "stop_sequence": None}
            head["usage"] = {"input_tokens": len(prompt), "output_tokens": 0}
            await _message_events(server, reply, head, prompt, wanted)
            return
        choice = (await server.generator.whole(name, [prompt], wanted))[0]
    except EngineDead as error:
        raise engine_dead(str(error)) from error
    await reply.json(
        200,
        {
            **base,
            "content": [{"type": "text", "text": choice.text}],
            "model": model,
            "stop_reason": _stop_reason(choice.finish_reason),
            "usage": {"input_tokens": len(prompt), "output_tokens": choice.tokens},
        },
    )


def _stop_reason(finish_reason: str) -> str:
    return "max_tokens" if finish_reason == "length" else "end_turn"


async def _message_events(
    server: Server, reply: Reply, head: dict[str, Any], prompt: list[int], wanted: Wanted
) -> None:
    async def event(kind: str, **content: Any) -> None:
        await reply.chunk(f"event: {kind}\ndata: {dumps({'type': kind, **content})}\n\n".encode())

    said, reason = 0, "length"
    try:
        async with aclosing(server.generator.pieces(head["id"], [prompt], wanted)) as pieces:
            async for piece in pieces:
                if said == 0:
                    await reply.start(SSE)
                    await event("message_start", message=head)
                    await event("content_block_start", content_block={"type": "text", "text": ""}, index=0)
                said += piece.tokens
                reason = piece.finish_reason or reason
                await event("content_block_delta", delta={"type": "text_delta", "text": piece.text}, index=0)
    except EngineDead as error:
        if said == 0:
            raise
        await event("error", error={"type": "InternalServerError", "message": str(error)})
        await reply.end()
        return
    await event("content_block_stop", index=0)
    delta = {"stop_reason": _stop_reason(reason), "stop_sequence": None}
    await event("message_delta", delta=delta, usage={"input_tokens": len(prompt), "output_tokens": said})
    await event("message_stop")
    await reply.end()


async def count_tokens(server: Server, request: Request, reply: Reply) -> None:
    """How many tokens a message would cost."""
    body = read_json(request)
    try:
        server.check_model(body)
    except ApiError as error:
        await reply.json(error.status, _anthropic(error))
        return
    count = len(encode_chat(read_messages(body)))
    await reply.json(200, {"input_tokens": count, "context_management": {"original_input_tokens": count}})
