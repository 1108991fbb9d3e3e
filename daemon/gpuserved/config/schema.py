"""JSON Schema of a profile, for editors (taplo reads `#:schema`). Made from the tables that the loader itself reads by.

It never refuses what the loader accepts. The loader also knows what no schema says: two settings that contradict each
other, a table of another engine, a name that cannot be a file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuserved.config import profile
from gpuserved.config.fields import Integer, Number, Read, Text, Words, boolean
from gpuserved.core.profile import EngineName

DIALECT = "http://json-schema.org/draft-07/schema#"
"""What taplo and the TOML plug-ins of editors understand."""
TABLES: dict[str, dict[str, Read]] = {
    "routing": profile.ROUTING,
    "limits": profile.LIMITS,
    "restart": profile.RESTART,
    "health": profile.HEALTH,
    "command": profile.COMMAND,
}
_FLAG_VALUE = {"type": ["string", "number", "boolean", "array", "object"]}

Json = dict[str, Any]


def profile_schema(meanings: Mapping[str, Mapping[str, str]]) -> Json:
    """The whole schema.

    :param meanings: what each key means, by table; the top level is "".
    """
    top = {key: _field(read) for key, read in profile.TOP.items()}
    top["gpus"] = {
        "anyOf": [
            {"const": "all"},
            {"type": "array", "uniqueItems": True, "items": {"anyOf": [
                {"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1},
            ]}},
        ]
    }  # fmt: skip
    _describe(top, meanings.get("", {}))
    for name, fields in TABLES.items():
        inner = {key: _field(read) for key, read in fields.items()}
        _describe(inner, meanings.get(name, {}))
        top[name] = {"type": "object", "properties": inner, "additionalProperties": False}
    for engine in EngineName:
        if engine is not EngineName.COMMAND:
            top[engine.value] = {
                "type": "object", "additionalProperties": _FLAG_VALUE, "description": f"flags of the {engine.value} engine",
            }  # fmt: skip
    top["env"] = {
        "type": "object",
        "propertyNames": {"pattern": f"^{profile.VARIABLE.pattern}$"},
        "additionalProperties": {"type": "string"},
        "description": "environment variables of the engine's process",
    }
    return {
        "$schema": DIALECT,
        "title": "gpuserve profile",
        "type": "object",
        "properties": top,
        # In [vllm] the model may stand too; then the top level needs none.
        "anyOf": [{"required": ["model"]}, {"required": ["vllm"]}],
        "additionalProperties": False,
    }


def with_flags(schema: Json, engine: EngineName, flags: Mapping[str, Json]) -> Json:
    """The same with the flags that an installed engine takes, and no others.

    :param flags: schema of each, by its name with underscores; names with dashes are taken too.
    """
    spelt = dict(flags) | {name.replace("_", "-"): inner for name, inner in flags.items()}
    hoisted = {flag: schema["properties"][key] for flag, key in profile.HOISTED.items()}
    table = {
        **schema["properties"][engine.value],
        "properties": hoisted | spelt,
        "additionalProperties": False,
    }
    return {**schema, "properties": {**schema["properties"], engine.value: table}}


def _field(read: Read) -> Json:
    """One field's schema."""
    if isinstance(read, Text):
        return {"enum": list(read.choices)} if read.choices else {"type": "string", "minLength": 1}
    if isinstance(read, Integer):
        whole = {"type": "integer", "minimum": read.low, "maximum": read.high}
        return {"anyOf": [whole, {"const": "auto"}]} if read.auto else whole
    if isinstance(read, Number):
        return {"type": "number", "minimum": read.low, "maximum": read.high}
    if isinstance(read, Words):
        return {"type": "array", "items": {"type": "string"}, "minItems": read.at_least}
    return {"type": "boolean"} if read is boolean else {}


def _describe(fields: dict[str, Json], meanings: Mapping[str, str]) -> None:
    for key, schema in fields.items():
        if key in meanings:
            schema["description"] = meanings[key]
