"""import-llamafactory: a LlamaFactory inference YAML to a profile, every key accounted for, and LlamaFactory's way of running the
same file beside ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TextIO

import msgspec

from gpuserved.api.errors import GpuserveError, Internal, Invalid, Refused
from gpuserved.api.plan import Plan, Refusal
from gpuserved.api.roots import from_environment
from gpuserved.api.types import PlanWarning
from gpuserved.cli.parser import VerbParser
from gpuserved.cli.plan import inventory_of
from gpuserved.cli.session import print_json, shown_path, width
from gpuserved.cli.text import gpu_list, number, table, wrapped
from gpuserved.config.profile import check_name, load_profile
from gpuserved.config.target import name_from
from gpuserved.core.placement import Gpu
from gpuserved.core.profile import Profile
from gpuserved.engines.installed import expand, find_program
from gpuserved.engines.vllm import flags as vllm_flags
from gpuserved.engines.vllm.help import FlagTable
from gpuserved.host.logtail import clean
from gpuserved.importers.llamafactory import server, source
from gpuserved.importers.llamafactory.compare import WouldRun, would_run
from gpuserved.importers.llamafactory.compare_prompts import Compared, compare
from gpuserved.importers.llamafactory.convert import convert
from gpuserved.importers.llamafactory.draft import KEY_UNSUPPORTED, TEMPLATE_MISMATCH, Draft, Request
from gpuserved.importers.llamafactory.keys import Fate
from gpuserved.importers.llamafactory.render import render
from gpuserved.importers.llamafactory.server import DEFAULT_MODEL_NAME


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


def add_arguments(parser: VerbParser) -> None:
    """Its arguments."""
    parser.examples(
        "import-llamafactory qwen3.yaml -o profiles/qwen3.toml",
        "import-llamafactory qwen3.yaml infer_backend=vllm vllm_config.enforce_eager=true",
        "import-llamafactory sft.yaml --check-template http://127.0.0.1:8000 --llamafactory-python ~/lf/bin/python",
    )
    parser.add_argument("file", metavar="FILE.yaml", help="what llamafactory-cli api takes")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as after llamafactory-cli api FILE.yaml"
    )
    parser.add_argument(
        "--output", "-o", metavar="FILE.toml", help="write the profile there (standard output)"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE.toml")
    parser.add_argument("--base", metavar="DIR", help="the folder LlamaFactory was started in (this one)")
    parser.add_argument("--served-name", metavar="NAME", help="what requests put into model (API_MODEL_NAME)")
    parser.add_argument(
        "--python", metavar="PYTHON", help="interpreter of vLLM's environment, for the profile"
    )
    parser.add_argument(
        "--inventory", metavar="FILE", help="compare for these GPUs instead of this machine's"
    )
    parser.add_argument("--chat-template", metavar="FILE.jinja", help="the chat template vLLM is to use")
    parser.add_argument(
        "--accept-template-risk",
        action="store_true",
        help="import although prompts may be rendered differently",
    )
    parser.add_argument(
        "--check-template",
        metavar="URL",
        help="compare LlamaFactory's prompts with those of the engine there",
    )
    parser.add_argument(
        "--llamafactory-python",
        metavar="PYTHON",
        help="interpreter of LlamaFactory's environment, for --check-template",
    )


def run(options: argparse.Namespace) -> int:
    """`gpuserve import-llamafactory`."""
    out = Path(options.output) if options.output else None
    _check_output(out, force=options.force)
    draft, prompts = _convert(options, out)
    version = _compare_flags(draft, options.python)
    refused = [note for note in draft.notes if note.fate is Fate.REFUSED]
    text = None if refused else _finish(draft, out)
    profile = None if text is None else _checked(text, draft, out)
    outcome = _outcome(draft, text, profile, options, out, prompts, version)
    if text is not None and out is not None:
        _write(out, text, draft.files)
    if options.json:
        print_json(outcome)
    else:
        _show(outcome, text, out)
    return Refused.exit_code if refused else 0


def _convert(options: argparse.Namespace, out: Path | None) -> tuple[Draft, list[Compared] | None]:
    path = Path(options.file)
    file, values, interpolated = source.read(path, options.overrides, os.environ)
    base = Path(options.base).absolute() if options.base else Path.cwd()
    prompts = None
    if options.check_template is not None:
        name = options.served_name or os.environ.get("API_MODEL_NAME") or DEFAULT_MODEL_NAME
        prompts = compare(options.check_template, options.llamafactory_python, values, base, name)
    draft = convert(Request(
        file=file,
        values=values,
        env=os.environ,
        base=base,
        name=check_name(out.stem, str(out)) if out else name_from(path.stem),
        served_name=options.served_name,
        python=options.python,
        chat_template=options.chat_template,
        accept_template_risk=options.accept_template_risk,
        prompts_same=None if prompts is None else all(one.same for one in prompts),
    ))  # fmt: skip
    for key in interpolated:
        draft.note(
            key,
            Fate.WARNED,
            "its ${...} is resolved; LlamaFactory hands the text on as it stands",
            inside=tuple(key.split(".")),
        )
    return draft, prompts


def _check_output(out: Path | None, *, force: bool) -> None:
    if out is None:
        return
    if out.suffix != ".toml":
        raise Invalid(
            f"{out}: a profile's file ends in .toml", "its name without .toml is the profile's name"
        )
    if out.exists() and not force:
        raise Refused(f"{out} exists, and nothing was changed", "--force replaces it")
    if not out.absolute().parent.is_dir():
        raise Invalid(f"{out}: there is no folder {out.absolute().parent}", "make it, or choose another -o")


def _finish(draft: Draft, out: Path | None) -> str:
    """The profile's text, with paths to the files written beside it."""
    if draft.files and out is None:
        raise Invalid(
            "this profile needs a chat template in a file of its own",
            "give -o FILE.toml: the template is written beside it",
        )
    for name in draft.files:
        assert out is not None
        draft.set_flag("chat_template", str(out.absolute().with_name(name)))
    return render(draft)


def _checked(text: str, draft: Draft, out: Path | None) -> Profile:
    """The text as our own loader reads it. What it refuses is a fault of the importer, or of a value it passed on."""
    try:
        return load_profile(text, str(out or f"{draft.request.name}.toml"), draft.request.name)
    except Invalid as error:
        if draft.request.served_name or os.environ.get("API_MODEL_NAME"):
            raise
        raise Internal(
            f"the profile made of {draft.request.file.source} is not valid: {error.message}", error.hint
        ) from None


def _write(out: Path, text: str, files: dict[str, str]) -> None:
    for path, content in [*((out.with_name(name), inner) for name, inner in files.items()), (out, text)]:
        try:
            handle, temporary = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError as error:
            raise Invalid(f"{path}: cannot be written: {error.strerror}", "choose another -o") from None


def _compare_flags(draft: Draft, python: str | None) -> str | None:
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


def _outcome(
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


def _show(outcome: Outcome, text: str | None, out: Path | None) -> None:
    """For people. Without -o the profile alone goes to standard output, so that it can be redirected."""
    to = sys.stdout if out is not None else sys.stderr
    if text is not None and out is None:
        print(text, end="", flush=True)
    _say(to, "")
    for fate, title in (("refused", "refused"), ("warned", "to be known"), ("mapped", "mapped"), ("checked", "checked"), ("unused", "without effect")):  # fmt: skip
        _section(to, title, [key for key in outcome.keys if key.fate == fate])
    for line in _prompt_lines(outcome.prompts or []):
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


def _prompt_lines(found: list[Compared]) -> list[str]:
    """For people."""
    lines = []
    for one in found:
        if one.same:
            lines.append(f"same prompt ({one.engine_tokens} tokens): {one.name}")
            continue
        theirs, ours = (
            json.dumps(text, ensure_ascii=False) for text in (one.llamafactory_text, one.engine_text)
        )
        lines.append(f"other prompt from token {one.first_difference}: {one.name}")
        lines.append(f"  LlamaFactory ({one.llamafactory_tokens} tokens): {theirs}")
        lines.append(f"  engine       ({one.engine_tokens} tokens): {ours}")
    return lines
