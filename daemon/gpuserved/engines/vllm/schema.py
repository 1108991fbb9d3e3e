"""JSON Schema of the flags in `[vllm]`, from what the installed version takes."""

from __future__ import annotations

from typing import Any

from gpuserved.engines.vllm.flags import OURS
from gpuserved.engines.vllm.help import SWITCH, TOGGLE, VALUES, FlagTable

_ANY = ["string", "number", "array", "object"]


def flag_schemas(table: FlagTable) -> dict[str, dict[str, Any]]:
    """One schema for each flag that a profile may set, by its name with underscores."""
    found = {name.replace("-", "_"): _one(name, table) for name in sorted(table.kinds)}
    return {name: schema for name, schema in found.items() if name not in OURS}


def _one(name: str, table: FlagTable) -> dict[str, Any]:
    ending = {"description": table.deprecated[name]} if name in table.deprecated else {}
    kind = table.kinds[name]
    if kind in {SWITCH, TOGGLE}:
        return {"type": "boolean", **ending}
    if name in table.choices:
        words = table.choices[name]
        one: dict[str, Any] = {"enum": [*words, *(int(word) for word in words if word.isdigit())]}
    elif name in table.numbers:
        one = {"type": ["number", "string"]}
    else:
        return {"type": _ANY, **ending}
    return (
        {"anyOf": [one, {"type": "array", "items": one}], **ending} if kind == VALUES else {**one, **ending}
    )
