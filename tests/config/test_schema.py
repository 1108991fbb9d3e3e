"""The JSON Schema says what the loader says; a real validator is the judge of the one, the loader of the other."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from gpuserved.api.errors import Invalid
from gpuserved.config.daemon import parse_daemon_config
from gpuserved.config.fields import Table
from gpuserved.config.profile import TABLES, load_profile
from gpuserved.config.schema import profile_schema
from gpuserved.config.write import literal
from gpuserved.core.profile import Profile, Takes

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "profiles").glob("*.toml"))
VALIDATOR = Draft7Validator(profile_schema())
LOOSE = {"served_name", "session_header", "health_path", "metrics_path"}
"""Texts with a form that the schema leaves to the loader."""


def accepted(text: str) -> bool:
    try:
        load_profile(text, "p.toml", "p")
    except Invalid:
        return False
    return True


def test_what_is_written_of_keys_is_what_they_are_declared_as() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "profile_schema.py"))
    assert (ROOT / "profiles" / "profile.schema.json").read_text() == script["schema"](), "run: make docs"
    assert script["PAGES"].keys() == {"README.md", "docs/profiles.md"}
    for name, written in script["PAGES"].items():
        page = (ROOT / name).read_text("utf-8")
        assert page == written(page), f"{name}: run: make docs"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name or "top")
def test_a_key_becomes_a_field_of_the_same_name(table: Table) -> None:
    names = {key.name for key in table.keys}
    assert table.makes is not None
    own = {field.name for field in dataclasses.fields(table.makes)}
    assert names <= own
    if table.makes is not Profile:
        assert names == own, "a field that no key sets"


def test_the_page_says_which_keys_need_no_new_process() -> None:
    page = (ROOT / "docs" / "profiles.md").read_text()
    said = page.split("\nA change of ", 1)[1].split(" takes effect on running replicas", 1)[0]
    named = {word.strip("[]") for word in said.replace(",", " ").replace("`", " ").split()}
    at_once = {one.name for one in dataclasses.fields(Profile) if one.metadata["takes"] is Takes.NOTHING}
    assert at_once - {"name"} <= named
    assert not named & {
        one.name for one in dataclasses.fields(Profile) if one.metadata["takes"] is Takes.PROCESS
    }


def test_the_example_of_the_daemons_file_is_one(tmp_path: Path) -> None:
    page = (ROOT / "README.md").read_text()
    text = page.split("```toml\n[router]\n", 1)[1].split("\n```\n", 1)[0]
    config = parse_daemon_config(f"[router]\n{text}\n", tmp_path / "gpuserved.toml")
    assert config.keys_file == tmp_path / "keys"
    assert config.drain_s == 3600


def test_it_is_a_schema_with_a_meaning_for_every_key() -> None:
    schema = json.loads((ROOT / "profiles" / "profile.schema.json").read_text())
    Draft7Validator.check_schema(schema)
    tables = [schema, *(inner for inner in schema["properties"].values() if "properties" in inner)]
    assert len(tables) == 6
    silent = [
        key for table in tables for key, inner in table["properties"].items() if "description" not in inner and "properties" not in inner
    ]  # fmt: skip
    assert not silent


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_profile_is_valid_and_names_the_schema(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("#:schema ./profile.schema.json\n# ")
    assert not list(VALIDATOR.iter_errors(tomli.loads(text)))
    load_profile(text, str(path), path.stem)


FIELDS = [
    (table, key)
    for table in ("", "routing", "limits", "restart", "health", "command")
    for key in (VALIDATOR.schema if not table else VALIDATOR.schema["properties"][table])["properties"]
    if (table or "properties" not in VALIDATOR.schema["properties"][key]) and key not in {"vllm", "sim", "llamacpp", "env"}
]  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(["auto", "all", "replicas", "vllm", "sim", "least_inflight", "/x", "", " ", True, False, [], ["a"], [0, "GPU-1"], [0, 0], {}]),
    st.integers(-2, 2000),
    st.integers(10**5, 10**9),
    st.floats(-2, 10**6, allow_nan=False, allow_infinity=False),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=5),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(field=st.sampled_from(FIELDS), value=VALUES)
def test_one_value_is_judged_alike(field: tuple[str, str], value: Any) -> None:
    table, key = field
    lines = [] if (table, key) == ("", "model") else ['model = "org/m"']
    if table == "command" or (key, value) == ("engine", "command"):
        lines.append('engine = "command"')
    lines += [f"[{table}]"] if table else []
    if table == "command" and key != "argv":
        lines.append('argv = ["x", "{port}"]')
    text = "\n".join([*lines, f"{key} = {literal(value)}"]) + "\n"
    by_schema = VALIDATOR.is_valid(tomli.loads(text))
    if isinstance(value, float) and value.is_integer():
        return  # 2.0 is a whole number to JSON, and none to TOML
    if accepted(text):
        assert by_schema, f"the schema refuses what the loader accepts: {text}"
    elif by_schema:
        # The loader alone knows these: blank texts, forms, and settings that contradict another one's default.
        contradicts = key in {"backoff_s", "backoff_max_s", "hang_timeout_s", "hang_rotation_s"}
        assert isinstance(value, (str, list)) or contradicts, (
            f"the schema accepts what the loader refuses: {text}"
        )
        assert (
            key in LOOSE
            or contradicts
            or isinstance(value, list)
            or not value.strip()
            or key in {"model", "python"}
        ), text


@pytest.mark.parametrize(
    "text",
    [
        'modle = "x"',
        'model = "m"\n[limits]\nqeue = 1',
        'model = "m"\nmax_model_len = "8k"',
        'model = "m"\n[env]\n1X = "a"',
        "replicas = 2",
    ],
)
def test_mistakes_are_seen_in_the_editor(text: str) -> None:
    assert not VALIDATOR.is_valid(tomli.loads(text))
    assert not accepted(text)


def test_the_command_prints_the_shipped_schema(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from gpuserved.cli.main import main

    assert main(["schema"]) == 0
    shipped = json.loads((ROOT / "profiles" / "profile.schema.json").read_text())
    assert json.loads(capsys.readouterr().out) == shipped
    assert main(["schema", "-o", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == shipped
    assert main(["schema", "-o", str(tmp_path / "no" / "s.json")]) == 2
    assert main(["schema", "--python", str(tmp_path / "python")]) == 2
    assert "--python names the interpreter" in capsys.readouterr().err
