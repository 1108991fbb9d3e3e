"""`vllm_config`, which LlamaFactory applies last, and the tensor-parallel size."""

from __future__ import annotations

import json
import re
from typing import Any

from gpuserved.core.profile import FlagValue
from gpuserved.engines.vllm.flags import OURS
from gpuserved.engines.vllm.renamed import RENAMED
from gpuserved.importers.llamafactory.draft import Draft
from gpuserved.importers.llamafactory.keys import Fate

_AUTO = "auto"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_LOGGING = {
    "disable_log_stats": "without vLLM's figures a hung replica looks like a busy one",
    "disable_log_requests": "gone from vLLM, which logs no request unless enable_log_requests says so",
}


def apply(draft: Draft) -> None:
    """Every key of `vllm_config`, over what is there."""
    for key, value in _table(draft).items():
        path = ("vllm_config", key)
        name = key.replace("-", "_")
        if not _NAME.fullmatch(name):
            draft.request.file.refuse(path, "cannot be a setting of vLLM", "vllm serve --help=all lists them")
        if value is None:
            draft.note(f"vllm_config.{key}", Fate.UNUSED, "null: vLLM's default", inside=path)
        elif name == "tensor_parallel_size":
            draft.ask_tensor_parallel(_count(draft, path, value))
            draft.note(f"vllm_config.{key}", Fate.MAPPED, "", becomes="tensor_parallel_size", inside=path)
        elif name == "max_model_len":
            auto = value in {-1, _AUTO}
            draft.set_top("max_model_len", _AUTO if auto else _count(draft, path, value))
            draft.beat("max_model_len", f"vllm_config.{key}")
            draft.note(
                f"vllm_config.{key}", Fate.MAPPED, "beats vllm_maxlen", becomes="max_model_len", inside=path
            )
        elif name == "model":
            draft.set_top("model", str(value))
            draft.note(f"vllm_config.{key}", Fate.WARNED, "beats model_name_or_path for the weights; LlamaFactory would still take "
                       "the tokenizer of the latter", becomes="model", inside=path)  # fmt: skip
        elif name in _LOGGING:
            draft.note(f"vllm_config.{key}", Fate.WARNED, f"left out: {_LOGGING[name]}", inside=path)
        elif name in OURS:
            draft.refuse(f"vllm_config.{key}", OURS[name], inside=path)
        else:
            _flag(draft, path, name, value)


def _flag(draft: Draft, path: tuple[str, str], name: str, value: Any) -> None:
    renamed = RENAMED.get(name)
    if renamed is not None and renamed.becomes is None and not renamed.still_taken:
        draft.refuse(
            f"vllm_config.{path[1]}", f"vLLM has no such setting any more: {renamed.advice}", inside=path
        )
        return
    target = renamed.becomes if renamed is not None and renamed.becomes else name
    chosen, given = draft.flags.get(target), _value(draft, path, value)
    if target != "override_generation_config":
        draft.beat(f"[vllm] {target}", f"vllm_config.{path[1]}")
    elif isinstance(given, dict) and isinstance(chosen, dict):
        # Not to LlamaFactory: it sends its four with every request, which beats what vLLM is started with.
        given = {**given, **chosen}
    draft.replace_flag(target, given)
    why = f"called {target} in present versions of vLLM" if target != name else ""
    draft.note(f"vllm_config.{path[1]}", Fate.MAPPED, why, becomes=f"[vllm] {target}", inside=path)


def _table(draft: Draft) -> dict[str, Any]:
    given = draft.request.values.get("vllm_config")
    if given is None:
        return {}
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            draft.request.file.refuse(
                ("vllm_config",), f"not JSON: {error}", "write it as a mapping below the key"
            )
    if not isinstance(given, dict):
        draft.request.file.refuse_value(("vllm_config",), "a mapping, or one as JSON text", given)
    draft.note("vllm_config", Fate.MAPPED, "its keys beat all others", becomes="[vllm]")
    return {str(key): value for key, value in given.items()}


def _value(draft: Draft, path: tuple[str | int, ...], value: Any) -> FlagValue:
    if isinstance(value, dict):
        return {
            str(key): _value(draft, (*path, str(key)), inner)
            for key, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list):
        return [_value(draft, (*path, at), inner) for at, inner in enumerate(value)]
    if not isinstance(value, (str, int, float, bool)):
        draft.request.file.refuse_value(path, "a text, number, truth value, list or mapping", value)
    return value


def _count(draft: Draft, path: tuple[str | int, ...], value: Any) -> int:
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if type(value) is not int or value < 1:
        draft.request.file.refuse_value(path, "a whole number of at least 1", value)
    return value


def tensor_parallel(draft: Draft) -> None:
    """LlamaFactory takes every visible GPU unless `vllm_config` says otherwise; here the planner chooses."""
    if draft.given("vllm_tensor_parallel_size"):
        asked = _count(
            draft, ("vllm_tensor_parallel_size",), draft.request.values["vllm_tensor_parallel_size"]
        )
        beaten = draft.asked_tensor_parallel_size not in {None, asked}
        if draft.asked_tensor_parallel_size is None:
            draft.ask_tensor_parallel(asked)
        draft.note(
            "vllm_tensor_parallel_size", Fate.WARNED,
            "LlamaFactory has no such key: it rejects the file, or ignores the key with ALLOW_EXTRA_ARGS=1 and takes every GPU. "
            + ("vllm_config.tensor_parallel_size beats it" if beaten else "Honoured here; its spelling there is vllm_config: {tensor_parallel_size: N}"),
            becomes=None if beaten else "tensor_parallel_size",
        )  # fmt: skip
    if draft.asked_tensor_parallel_size is None:
        draft.set_top("tensor_parallel_size", _AUTO, "LlamaFactory would take every GPU for one replica")
    else:
        draft.set_top("tensor_parallel_size", draft.asked_tensor_parallel_size)
