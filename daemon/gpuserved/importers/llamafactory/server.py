"""LlamaFactory's server is set by environment variables; here names belong to the profile, addresses and keys to the daemon."""

from __future__ import annotations

from collections.abc import Mapping

from gpuserved.core.profile import FlagValue
from gpuserved.importers.llamafactory.draft import Draft
from gpuserved.importers.llamafactory.keys import Fate

DEFAULT_MODEL_NAME = "gpt-3.5-turbo"
"""What LlamaFactory's /v1/models reports; it accepts any name in a request."""
DEFAULT_ADDRESS = ("0.0.0.0", "8000")  # noqa: S104 - what LlamaFactory does; it is only shown
_TRUE = {"1", "true", "y"}
_PLAIN: dict[str, tuple[Fate, str]] = {
    "FASTAPI_ROOT_PATH": (
        Fate.WARNED,
        "the router serves at / : let the proxy in front of it strip the prefix",
    ),
    "API_VERBOSE": (Fate.UNUSED, "the router never logs what a request says"),
    "SAFE_MEDIA_PATH": (
        Fate.WARNED,
        "local media: allowed_local_media_path in [vllm] opens a folder to requests",
    ),
    "ALLOW_LOCAL_FILES": (
        Fate.WARNED,
        "local media: allowed_local_media_path in [vllm] opens a folder to requests",
    ),
    "MAX_CONCURRENT": (Fate.UNUSED, "of the huggingface engine alone"),
    "DISABLE_VERSION_CHECK": (
        Fate.UNUSED,
        "the versions of vLLM that gpuserve supports are checked by itself",
    ),
    "USE_V1": (Fate.UNUSED, "of LlamaFactory's own code alone"),
}


def convert(draft: Draft) -> None:
    """The name that clients use, the address, the key and the hub."""
    env = draft.request.env
    named = draft.request.served_name or env.get("API_MODEL_NAME")
    draft.set_top("served_name", named or DEFAULT_MODEL_NAME, None if named else
                  "the name LlamaFactory reports, and its clients send; the router answers 404 to any other")  # fmt: skip
    _environment_note(draft, "API_MODEL_NAME", Fate.MAPPED if named else Fate.WARNED,
                      "" if named else "not set: LlamaFactory accepts any model name, the router this one alone; --served-name changes it",
                      becomes="served_name", always=True)  # fmt: skip
    adapters = draft.flags.get("lora_modules")
    if isinstance(adapters, list) and len(adapters) == 1 and "=" not in str(adapters[0]):
        draft.set_flag("lora_modules", [f"{draft.top['served_name']}={adapters[0]}"])
    _address(draft)
    if env.get("USE_MODELSCOPE_HUB", "0").lower() in _TRUE:
        draft.set_variable("VLLM_USE_MODELSCOPE", "true")
        _environment_note(draft, "USE_MODELSCOPE_HUB", Fate.MAPPED, "", becomes="[env] VLLM_USE_MODELSCOPE")
    if env.get("USE_OPENMIND_HUB", "0").lower() in _TRUE:
        draft.refuse(
            "USE_OPENMIND_HUB", "vLLM cannot download from openMind: download the model and give its folder"
        )
    for name, (fate, why) in _PLAIN.items():
        _environment_note(draft, name, fate, why)
    _visible_gpus(draft)


def _address(draft: Draft) -> None:
    env = draft.request.env
    if env.get("API_HOST") or env.get("API_PORT"):
        for name in ("API_HOST", "API_PORT"):
            _environment_note(
                draft,
                name,
                Fate.MAPPED,
                "the daemon's, not the profile's",
                becomes=f"gpuserve up --listen {address(env)}",
            )
    if env.get("API_KEY"):
        _environment_note(draft, "API_KEY", Fate.WARNED, "not written: clients keep their key once the daemon's keys file has the line "
                          'llamafactory:HASH, where HASH is what  printf %s "$API_KEY" | sha256sum  prints', becomes="keys_file")  # fmt: skip


def address(env: Mapping[str, str]) -> str:
    """Where LlamaFactory's server listens."""
    host, port = env.get("API_HOST") or DEFAULT_ADDRESS[0], env.get("API_PORT") or DEFAULT_ADDRESS[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _visible_gpus(draft: Draft) -> None:
    visible = draft.request.env.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return
    names: list[FlagValue] = [
        int(one) if one.strip().isdigit() else one.strip() for one in visible.split(",") if one.strip()
    ]
    draft.set_top("gpus", names, "from CUDA_VISIBLE_DEVICES; here in PCI order, which nvidia-smi shows")
    _environment_note(draft, "CUDA_VISIBLE_DEVICES", Fate.WARNED, "CUDA's own order may differ from the PCI order that counts here: "
                      "compare with gpuserve gpus where the GPUs are not all of one kind", becomes="gpus")  # fmt: skip


def _environment_note(
    draft: Draft, name: str, fate: Fate, why: str, *, becomes: str | None = None, always: bool = False
) -> None:
    if always or draft.request.env.get(name):
        draft.note(name, fate, why, becomes=becomes)
