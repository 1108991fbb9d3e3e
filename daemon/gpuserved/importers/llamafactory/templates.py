"""What is known of LlamaFactory's templates, which render prompts in Python where vLLM renders the checkpoint's Jinja.

Read from the registrations of LlamaFactory 0.9.6.dev0.
"""

from __future__ import annotations

import re

NAMES = frozenset(
    [
        "alpaca",
        "bailing",
        "bailing_v2",
        "breeze",
        "chatglm3",
        "chatml",
        "chatml_de",
        "cohere",
        "cpm4",
        "dbrx",
        "deepseek",
        "deepseek3",
        "deepseekr1",
        "hy3",
        "deepseekcoder",
        "default",
        "dots_ocr",
        "empty",
        "ernie",
        "ernie_nothink",
        "ernie_vl",
        "exaone",
        "falcon",
        "falcon_h1",
        "fewshot",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gemma4n",
        "glm4",
        "glm4_moe",
        "glm4v",
        "glm4_5v",
        "glm_ocr",
        "glm4_7",
        "glmz1",
        "gpt_oss",
        "granite3",
        "granite3_vision",
        "granite4",
        "index",
        "hunyuan",
        "hunyuan_small",
        "hy_dense_1_8b",
        "hy_dense_7b",
        "intern2",
        "intern_vl",
        "intern_s1",
        "keye_vl",
        "kimi_vl",
        "lfm2",
        "lfm2_vl",
        "llama2",
        "llama2_zh",
        "llama3",
        "llama4",
        "mllama",
        "moonlight",
        "moss_vl",
        "llava",
        "llava_next",
        "llava_next_llama3",
        "llava_next_mistral",
        "llava_next_qwen",
        "llava_next_yi",
        "llava_next_video",
        "llava_next_video_mistral",
        "llava_next_video_yi",
        "mimo",
        "mimo_v2",
        "mimo_vl",
        "minicpm_v",
        "minicpm_v_4_6",
        "minicpm_o",
        "minimax1",
        "minimax2",
        "ministral",
        "mistral",
        "mistral_small",
        "ministral3",
        "olmo",
        "openchat",
        "openchat-3.6",
        "opencoder",
        "paligemma",
        "paligemma_chat",
        "phi",
        "phi_small",
        "phi4",
        "phi4_mini",
        "pixtral",
        "qwen",
        "qwen3",
        "qwen3_nothink",
        "qwen2_audio",
        "qwen2_omni",
        "qwen3_omni",
        "qwen3_omni_nothink",
        "qwen2_vl",
        "qwen3_vl",
        "qwen3_vl_nothink",
        "qwen3_5",
        "qwen3_5_nothink",
        "qwen3_6",
        "sailor",
        "seed_coder",
        "seed_oss",
        "smollm",
        "smollm2",
        "solar",
        "starchat",
        "telechat2",
        "vicuna",
        "video_llava",
        "xuanyuan",
        "yi",
        "yi_vl",
        "youtu",
        "youtu_vl",
        "yuan",
        "zephyr",
        "aeva",
    ]
)

MULTIMODAL = frozenset(
    [
        "dots_ocr",
        "ernie_vl",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gemma4n",
        "glm4v",
        "glm4_5v",
        "glm_ocr",
        "granite3_vision",
        "intern_vl",
        "intern_s1",
        "keye_vl",
        "kimi_vl",
        "lfm2_vl",
        "llama4",
        "mllama",
        "moss_vl",
        "llava",
        "llava_next",
        "llava_next_llama3",
        "llava_next_mistral",
        "llava_next_qwen",
        "llava_next_yi",
        "llava_next_video",
        "llava_next_video_mistral",
        "llava_next_video_yi",
        "mimo_vl",
        "minicpm_v",
        "minicpm_v_4_6",
        "minicpm_o",
        "mistral_small",
        "ministral3",
        "paligemma",
        "paligemma_chat",
        "pixtral",
        "qwen2_audio",
        "qwen2_omni",
        "qwen3_omni",
        "qwen3_omni_nothink",
        "qwen2_vl",
        "qwen3_vl",
        "qwen3_vl_nothink",
        "qwen3_5",
        "qwen3_5_nothink",
        "qwen3_6",
        "video_llava",
        "yi_vl",
        "youtu_vl",
    ]
)
"""With these LlamaFactory allows 4 images, 2 videos and 2 audios a request."""
MEDIA_LIMITS = {"image": 4, "video": 2, "audio": 2}

REASONING = frozenset(
    [
        "deepseekr1",
        "hy3",
        "ernie_vl",
        "gemma4",
        "gemma4n",
        "glm4_moe",
        "glm4v",
        "glm4_5v",
        "glm4_7",
        "glmz1",
        "gpt_oss",
        "keye_vl",
        "kimi_vl",
        "mimo",
        "mimo_v2",
        "mimo_vl",
        "minimax2",
        "qwen3",
        "qwen3_omni",
        "qwen3_vl",
        "qwen3_5",
        "qwen3_6",
        "seed_oss",
        "youtu",
        "aeva",
    ]
)
"""enable_thinking means something to these."""
PARSERS = {"qwen": "hermes", "llama3": "llama3_json", "mistral": "mistral", "default": None, "glm4": None}
"""LlamaFactory's tool_format -> the parser of vLLM for the same notation; None: there is none."""

_STRIPS = "but for blanks and line breaks at the ends of a message, which the chat template takes off"
_SAME: tuple[tuple[str, str, str], ...] = (
    ("llama3", r"Meta-Llama-3-(8B|70B)-Instruct$", _STRIPS),
    ("qwen", r"Qwen2\.5-(Coder-|Math-)?[\d.]+B-Instruct", ""),
    ("qwen3", r"Qwen3-[\d.]+B(-A[\d.]+B)?(-FP8|-AWQ|-GPTQ-Int\d)?$", ""),
    ("qwen3_nothink", r"Qwen3-[\d.]+B(-A[\d.]+B)?-Instruct-2507(-FP8)?$", ""),
    ("qwen2_vl", r"Qwen2(\.5)?-VL-[\d.]+B-Instruct", ""),
    ("qwen3_vl_nothink", r"Qwen3-VL-[\d.]+B(-A[\d.]+B)?-Instruct(-FP8)?$", ""),
)
"""Template, model, and what remains; compared by reading both, for text without tools."""
_DIFFERENT: tuple[tuple[str, str, str], ...] = (
    ("llama3", r"Llama-3\.[123]", "the Jinja of Llama 3.1 and later writes a knowledge date and today's date into every system prompt"),
    ("qwen", r"Qwen2-", "LlamaFactory's qwen says 'You are Qwen, created by Alibaba Cloud', which Qwen2's Jinja does not"),
    ("qwen3", r"-Thinking-2507", "the Jinja of Thinking models opens the thought itself, LlamaFactory's qwen3 does not"),
)  # fmt: skip


def known_same(template: str, model: str) -> str | None:
    """Where the family's own Jinja is known to render the same prompts, system and several turns included: what remains.

    :param model: hub id or folder; its last part counts.
    :returns: "" where nothing remains; None where nothing is known.
    """
    last = model.rstrip("/").rsplit("/", 1)[-1]
    return next(
        (rest for name, pattern, rest in _SAME if name == template and re.search(pattern, last)), None
    )


def known_difference(template: str, model: str) -> str | None:
    """How the family's own Jinja is known to differ; None: nothing is known."""
    last = model.rstrip("/").rsplit("/", 1)[-1]
    return next(
        (how for name, pattern, how in _DIFFERENT if name == template and re.search(pattern, last)), None
    )
