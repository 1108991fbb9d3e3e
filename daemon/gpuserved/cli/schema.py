"""schema: the JSON Schema of a profile, with the installed vLLM's own flags where they are asked for."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from gpuserved.api.errors import Invalid
from gpuserved.api.roots import from_environment
from gpuserved.cli.parser import VerbParser
from gpuserved.cli.session import warn
from gpuserved.config.schema import profile_schema, with_flags
from gpuserved.core.profile import EngineName


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples(
        "schema -o profiles/profile.schema.json", "schema --vllm", "schema --python /opt/vllm/bin/python"
    )
    parser.add_argument("--output", "-o", metavar="FILE", help="write it there (standard output)")
    parser.add_argument("--vllm", action="store_true", help="with the flags of the vLLM in PATH")
    parser.add_argument("--python", metavar="PYTHON", help="the same for the vLLM of this environment")


def run(options: argparse.Namespace) -> int:
    """`gpuserve schema`."""
    found = profile_schema()
    if options.vllm or options.python:
        found = _with_vllm(found, options.python)
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if options.output is None:
        print(text, flush=True)
        return 0
    path = Path(options.output)
    try:
        path.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise Invalid(f"{path}: cannot be written: {error.strerror}", "choose another -o") from None
    warn(f"wrote {path}; the first line of a profile beside it: #:schema ./{path.name}")
    return 0


def _with_vllm(found: dict[str, Any], python: str | None) -> dict[str, Any]:
    from gpuserved.engines.installed import expand, find_program
    from gpuserved.engines.vllm import flags as vllm_flags
    from gpuserved.engines.vllm.schema import flag_schemas

    program = None if python else find_program("vllm", os.environ, beside=sys.executable)
    interpreter = expand(python) if python else (program.python if program else None)
    cache = from_environment(os.environ, uid=os.getuid()).cache
    table = None if interpreter is None else asyncio.run(vllm_flags.ensure_flag_table(interpreter, cache))
    if table is None:
        raise Invalid(
            "no vLLM told its flags" if interpreter else "vLLM is not installed: no `vllm` in PATH",
            "--python names the interpreter of the environment that vLLM is installed in",
        )
    return with_flags(found, EngineName.VLLM, flag_schemas(table))
