"""The route table, and what surrounds every request: faults, errors, access log, HTTP figures."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from gpuserved.engines.sim import anthropic, audio_routes, chat, dev_routes, other_routes, pooling_routes
from gpuserved.engines.sim.body import read_json
from gpuserved.engines.sim.context import Server
from gpuserved.engines.sim.engine_client import EngineDead
from gpuserved.engines.sim.errors import ApiError, engine_dead
from gpuserved.engines.sim.httpd import UPGRADES, Reply, Request, forever
from gpuserved.engines.sim.logs import write
from gpuserved.engines.sim.sabotage import GARBAGE

Route = Callable[[Server, Request, Reply], Awaitable[None]]
_UNCOUNTED = {"/metrics", "/health", "/load", "/ping", "/version", "/server_info"}
"""Left out of http_* by vLLM."""


async def _invocations(server: Server, request: Request, reply: Reply) -> None:
    """SageMaker's one door: a conversation or a prompt."""
    route = chat.chat_completions if "messages" in read_json(request) else chat.completions
    await route(server, request, reply)


def _constant(content: Any) -> Route:
    async def answer(server: Server, request: Request, reply: Reply) -> None:
        del server, request
        await reply.json(200, content)

    return answer


GENERATING: dict[str, Route] = {
    "/v1/chat/completions": chat.chat_completions,
    "/v1/completions": chat.completions,
    "/v1/embeddings": other_routes.embeddings,
    "/v1/responses": other_routes.create_response,
    "/v1/messages": anthropic.messages,
    "/invocations": _invocations,
    "/score": pooling_routes.score,
    "/v1/score": pooling_routes.score,
    "/rerank": pooling_routes.rerank,
    "/v1/rerank": pooling_routes.rerank,
    "/v2/rerank": pooling_routes.rerank,
    "/classify": pooling_routes.classify,
    "/pooling": pooling_routes.pooling,
    "/v1/audio/transcriptions": audio_routes.transcribe,
    "/v1/audio/translations": audio_routes.transcribe,
}
"""POST routes that ask the engine; faults of answers strike here."""
ROUTES: dict[tuple[str, str], Route] = {
    **{("POST", path): route for path, route in GENERATING.items()},
    ("GET", "/health"): other_routes.health,
    ("GET", "/ping"): other_routes.health,
    ("POST", "/ping"): other_routes.health,
    ("GET", "/version"): other_routes.version,
    ("GET", "/load"): other_routes.load,
    ("GET", "/metrics"): other_routes.metrics,
    ("GET", "/v1/models"): other_routes.models,
    ("POST", "/tokenize"): other_routes.tokenize,
    ("POST", "/detokenize"): other_routes.detokenize,
    ("GET", "/v1/responses/{response_id}"): other_routes.get_response,
    ("POST", "/v1/responses/{response_id}/cancel"): other_routes.cancel_response,
    ("GET", UPGRADES): audio_routes.realtime,
    ("POST", "/v1/messages/count_tokens"): anthropic.count_tokens,
    ("GET", "/server_info"): dev_routes.server_info,
    ("POST", "/reset_prefix_cache"): dev_routes.reset_prefix_cache,
    ("POST", "/sleep"): dev_routes.sleep,
    ("POST", "/wake_up"): dev_routes.wake_up,
    ("GET", "/is_sleeping"): dev_routes.is_sleeping,
    ("POST", "/pause"): dev_routes.pause,
    ("POST", "/resume"): dev_routes.resume,
    ("GET", "/is_paused"): dev_routes.is_paused,
    **{(method, path): _constant(content) for method, path, content in dev_routes.SIMPLE},
}
_PATHS = {path for _, path in ROUTES}


class Api:
    """Answers requests."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def handle(self, request: Request, reply: Reply) -> None:
        """One request, from its arrival to its last byte."""
        path = request.path
        handler = path
        if path.startswith("/v1/responses/"):
            handler = "/v1/responses/{response_id}" + ("/cancel" if path.endswith("/cancel") else "")
        try:
            await self._route(request, reply, handler)
        except ApiError as error:
            if error.status != 404:
                self._server.log.complain("exception.py:16", "Exception caught. Request id: None")
            await reply.json(error.status, error.body())
        except EngineDead as error:
            await reply.json(500, engine_dead(str(error)).body())
        except ConnectionResetError:
            pass  # the client left
        except Exception as error:
            self._server.log.complain("exception.py:16", f"Exception caught. {type(error).__name__}: {error}")
            if reply.status == 0:
                await reply.json(500, ApiError(500, str(error), "InternalServerError").body())
            else:
                reply.last()
        finally:
            self._count(request, reply, handler)

    async def _route(self, request: Request, reply: Reply, handler: str) -> None:
        route = ROUTES.get((request.method, handler))
        if route is None:
            known = [method for method, path in ROUTES if path == handler]
            if known:
                await reply.json(405, {"detail": "Method Not Allowed"}, allow=", ".join(known))
            else:
                await reply.json(404, {"detail": "Not Found"})
            return
        if handler not in GENERATING:
            reply.never_stalls()
            await route(self._server, request, reply)
            return
        sabotage = self._server.sabotage
        sabotage.count_request()
        if sabotage.faults.accept_never_answer:
            await forever()
        if sabotage.faults.garbage_response:
            await reply.raw(GARBAGE[sabotage.faults.garbage_response])
            return
        with self._server.generating():
            await route(self._server, request, reply)

    def log_access(self, request: Request, status: int) -> None:
        """A line for an answer that begins, where the log of accesses is on."""
        if self._server.options.access_log:
            line = f'"{request.method} {request.target} HTTP/1.1" {status} {HTTPStatus(status).phrase}'
            write(f"INFO:     {request.peer} - {line}\n")

    def _count(self, request: Request, reply: Reply, handler: str) -> None:
        if handler in _UNCOUNTED or reply.status == 0:
            return
        name = handler if handler in _PATHS else "none"
        seconds = time.monotonic() - reply.started_at
        sizes = (len(request.body), reply.body_bytes)
        self._server.metrics.request(name, request.method, reply.status, seconds, sizes)
