"""A plan as text: placements, the memory card of one GPU, reasons, levers, and the command line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from gpuserved.api.plan import Placement, Plan
from gpuserved.cli.text import gib, gpu_list, number, table
from gpuserved.host.logtail import clean

_ITEMS = (
    ("weights", "weights_bytes"),
    ("activations", "activation_bytes"),
    ("CUDA graphs", "cuda_graph_bytes"),
    ("other (context, NCCL)", "non_torch_bytes"),
    ("KV cache", "kv_cache_bytes"),
    ("headroom", "headroom_bytes"),
)
LEVERS_SHOWN = 4


def plan_lines(found: Plan) -> list[str]:
    """All of it."""
    return list(_lines(found))


def _lines(found: Plan) -> Iterator[str]:
    if found.refusal is not None:
        yield f"does not fit ({found.refusal.code}): {clean(found.refusal.message)}"
        yield f"  smallest change: {clean(found.refusal.hint)}"
    if found.placements:
        yield from _placements(found.placements)
    for sentence in found.why:
        yield f"why: {clean(sentence)}"
    yield from _sampling(found)
    yield from _cards(found.placements)
    if found.levers:
        yield ""
        yield "what would make more room, tokens of one replica:"
        rows = [
            [
                f"  {clean(each.change)}",
                str(each.kv_cache_tokens),
                "fits" if each.fits else "still too little",
            ]
            for each in found.levers[:LEVERS_SHOWN]
        ]
        yield from table(["  CHANGE", "KV TOKENS", ""], rows, frozenset({1}))
    first = next((one for one in found.placements if one.command), None)
    if first is not None:
        yield ""
        yield f"{first.replica} would be started with:"
        for key, value in first.environment.items():
            yield f"  {key}={shlex.quote(clean(value))} \\"
        yield f"  {shlex.join(clean(word) for word in first.command)}"


def _sampling(found: Plan) -> Iterator[str]:
    if found.sampling:
        words = ", ".join(f"{name} {value:g}" for name, value in sorted(found.sampling.items()))
        yield f"sampling of requests that set nothing: {words} (the model's generation_config.json and the profile)"
    if found.answer_cap_tokens is not None:
        yield f"no answer is longer than {found.answer_cap_tokens} tokens: override_generation_config sets max_new_tokens"


def _placements(placements: list[Placement]) -> list[str]:
    header = ["REPLICA", "GPUS", "TP", "MAX LEN", "WEIGHTS GiB", "KV GiB", "KV TOKENS", "REQUESTS"]
    rows = [
        [
            one.replica,
            gpu_list(one.gpus),
            str(one.tensor_parallel_size)
            + (f"x{one.data_parallel_size}" if one.data_parallel_size > 1 else ""),
            number(one.max_model_len),
            gib(one.weights_bytes),
            gib(one.kv_cache_bytes),
            number(one.kv_cache_tokens),
            "-" if one.max_concurrency is None else f"{one.max_concurrency:.1f}",
        ]
        for one in placements
    ]
    return table(header, rows, frozenset(range(2, 8)))


def _cards(placements: list[Placement]) -> Iterator[str]:
    """One card for each set of figures: replicas on equal GPUs share it."""
    seen: set[tuple[object, ...]] = set()
    for one in placements:
        figures = tuple(getattr(one, key) for _, key in _ITEMS)
        if one.kv_cache_bytes is None or figures in seen:
            continue
        seen.add(figures)
        yield ""
        yield f"memory of each GPU of {one.replica} in GiB, {_basis(one)}:"
        rows = [[f"  {name}", _exact(getattr(one, key))] for name, key in _ITEMS]
        rows.append(["  total", _exact(sum(value for value in figures if isinstance(value, int)))])
        yield from table(["", ""], rows, frozenset({1}))[1:]


def _basis(one: Placement) -> str:
    if one.memory_source == "measured":
        return "measured"
    return f"estimated for {f'vLLM {one.memory_release}' if one.memory_release else 'any vLLM'}"


def _exact(value: int) -> str:
    return f"{value / 1024**3:.2f}"
