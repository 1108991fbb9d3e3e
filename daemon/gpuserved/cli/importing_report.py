"""What an import tells: the fate of every key, and LlamaFactory's way of running the file beside ours."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TextIO

import msgspec

from gpuserved.api.errors import GpuserveError
from gpuserved.api.plan import Plan, Refusal
from gpuserved.api.roots import from_environment
from gpuserved.api.types import PlanWarning
from gpuserved.cli.importing_prompts import Compared, lines_of
from gpuserved.cli.session import shown_path, width
from gpuserved.cli.text import gpu_list, number, table, wrapped
from gpuserved.core.placement import Gpu
from gpuserved.core.profile import Profile
from gpuserved.host.logtail import clean
from gpuserved.importers.llamafactory import server
from gpuserved.importers.llamafactory.compare import WouldRun, would_run
from gpuserved.importers.llamafactory.draft import KEY_UNSUPPORTED, TEMPLATE_MISMATCH, Draft
from gpuserved.importers.llamafactory.keys import Fate


class KeyFate(msgspec.Struct, frozen=True, kw_only=True):
    """One key's account."""

    key: str
    fate: str
    where: str | None
    becomes: str | None
    reason: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of it, as --json prints it."""

    profile: str | None
    """The text; None where it was refused."""
    name: str
    served_name: str | None
    written_to: str | None
    keys: list[KeyFate]
    warnings: list[PlanWarning]
    refusal: Refusal | None
    llamafactory: WouldRun
    plan: Plan | None
    """None: the GPUs are not known, or the profile cannot be planned here."""
    vllm_version: str | None
    """The installed vLLM whose flags the profile was compared with; None: none is known."""
    prompts: list[Compared] | None
    """What --check-template compared."""
    next: str | None


def outcome_of(
    draft: Draft,
    text: str | None,
    profile: Profile | None,
    options: argparse.Namespace,
    out: Path | None,
    prompts: list[Compared] | None,
    vllm_version: str | None,
) -> Outcome:
    """Gather it."""
    gpus = _gpus(options.inventory)
    visible = None if gpus is None else len(gpus if profile is None or profile.gpus is None else profile.gpus)
    return Outcome(
        profile=text,
        name=draft.request.name,
        served_name=None if profile is None else profile.served_name,
        written_to=None if out is None or text is None else str(out),
        keys=[
            KeyFate(key=n.key, fate=n.fate.value, where=n.where, becomes=n.becomes, reason=n.reason) for n in draft.notes
        ],
        warnings=[
            PlanWarning(code=n.code or "llamafactory_key_changed", message=f"{n.key}: {n.reason}")
            for n in draft.notes
            if n.fate is Fate.WARNED
        ],
        refusal=_refusal(draft),
        llamafactory=would_run(draft, visible),
        plan=None if profile is None or not gpus else _plan(profile, gpus, on_paper=options.inventory is not None),
        vllm_version=vllm_version,
        prompts=prompts,
        next=None if out is None or text is None else _next(draft, out),
    )  # fmt: skip


def _refusal(draft: Draft) -> Refusal | None:
    found = [note for note in draft.notes if note.fate is Fate.REFUSED]
    if not found:
        return None
    only_template = all(note.code == TEMPLATE_MISMATCH for note in found)
    message = "; ".join(
        f"{note.where + ': ' if note.where else ''}{note.key}: {note.reason}" for note in found
    )
    hint = "change or leave out the keys named, or override them after the file as KEY=VALUE; null switches one off"
    return Refusal(code=TEMPLATE_MISMATCH if only_template else KEY_UNSUPPORTED, message=message, hint=hint)


def _next(draft: Draft, out: Path) -> str:
    env = draft.request.env
    listens = bool(env.get("API_HOST") or env.get("API_PORT"))
    listen = f" --listen {server.address(env)}" if listens else ""
    return f"gpuserve up {shown_path(out.absolute())}{listen}"


def _gpus(inventory: str | None) -> list[Gpu] | None:
    """Those of the file, or of this host; None: nobody knows."""
    if inventory is None:
        from gpuserved.planning.inventory import free_gpus
        from gpuserved.telemetry.choose import choose

        try:
            provider = choose(os.environ)
            return free_gpus(provider.inventory(), provider.sample()) or None
        except GpuserveError:
            return None
    from gpuserved.cli.plan import inventory_of

    return inventory_of(inventory)


def _plan(profile: Profile, gpus: list[Gpu], *, on_paper: bool) -> Plan | None:
    from gpuserved.planning.plan import plan_profile

    roots = from_environment(os.environ, uid=os.getuid())
    try:
        return plan_profile(profile, gpus, cache_dir=roots.cache, state_dir=roots.state, on_paper=on_paper)
    except GpuserveError as error:
        return Plan(
            fits=False, refusal=Refusal(code=error.code, message=error.message, hint=error.hint or "")
        )


def show(outcome: Outcome, text: str | None, out: Path | None) -> None:
    """For people. Without -o the profile alone goes to standard output, so that it can be redirected."""
    to = sys.stdout if out is not None else sys.stderr
    if text is not None and out is None:
        print(text, end="", flush=True)
    _say(to, "")
    for fate, title in (("refused", "refused"), ("warned", "to be known"), ("mapped", "mapped"), ("checked", "checked"), ("unused", "without effect")):  # fmt: skip
        _section(to, title, [key for key in outcome.keys if key.fate == fate])
    for line in lines_of(outcome.prompts or []):
        _say(to, clean(line))
    _beside(to, outcome)
    if outcome.refusal is not None:
        _say(to, f"refused ({outcome.refusal.code}): nothing was written")
        _say(to, f"  {outcome.refusal.hint}")
        return
    against = (
        f"those of vLLM {outcome.vllm_version}"
        if outcome.vllm_version
        else "the installed vLLM's at the first apply"
    )
    _say(to, f"flags are compared with {against}")
    if out is not None:
        _say(to, f"wrote {out}; next: {outcome.next}")


def _section(to: TextIO, title: str, keys: list[KeyFate]) -> None:
    if not keys:
        return
    _say(to, f"{title}:")
    for key in keys:
        line = f" ({key.where.rsplit(':', 2)[1]})" if key.where else ""
        becomes = f" -> {key.becomes}" if key.becomes else ""
        reason = f": {key.reason}" if key.reason else ""
        text = clean(f"  {key.key}{line}{becomes}{reason}")
        for part in wrapped(text, max(60, width()), "      "):
            _say(to, part)


def _beside(to: TextIO, outcome: Outcome) -> None:
    theirs = outcome.llamafactory
    size = "every GPU" if theirs.tensor_parallel_size is None else str(theirs.tensor_parallel_size)
    rows = [["LlamaFactory", "1", size, str(theirs.max_model_len), f"{theirs.gpu_memory_utilization:g}", "-"]]
    plan = outcome.plan
    if plan is not None and plan.placements:
        first = plan.placements[0]
        gpus = sorted({gpu for one in plan.placements for gpu in one.gpus})
        rows.append([
            "gpuserve", str(len(plan.placements)), str(first.tensor_parallel_size), number(first.max_model_len),
            "-" if first.gpu_memory_utilization is None else f"{first.gpu_memory_utilization:g}", gpu_list(gpus),
        ])  # fmt: skip
    _say(
        to,
        "\n".join(table(["", "REPLICAS", "TP", "MAX LEN", "GPU MEM", "GPUS"], rows, frozenset({1, 2, 3, 4}))),
    )
    for problem in theirs.problems:
        _say(to, f"  LlamaFactory: {clean(problem)}")
    if plan is not None and plan.refusal is not None:
        _say(to, f"  gpuserve: {clean(plan.refusal.message)}")
    if plan is None and outcome.refusal is None:
        _say(to, "  gpuserve: no GPUs are known here; gpuserve plan --inventory FILE shows the placements")
    _say(to, "")


def _say(to: TextIO, text: str) -> None:
    print(text, file=to, flush=True)
