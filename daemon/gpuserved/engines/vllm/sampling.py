"""What a request gets that says nothing of sampling: the model's generation_config.json, and what the profile's flags make of it.

vLLM (`ModelConfig.get_diff_sampling_param`): `generation_config = "vllm"` leaves the file aside, a path names another folder, and
`override_generation_config` goes over it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpuserved.core.profile import Profile
from gpuserved.engines.base import Sampling

FILE = "generation_config.json"
MAX_BYTES = 1024 * 1024
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "max_new_tokens": (),
}
"""The parameters that vLLM takes from the file, with the values that change nothing."""


def sampling(profile: Profile, folder: Path | None) -> Sampling:
    """Of a profile whose model lies in `folder`; None: it is not here, and only the flags tell. A damaged file tells nothing."""
    source = profile.flags.get("generation_config", "auto")
    own = source in {"auto", "vllm"}
    where = folder if own else Path(str(source))
    found = {} if source == "vllm" or where is None else _chosen(_read(where / FILE))
    override = profile.flags.get("override_generation_config")
    overridden = _chosen(override) if isinstance(override, dict) else {}
    found.update(overridden)
    named = {"max_tokens" if name == "max_new_tokens" else name: value for name, value in found.items()}
    cap = overridden.get("max_new_tokens") if own else found.get("max_new_tokens")  # OpenAI's serving classes
    return Sampling(tuple(sorted(named.items())), int(cap) if cap is not None else None)


def _chosen(table: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, neutral in _NEUTRAL.items()
        if isinstance(value := table.get(name), (int, float))
        and not isinstance(value, bool)
        and value not in neutral
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
