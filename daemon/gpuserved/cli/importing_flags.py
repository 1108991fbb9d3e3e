"""The flags of an imported profile, compared with those of the vLLM that will run it."""

from __future__ import annotations

import asyncio
import os
import sys

from gpuserved.api.errors import Invalid
from gpuserved.api.roots import from_environment
from gpuserved.engines.installed import expand, find_program
from gpuserved.engines.vllm import flags as vllm_flags
from gpuserved.engines.vllm.help import FlagTable
from gpuserved.importers.llamafactory.draft import Draft
from gpuserved.importers.llamafactory.keys import Fate


def compare_flags(draft: Draft, python: str | None) -> str | None:
    """Refuse what the installed vLLM does not take; LlamaFactory's own was 0.11 at most, and flags come and go.

    :param python: interpreter of vLLM's environment; its flags are asked for where they are not known yet. Without it the vLLM
        in PATH counts, where its flags are known already.
    :returns: the version it was compared with; None: none is known.
    """
    table = _table(python)
    if table is None:
        return None
    keys = {note.becomes: note.key for note in draft.notes}
    for name, value in draft.flags.items():
        key = keys.get(f"[vllm] {name}", name)
        inside = tuple(key.split("."))
        try:
            warnings = vllm_flags.check({name: value}, table, draft.request.name)
        except Invalid as error:
            said = error.message.split("[vllm] ", 1)[-1]
            draft.refuse(key, f"{said}; {error.hint}" if error.hint else said, inside=inside)
            continue
        for warning in warnings:
            draft.note(key, Fate.WARNED, warning, inside=inside)
    return table.version


def _table(python: str | None) -> FlagTable | None:
    cache = from_environment(os.environ, uid=os.getuid()).cache
    if python is not None:
        found = asyncio.run(vllm_flags.ensure_flag_table(expand(python), cache))
        if found is None:
            raise Invalid(
                f"{python}: no vLLM there tells its flags",
                "--python names the interpreter of the environment that vLLM is installed in",
            )
        return found
    program = find_program("vllm", os.environ, beside=sys.executable)
    return None if program is None else vllm_flags.cached(program.python, cache)
