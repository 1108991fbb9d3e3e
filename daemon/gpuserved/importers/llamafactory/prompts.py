"""Prompts: LlamaFactory renders them by a template of its own, vLLM by the Jinja of the model's folder. They must be the same."""

from __future__ import annotations

import json
from pathlib import Path

from gpuserved.api.errors import Invalid
from gpuserved.importers.llamafactory.draft import TEMPLATE_MISMATCH, Draft
from gpuserved.importers.llamafactory.keys import KEYS, Fate
from gpuserved.importers.llamafactory.templates import NAMES, PARSERS, REASONING, known_difference, known_same

ACCEPT = "--accept-template-risk"


def convert(draft: Draft) -> None:
    """`template`, `default_system`, `enable_thinking`, `preserve_thinking` and `tool_format`."""
    doubts = _template(draft)
    system = draft.text("default_system")
    if system is not None and draft.request.chat_template is None:
        doubts.append(
            "default_system: vLLM adds no system prompt that a request does not have; put it into a chat template"
        )
    elif system is not None:
        draft.note("default_system", Fate.WARNED, "the chat template given must say it")
    _judge(draft, doubts)
    _thinking(draft)
    tools = draft.text("tool_format")
    if tools is not None:
        parser = PARSERS.get(tools)
        add = (
            f'enable_auto_tool_choice = true and tool_call_parser = "{parser}"'
            if parser
            else "tool_call_parser"
        )
        draft.note(
            "tool_format",
            Fate.WARNED,
            f"{KEYS['tool_format'].reason}: add {add} to [vllm] if clients send tools",
        )


def _judge(draft: Draft, doubts: list[str]) -> None:
    """Refuse what may render other prompts, or warn where the operator has accepted it. A comparison settles it."""
    key = "template" if draft.given("template") or not doubts else "default_system"
    why = "; ".join(doubts)
    same = draft.request.prompts_same
    if same is False:
        draft.refuse(key, "the engine renders other prompts than LlamaFactory: --chat-template FILE.jinja gives it another "
                     "template", code=TEMPLATE_MISMATCH)  # fmt: skip
        return
    if same is True:
        draft.note(key, Fate.MAPPED, "compared with the running engine: the same prompts")
        return
    if not doubts:
        return
    if draft.request.accept_template_risk:
        draft.note(key, Fate.WARNED, f"prompts may differ from LlamaFactory's: {why}", code=TEMPLATE_MISMATCH)
    else:
        draft.refuse(
            key, f"prompts may differ from LlamaFactory's: {why}. Give --chat-template FILE.jinja, or {ACCEPT} and then compare with "
            "--check-template", code=TEMPLATE_MISMATCH,
        )  # fmt: skip


def _template(draft: Draft) -> list[str]:
    """What speaks against the same prompts; empty where nothing does."""
    name = draft.text("template")
    model = str(draft.top["model"])
    given = draft.request.chat_template
    if given is not None:
        path = Path(given).expanduser().absolute()
        if not path.is_file():
            raise Invalid(f"{given}: there is no such chat template", "check the path after --chat-template")
        draft.set_flag("chat_template", str(path))
        draft.note(
            "template",
            Fate.MAPPED,
            "the chat template given on the command line",
            becomes="[vllm] chat_template",
        )
        return []
    if name is None:
        draft.note(
            "template",
            Fate.WARNED,
            "not set: vLLM renders the checkpoint's chat template, LlamaFactory one that it derives from that, which may repeat "
            "what stands at the beginning before every turn",
        )
        return []
    if name not in NAMES:
        return [f"LlamaFactory ships no template {name}"]
    asked = draft.request.values.get("model_name_or_path")
    difference = known_difference(name, model) or known_difference(name, str(asked))
    if difference:
        return [difference]
    rest = known_same(name, model)
    if rest is not None:
        same = f"{name} and the chat template that comes with {Path(model).name} render the same prompts"
        draft.note("template", Fate.WARNED if rest else Fate.MAPPED, f"{same}, {rest}" if rest else same)
        return []
    return _shipped(draft, name, Path(model))


def _shipped(draft: Draft, name: str, model: Path) -> list[str]:
    """A chat template that lies in the adapter's or the model's folder; training with LlamaFactory saves it there."""
    adapter = draft.request.values.get("adapter_name_or_path")
    folder = Path(draft.path(adapter)) if isinstance(adapter, str) else None
    if folder is not None and (folder / "chat_template.jinja").is_file():
        draft.set_flag("chat_template", str(folder / "chat_template.jinja"), "saved with the adapter")
    elif folder is not None and (text := _in_tokenizer_config(folder)):
        draft.add_file(f"{draft.request.name}.jinja", text)
        draft.set_flag(
            "chat_template", f"{draft.request.name}.jinja", "from the adapter's tokenizer_config.json"
        )
    elif not ((model / "chat_template.jinja").is_file() or _in_tokenizer_config(model)):
        return [f"nothing is known of LlamaFactory's template {name} together with {model.name}"]
    where = "the adapter's folder" if "chat_template" in draft.flags else "the model's folder"
    draft.note("template", Fate.WARNED, f"vLLM uses the chat template in {where}; that it renders what LlamaFactory's {name} renders "
               "is not checked: --check-template does", becomes="[vllm] chat_template" if "chat_template" in draft.flags else None)  # fmt: skip
    return []


def _in_tokenizer_config(folder: Path) -> str | None:
    try:
        found = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return None
    text = found.get("chat_template") if isinstance(found, dict) else None
    return text if isinstance(text, str) else None


def _thinking(draft: Draft) -> None:
    thinks = draft.text("template") in REASONING
    if draft.given("enable_thinking"):
        if not draft.boolean("enable_thinking", default=True) and thinks:
            draft.set_flag("default_chat_template_kwargs", {"enable_thinking": False})
            draft.note(
                "enable_thinking",
                Fate.MAPPED,
                "",
                becomes="[vllm] default_chat_template_kwargs.enable_thinking",
            )
        else:
            why = "true is the default" if thinks else "the template has no thinking to switch off"
            draft.note("enable_thinking", Fate.UNUSED, why)
    if draft.given("preserve_thinking"):
        on = draft.boolean("preserve_thinking", default=False)
        draft.note("preserve_thinking", Fate.WARNED if on else Fate.UNUSED,
                   KEYS["preserve_thinking"].reason if on else "false is the default")  # fmt: skip
