"""import-llamafactory: a LlamaFactory inference YAML to a profile, every key accounted for."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from gpuserved.api.errors import Internal, Invalid, Refused
from gpuserved.cli.importing_flags import compare_flags
from gpuserved.cli.importing_prompts import Compared, compare
from gpuserved.cli.importing_report import outcome_of, show
from gpuserved.cli.session import print_json
from gpuserved.config.profile import check_name, load_profile
from gpuserved.config.target import name_from
from gpuserved.core.profile import Profile
from gpuserved.importers.llamafactory import source
from gpuserved.importers.llamafactory.convert import convert
from gpuserved.importers.llamafactory.draft import Draft, Note, Request
from gpuserved.importers.llamafactory.keys import Fate
from gpuserved.importers.llamafactory.render import render
from gpuserved.importers.llamafactory.server import DEFAULT_MODEL_NAME


def import_llamafactory(options: argparse.Namespace) -> int:
    """`gpuserve import-llamafactory`."""
    out = Path(options.output) if options.output else None
    _check_output(out, force=options.force)
    draft, prompts = _convert(options, out)
    version = compare_flags(draft, options.python)
    refused = [note for note in draft.notes if note.fate is Fate.REFUSED]
    text = None if refused else _finish(draft, out)
    profile = None if text is None else _checked(text, draft, out)
    outcome = outcome_of(draft, text, profile, options, out, prompts, version)
    if text is not None and out is not None:
        _write(out, text, draft.files)
    if options.json:
        print_json(outcome)
    else:
        show(outcome, text, out)
    return Refused.exit_code if refused else 0


def _convert(options: argparse.Namespace, out: Path | None) -> tuple[Draft, list[Compared] | None]:
    path = Path(options.file)
    file, values, interpolated = source.read(path, options.overrides, os.environ)
    base = Path(options.base).absolute() if options.base else Path.cwd()
    prompts = None
    if options.check_template is not None:
        name = options.served_name or os.environ.get("API_MODEL_NAME") or DEFAULT_MODEL_NAME
        prompts = compare(options, values, base, name)
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
    draft.notes += [
        Note(
            key,
            Fate.WARNED,
            "its ${...} is resolved; LlamaFactory hands the text on as it stands",
            file.at(tuple(key.split("."))),
        )
        for key in interpolated
    ]
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
        draft.flags["chat_template"] = str(out.absolute().with_name(name))
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
