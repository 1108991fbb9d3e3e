"""A LoRA adapter: LlamaFactory applies it to every request, so here it takes the name that clients use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpuserved.importers.llamafactory.draft import Draft
from gpuserved.importers.llamafactory.keys import KEYS, Fate

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes."""
DEFAULT_RANK = 32
CONFIG = "adapter_config.json"


def convert(draft: Draft) -> None:
    """`adapter_name_or_path`, `finetuning_type` and the rank."""
    written = draft.text("adapter_name_or_path")
    kind = draft.choice("finetuning_type", "lora", ("lora", "oft", "freeze", "full"))
    if draft.given("finetuning_type"):
        draft.note("finetuning_type", Fate.CHECKED, KEYS["finetuning_type"].reason)
    if written is None:
        if draft.given("vllm_max_lora_rank"):
            draft.note("vllm_max_lora_rank", Fate.UNUSED, "there is no adapter")
        return
    if kind != "lora":
        draft.refuse("finetuning_type", f"{kind}: LlamaFactory takes an adapter with lora alone")
        return
    if "," in written:
        draft.refuse(
            "adapter_name_or_path",
            "several adapters: LlamaFactory's vLLM engine takes one; merge them with llamafactory-cli export",
        )
        return
    folder = Path(draft.path(written))
    config = _config(draft, folder)
    is_hub_id = written.count("/") == 1 and not folder.exists() and not written.startswith((".", "/", "~"))
    path = written if is_hub_id else str(folder)
    rank = draft.integer("vllm_max_lora_rank", DEFAULT_RANK)
    needed = max(rank, _rank(config))
    rounded = next((one for one in RANKS if one >= needed), None)
    if rounded is None:
        draft.refuse(
            "adapter_name_or_path",
            f"its rank is {needed}; vLLM serves ranks up to {RANKS[-1]}: merge it with llamafactory-cli export",
        )
        return
    draft.set_flag("enable_lora", True)
    draft.set_flag(
        "lora_modules", [path], "the adapter answers under served_name, the base model under served_name-base"
    )
    draft.set_flag("max_lora_rank", rounded)
    why = f"{needed} is none of the ranks that vLLM takes: the next one" if rounded != needed else ""
    draft.note("vllm_max_lora_rank", Fate.MAPPED, why or f"the adapter's rank is {_rank(config)}" if needed > rank else why,
               becomes="[vllm] max_lora_rank")  # fmt: skip
    missing = "" if is_hub_id or folder.is_dir() else f"; there is no folder {folder} on this machine"
    draft.note("adapter_name_or_path", Fate.WARNED if missing else Fate.MAPPED,
               KEYS["adapter_name_or_path"].reason + missing, becomes="[vllm] lora_modules")  # fmt: skip


def _config(draft: Draft, folder: Path) -> dict[str, Any]:
    """The adapter's own description; refuses what vLLM cannot serve. Empty where the folder is not here."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        if folder.is_dir():
            draft.refuse("adapter_name_or_path", f"{folder} holds no {CONFIG}: it is no adapter")
        return {}
    except (OSError, ValueError) as error:
        draft.refuse("adapter_name_or_path", f"{path} cannot be read: {error}")
        return {}
    if not isinstance(found, dict):
        draft.refuse("adapter_name_or_path", f"{path} is no adapter's description")
        return {}
    if found.get("use_dora"):
        draft.refuse(
            "adapter_name_or_path",
            "it is a DoRA adapter, which vLLM refuses: merge it with llamafactory-cli export",
        )
    if found.get("modules_to_save"):
        draft.refuse(
            "adapter_name_or_path",
            f"it holds whole modules ({found['modules_to_save']}), which vLLM refuses: merge it with llamafactory-cli export",
        )
    base = found.get("base_model_name_or_path")
    written = draft.request.values.get("model_name_or_path")
    if isinstance(base, str) and isinstance(written, str) and Path(base).name != Path(written).name:
        draft.note(
            "adapter_name_or_path",
            Fate.WARNED,
            f"the adapter was trained on {base}, and the file serves it on {written}",
        )
    return found


def _rank(config: dict[str, Any]) -> int:
    rank = config.get("r")
    pattern = config.get("rank_pattern")
    ranks = [value for value in pattern.values() if type(value) is int] if isinstance(pattern, dict) else []
    return max([rank if type(rank) is int else 0, *ranks])
