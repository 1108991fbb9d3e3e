"""The development routes that vLLM opens with VLLM_SERVER_DEV_MODE=1. Here they always answer, so that hiding them can be proved."""

from __future__ import annotations

import urllib.parse
from typing import Any

from gpuserved.engines.sim.context import Server
from gpuserved.engines.sim.flags import VLLM_VERSION
from gpuserved.engines.sim.httpd import Reply, Request

SIMPLE: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/reset_mm_cache", {"success": True}),
    ("POST", "/reset_encoder_cache", {"success": True}),
    ("POST", "/collective_rpc", {"results": [None]}),
    ("POST", "/release_kv_cache_memory", {"success": True}),
    ("POST", "/abort_requests", {"success": True}),
    ("POST", "/init_weight_transfer_engine", {"message": "Weight transfer initialized"}),
    ("POST", "/update_weights", {"message": "Weights updated"}),
    ("POST", "/scale_elastic_ep", {"message": "Scaled"}),
    ("POST", "/is_scaling_elastic_ep", {"is_scaling_elastic_ep": False}),
    ("POST", "/v1/load_lora_adapter", {"message": "Success: LoRA adapter added successfully."}),
    ("POST", "/v1/unload_lora_adapter", {"message": "Success: LoRA adapter removed successfully."}),
    ("GET", "/weight_info", {"weight_version": "default"}),
    ("GET", "/get_world_size", {"world_size": 1}),
    ("GET", "/kv_event_sources", {}),
)
"""Method, path and the whole answer."""


async def server_info(server: Server, request: Request, reply: Reply) -> None:
    """The configuration."""
    del request
    options = server.options
    config = f"model='{options.model}', max_seq_len={options.max_model_len}, version={VLLM_VERSION}"
    await reply.json(200, {"vllm_config": config})


async def reset_prefix_cache(server: Server, request: Request, reply: Reply) -> None:
    """Forget cached prefixes."""
    del request
    server.engine.reset_prefix_cache()
    await reply.json(200, {"success": True})


async def sleep(server: Server, request: Request, reply: Reply) -> None:
    """Pretend to sleep; the gauge says so."""
    query = urllib.parse.parse_qs(request.target.partition("?")[2])
    level = int(query.get("level", ["1"])[0]) if query.get("level", ["1"])[0].isdigit() else 1
    server.sleep(level)
    await reply.json(200, {"status": "sleeping", "level": level})


async def wake_up(server: Server, request: Request, reply: Reply) -> None:
    """Pretend to wake."""
    del request
    server.sleep(None)
    await reply.json(200, {"status": "awake", "tags": None})


async def is_sleeping(server: Server, request: Request, reply: Reply) -> None:
    """Whether it pretends to sleep."""
    del request
    await reply.json(200, {"is_sleeping": server.sleeping})


async def pause(server: Server, request: Request, reply: Reply) -> None:
    """Pretend to pause."""
    del request
    server.pause(paused=True)
    await reply.json(200, {"status": "paused"})


async def resume(server: Server, request: Request, reply: Reply) -> None:
    """Pretend to resume."""
    del request
    server.pause(paused=False)
    await reply.json(200, {"status": "resumed"})


async def is_paused(server: Server, request: Request, reply: Reply) -> None:
    """Whether it pretends to be paused."""
    del request
    await reply.json(200, {"is_paused": server.paused})
