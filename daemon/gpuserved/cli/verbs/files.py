"""Commands about files and this host, which need no daemon: import-llamafactory, schema, doctor."""

from __future__ import annotations

from gpuserved.cli.verbs.base import Verbs


def add(verbs: Verbs) -> None:
    """Add them."""
    verbs.add(
        "doctor",
        "doctor.command:doctor",
        "check this host: driver, vLLM, hub, folders, limits, port, service; each problem with what removes it",
        "doctor\ndoctor --json",
    )
    _import(verbs)
    schema = verbs.add(
        "schema",
        "schema:schema",
        "print the JSON Schema of a profile, for editors",
        "schema -o profiles/profile.schema.json\nschema --vllm\nschema --python /opt/vllm/bin/python",
        json=False,
    )
    schema.add_argument("--output", "-o", metavar="FILE", help="write it there (standard output)")
    schema.add_argument("--vllm", action="store_true", help="with the flags of the vLLM in PATH")
    schema.add_argument("--python", metavar="PYTHON", help="the same for the vLLM of this environment")


def _import(verbs: Verbs) -> None:
    imports = verbs.add(
        "import-llamafactory",
        "importing:import_llamafactory",
        "make a profile of a LlamaFactory inference YAML, with every key accounted for",
        "import-llamafactory qwen3.yaml -o profiles/qwen3.toml\n"
        "import-llamafactory qwen3.yaml infer_backend=vllm vllm_config.enforce_eager=true\n"
        "import-llamafactory sft.yaml --check-template http://127.0.0.1:8000 --llamafactory-python ~/lf/bin/python",
    )
    imports.add_argument("file", metavar="FILE.yaml", help="what llamafactory-cli api takes")
    imports.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as after llamafactory-cli api FILE.yaml"
    )
    imports.add_argument(
        "--output", "-o", metavar="FILE.toml", help="write the profile there (standard output)"
    )
    imports.add_argument("--force", action="store_true", help="replace FILE.toml")
    imports.add_argument("--base", metavar="DIR", help="the folder LlamaFactory was started in (this one)")
    imports.add_argument(
        "--served-name", metavar="NAME", help="what requests put into model (API_MODEL_NAME)"
    )
    imports.add_argument(
        "--python", metavar="PYTHON", help="interpreter of vLLM's environment, for the profile"
    )
    imports.add_argument(
        "--inventory", metavar="FILE", help="compare for these GPUs instead of this machine's"
    )
    imports.add_argument("--chat-template", metavar="FILE.jinja", help="the chat template vLLM is to use")
    imports.add_argument(
        "--accept-template-risk",
        action="store_true",
        help="import although prompts may be rendered differently",
    )
    imports.add_argument(
        "--check-template",
        metavar="URL",
        help="compare LlamaFactory's prompts with those of the engine there",
    )
    imports.add_argument(
        "--llamafactory-python",
        metavar="PYTHON",
        help="interpreter of LlamaFactory's environment, for --check-template",
    )
