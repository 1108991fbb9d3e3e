"""LlamaFactory inference arguments to a profile: the order of the steps, and what each named key becomes."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

from gpuserved.importers.llamafactory import adapter, engine_config, prompts, server
from gpuserved.importers.llamafactory.draft import Draft, Request
from gpuserved.importers.llamafactory.keys import FOREIGN, KEYS, PROCESSOR_DEFAULTS, Fate
from gpuserved.importers.llamafactory.templates import MEDIA_LIMITS, MULTIMODAL

DEFAULT_MAX_LEN = 4096
DEFAULT_GPU_UTIL = 0.7
"""LlamaFactory's own defaults; vLLM's differ (the model's full length, and 0.92 in 0.33), so both are always written."""
SAMPLING = {"temperature": 0.95, "top_p": 0.7, "top_k": 50, "repetition_penalty": 1.0}
"""Applied by LlamaFactory to every request that does not say otherwise, whatever the model's generation_config.json says."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_OFF: tuple[object, ...] = (None, False, "", [], {})


def convert(request: Request) -> Draft:
    """The profile, and an account of every key. Refusals are in the account; nothing is raised for them.

    :raises Invalid: a value of the wrong type; names file, line and column.
    """
    draft = Draft(request)
    _known_keys(draft)
    _backend(draft)
    _model(draft)
    _engine_arguments(draft)
    _sampling(draft)
    _media(draft)
    adapter.convert(draft)
    engine_config.apply(draft)  # last, as in LlamaFactory: it beats every named key
    engine_config.tensor_parallel(draft)
    prompts.convert(draft)
    server.convert(draft)
    return draft


def _known_keys(draft: Draft) -> None:
    """Account for what nothing else is said about, and refuse what nobody knows."""
    values = draft.request.values
    extra = draft.request.env.get("ALLOW_EXTRA_ARGS", "0").lower() in {"1", "true", "y"}
    for key, value in values.items():
        known = KEYS.get(key)
        if known is None:
            _unknown(draft, key, allowed=extra)
        elif known.fate is Fate.UNUSED:
            draft.note(key, Fate.UNUSED, known.reason)
        elif known.fate is Fate.REFUSED:
            if value in _OFF:
                draft.note(key, Fate.UNUSED, "switched off")
            else:
                draft.refuse(key, known.reason)
        elif known.group == "processor":
            draft.note(key, Fate.WARNED, known.reason)
    for key in ("use_fast_tokenizer", "max_new_tokens", "max_length", "skip_special_tokens"):
        if key in values:
            usual = values[key] is True or values[key] is None
            draft.note(key, Fate.UNUSED if usual else Fate.WARNED, KEYS[key].reason)


def _unknown(draft: Draft, key: str, *, allowed: bool) -> None:
    if key in FOREIGN:
        why = f"a key of {FOREIGN[key]}, which llamafactory-cli api rejects too"
        fix = "take the inference YAML, not the training one, or leave the key out"
    else:
        near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.7)
        why = "no key of LlamaFactory's inference arguments, which rejects it too"
        fix = f"did you mean {near[0]}?" if near else "leave it out"
    if draft.request.values[key] is None:
        draft.note(key, Fate.UNUSED, "null")
    elif allowed:
        draft.note(key, Fate.WARNED, f"{why}; left out, as LlamaFactory does with ALLOW_EXTRA_ARGS=1")
    else:
        draft.refuse(key, f"{why}; {fix}")


def _backend(draft: Draft) -> None:
    backend = draft.choice("infer_backend", "huggingface", ("vllm", "huggingface", "sglang", "ktransformers"))
    if backend == "vllm":
        draft.note("infer_backend", Fate.CHECKED, KEYS["infer_backend"].reason)
    elif backend == "ktransformers":
        draft.refuse(
            "infer_backend",
            f"ktransformers: {KEYS['use_kt'].reason}; infer_backend=vllm after the file says that they do",
        )
    else:
        draft.note(
            "infer_backend",
            Fate.WARNED,
            f"{backend}: the engine changes to vLLM, and answers may differ in detail",
        )
    stage = draft.choice("stage", "sft", ("pt", "sft", "rm", "ppo", "dpo", "kto"))
    if stage != "sft":
        draft.refuse(
            "stage",
            f"{stage}: LlamaFactory's vLLM engine serves sft alone; stage: sft serves the same weights as a chat model",
        )
    elif draft.given("stage"):
        draft.note("stage", Fate.CHECKED, KEYS["stage"].reason)


def _model(draft: Draft) -> None:
    written = draft.text("model_name_or_path")
    if written is None:
        draft.request.file.refuse(("model_name_or_path",), "is missing", "name the model's folder or hub id")
    folder = draft.path(written)
    model = folder if Path(folder).is_dir() or not _HUB_ID.fullmatch(written) else written
    draft.set_top("model", model)
    if model == folder and not Path(folder).is_dir():
        draft.note(
            "model_name_or_path", Fate.WARNED, f"there is no folder {folder} on this machine", becomes="model"
        )
    else:
        draft.note("model_name_or_path", Fate.MAPPED, "", becomes="model")
    revision = draft.text("model_revision") or "main"
    if revision != "main":
        draft.set_flag("revision", revision)
        draft.set_flag("tokenizer_revision", revision)
        draft.note("model_revision", Fate.WARNED, "LlamaFactory gives it to the tokenizer and not to vLLM; here both get it",
                   becomes="[vllm] revision, tokenizer_revision")  # fmt: skip
    elif draft.given("model_revision"):
        draft.note("model_revision", Fate.UNUSED, "main is the default")
    cache = draft.text("cache_dir")
    if cache:
        draft.set_flag("download_dir", draft.path(cache))
        draft.note("cache_dir", Fate.MAPPED, "", becomes="[vllm] download_dir")
    for key in ("hf_hub_token", "ms_hub_token"):
        if draft.given(key):
            draft.note(key, Fate.WARNED, f"not written: {KEYS[key].reason}")
    if draft.boolean("trust_remote_code", default=False):
        draft.set_flag(
            "trust_remote_code", True, "runs code from the model's repository; most models do not need it"
        )
        draft.note("trust_remote_code", Fate.WARNED, "code from the model's repository runs with the daemon's rights: "
                   "leave it out where vLLM knows the model", becomes="[vllm] trust_remote_code")  # fmt: skip
    elif draft.given("trust_remote_code"):
        draft.note("trust_remote_code", Fate.UNUSED, "false is the default")


def _engine_arguments(draft: Draft) -> None:
    given = draft.given("vllm_maxlen")
    draft.set_top("max_model_len", draft.integer("vllm_maxlen", DEFAULT_MAX_LEN),
                  None if given else "LlamaFactory's default; raise it if requests may be longer")  # fmt: skip
    draft.note("vllm_maxlen", Fate.MAPPED, "" if given else "LlamaFactory's default of 4096; vLLM's own is the model's full length",
               becomes="max_model_len")  # fmt: skip
    given = draft.given("vllm_gpu_util")
    draft.set_flag("gpu_memory_utilization", draft.number("vllm_gpu_util", DEFAULT_GPU_UTIL, 0.01, 1.0),
                   None if given else "LlamaFactory's default, made to leave room for its web page; 0.9 holds more requests")  # fmt: skip
    draft.note("vllm_gpu_util", Fate.MAPPED, "" if given else "LlamaFactory's default of 0.7; vLLM's own is 0.92",
               becomes="[vllm] gpu_memory_utilization")  # fmt: skip
    if draft.boolean("vllm_enforce_eager", default=False):
        draft.set_flag("enforce_eager", True, "slower decoding; without it vLLM captures CUDA graphs")
        draft.note("vllm_enforce_eager", Fate.WARNED, "costs decoding speed: leave it out unless memory is short",
                   becomes="[vllm] enforce_eager")  # fmt: skip
    elif draft.given("vllm_enforce_eager"):
        draft.note("vllm_enforce_eager", Fate.UNUSED, "false is the default")
    dtype = draft.choice("infer_dtype", "auto", ("auto", "float16", "bfloat16", "float32"))
    if draft.given("vllm_dtype") and not draft.given("infer_dtype"):
        dtype = draft.choice(
            "vllm_dtype", "auto", ("auto", "float16", "bfloat16", "float32", "half", "float")
        )
        draft.note("vllm_dtype", Fate.MAPPED, KEYS["vllm_dtype"].reason, becomes="[vllm] dtype")
    if dtype == "auto" and _is_gptq(draft):
        dtype = "float16"
        draft.note(
            "infer_dtype",
            Fate.MAPPED,
            "the checkpoint is GPTQ, which LlamaFactory runs in float16",
            becomes="[vllm] dtype",
        )
    elif draft.given("infer_dtype"):
        draft.note("infer_dtype", Fate.MAPPED, "", becomes="[vllm] dtype")
    if dtype != "auto":
        draft.set_flag("dtype", dtype)


def _is_gptq(draft: Draft) -> bool:
    try:
        config = json.loads((Path(str(draft.top["model"])) / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(quantization, dict) and quantization.get("quant_method") == "gptq"


def _sampling(draft: Draft) -> None:
    chosen: dict[str, float | int] = {
        "temperature": draft.number("temperature", SAMPLING["temperature"], 0.0, 100.0),
        "top_p": draft.number("top_p", SAMPLING["top_p"], 0.0, 1.0) or 1.0,
        "top_k": draft.integer("top_k", int(SAMPLING["top_k"]), low=-1) or -1,
        "repetition_penalty": draft.number("repetition_penalty", SAMPLING["repetition_penalty"], 0.0, 10.0)
        or 1.0,
    }
    draft.set_flag("override_generation_config", dict(chosen),
                   "LlamaFactory's sampling defaults; without this line the model's own count")  # fmt: skip
    for key in filter(draft.given, chosen):
        draft.note(key, Fate.MAPPED, "", becomes=f"[vllm] override_generation_config.{key}")
    defaults = [key for key in chosen if not draft.given(key)]
    if defaults:
        draft.note(", ".join(defaults), Fate.MAPPED, "LlamaFactory's defaults; vLLM's own are the model's generation_config.json",
                   becomes="[vllm] override_generation_config")  # fmt: skip


def _media(draft: Draft) -> None:
    if draft.text("template") in MULTIMODAL:
        draft.set_flag("limit_mm_per_prompt", dict(MEDIA_LIMITS), "what LlamaFactory allows in one request")
        draft.note("image_max_pixels", Fate.WARNED, f"LlamaFactory shrinks media ({PROCESSOR_DEFAULTS} unless set), vLLM takes the "
                   "model's own limits: images may cost more tokens here")  # fmt: skip
