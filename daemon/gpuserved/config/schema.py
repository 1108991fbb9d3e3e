"""JSON Schema of a profile, for editors (taplo reads `#:schema`). Made from the tables that the loader itself reads by.

It never refuses what the loader accepts. The loader also knows what no schema says: two settings that contradict each
other, a table of another engine, a name that cannot be a file's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum

from gpuserved.config import profile
from gpuserved.config.fields import Json, Key, Table
from gpuserved.core.profile import EngineName

DIALECT = "http://json-schema.org/draft-07/schema#"
"""What taplo and the TOML plug-ins of editors understand."""
_FLAG_VALUE = {"type": ["string", "number", "boolean", "array", "object"]}
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


def default_of(table: Table, key: Key) -> str:
    """What counts where the key is not set, in Markdown."""
    if key.default is not None:
        return key.default
    assert table.makes is not None
    value = next(each.default for each in fields(table.makes) if each.name == key.name)
    if value is MISSING or value is None:
        raise ValueError(f"{key.name} has no default that speaks for itself: say it in words")
    value = value.value if isinstance(value, Enum) else value
    return f'`"{value}"`' if isinstance(value, str) else f"{value:g}"


def profile_schema() -> Json:
    """The whole schema."""
    top = _properties(profile.TOP)
    for table in profile.TABLES:
        if table.name:
            top[table.name] = {
                "type": "object",
                "properties": _properties(table),
                "additionalProperties": False,
            }
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
    hoisted = {flag: schema["properties"][key.name] for flag, key in profile.hoisted(engine).items()}
    table = {
        **schema["properties"][engine.value],
        "properties": hoisted | spelt,
        "additionalProperties": False,
    }
    return {**schema, "properties": {**schema["properties"], engine.value: table}}


def _properties(table: Table) -> dict[str, Json]:
    return {key.name: {**key.read.schema(), "description": _description(table, key)} for key in table.keys}


def _description(table: Table, key: Key) -> str:
    text = f"{_LINK.sub(lambda found: found[1], key.means)} (default: {default_of(table, key)})"
    return text.replace("`", "")
