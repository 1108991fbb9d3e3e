"""The inference examples that LlamaFactory ships, now and in older releases, by what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LLAMA3 = {"model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct", "template": "llama3"}
QWEN3 = {"model_name_or_path": "Qwen/Qwen3-4B-Instruct-2507", "template": "qwen3_nothink"}
HF = {"infer_backend": "huggingface", "trust_remote_code": True}
EXAMPLES: dict[str, dict[str, Any]] = {
    "qwen3": {**QWEN3, **HF},
    "qwen3_full_sft": {"model_name_or_path": "saves/qwen3-4b/full/sft", "template": "qwen3_nothink", **HF},
    "qwen3_lora_sft": {**QWEN3, "adapter_name_or_path": "saves/qwen3-4b/lora/sft", **HF},
    "qwen3vl": {"model_name_or_path": "Qwen/Qwen3-VL-4B-Instruct", "template": "qwen3_vl_nothink", **HF},
    "mossvl": {"model_name_or_path": "OpenMOSS-Team/MOSS-VL-Instruct-0708", "template": "moss_vl", **HF},
    "llama3": {**LLAMA3, **HF},
    "llama3_vllm": {**LLAMA3, "infer_backend": "vllm", "vllm_enforce_eager": True, "trust_remote_code": True},
    "llama3_lora_sft": {
        **LLAMA3, "adapter_name_or_path": "saves/llama3-8b/lora/sft", "finetuning_type": "lora", **HF,
    },
    "llama3_full_sft": {"model_name_or_path": "saves/llama3-8b/full/sft", "template": "llama3", "infer_backend": "huggingface"},
    "llama3_sglang": {
        **LLAMA3, "infer_backend": "sglang", "sglang_maxlen": 4096, "sglang_mem_fraction": 0.7, "sglang_tp_size": 1,
        "do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 1024, "repetition_penalty": 1.05,
        "sglang_config": {"log_level": "error", "tp_size": 1, "random_seed": 42},
    },
    "qwen2_5vl": {"model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct", "template": "qwen2_vl", **HF},
    "llava1_5": {"model_name_or_path": "llava-hf/llava-1.5-7b-hf", "template": "llava", "infer_backend": "huggingface"},
    "deepseek3_kt": {
        "model_name_or_path": "opensourcerelease/DeepSeek-V3-bf16", "template": "deepseek", "infer_backend": "ktransformers",
        "trust_remote_code": True, "use_kt": True, "kt_optimize_rule": "examples/rule.yaml", "cpu_infer": 32, "chunk_size": 8192,
    },
}  # fmt: skip
TEMPLATE_UNKNOWN = {"mossvl", "llava1_5", "deepseek3_kt"}
"""LlamaFactory's template and the model's own Jinja are not known to be the same: the import says so and stops."""


def yaml_text(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_becomes_a_profile(imported: Callable[..., Any], tmp_path: Path, name: str) -> None:
    for folder in ("saves/qwen3-4b/full/sft", "saves/llama3-8b/full/sft"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "chat_template.jinja").write_text("{{ messages }}")
    values = EXAMPLES[name]
    done = imported(yaml_text(values))
    told = {part for note in done.draft.notes for part in note.key.split(", ")}
    assert set(values) <= told
    if name in TEMPLATE_UNKNOWN:
        assert "template" in done.refused
        done = imported(yaml_text(values), accept_template_risk=True)
    if values["infer_backend"] == "ktransformers":
        assert set(done.refused) == {"infer_backend", "use_kt"}
        return
    profile = done.profile
    assert profile.model in {values["model_name_or_path"], str(tmp_path / values["model_name_or_path"])}
    assert profile.max_model_len == 4096
    assert ("infer_backend" in done.warned) == (values["infer_backend"] != "vllm")
    assert profile.flags.get("trust_remote_code", False) is values.get("trust_remote_code", False)
    assert ("lora_modules" in profile.flags) == ("adapter_name_or_path" in values)


def test_sampling_of_an_example_for_another_engine_is_kept(imported: Callable[..., Any]) -> None:
    profile = imported(yaml_text(EXAMPLES["llama3_sglang"])).profile
    assert profile.flags["override_generation_config"] == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.05,
    }  # fmt: skip
