"""Fetching what a plan needs. With GPUSERVE_TEST_VLLM the real huggingface_hub talks to a hub of this test's own."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import venv
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from tests.e2e.texts import VLLM_PYTHON
from tests.planner import configs

from gpuserved.core.planner.model import ModelFacts, Unknown
from gpuserved.planning import hub as hub_module
from gpuserved.planning.hub import Fetch, Hub
from gpuserved.planning.model_reader import ModelReader

COMMIT = "a" * 40
SIZES = {
    "config.json": 400,
    "a-1.safetensors": 8_000,
    "a-2.safetensors": 500,
    "consolidated.safetensors": 8_500,
}


def wanted(tmp_path: Path, python: str = sys.executable) -> Fetch:
    return Fetch("org/tiny", None, tmp_path / "hub", python)


def interpreter(tmp_path: Path, library: str | None) -> str:
    """An environment whose huggingface_hub is this text; None: it has none."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    if library is not None:
        site = next((tmp_path / "env" / "lib").glob("python3*")) / "site-packages"
        (site / "huggingface_hub.py").write_text(library)
    return str(tmp_path / "env" / "bin" / "python")


@pytest.mark.parametrize(
    ("library", "says"),
    [
        (None, "no huggingface_hub in the engine's environment"),
        ("class GatedRepoError(Exception): pass\nraise GatedRepoError('Access to org/tiny is restricted')", "GatedRepoError: Access"),
        ("print('{}')\nraise SystemExit", "makes no sense"),
        ("import time\ntime.sleep(60)", "no answer within 1 s"),
    ],
)  # fmt: skip
def test_a_hub_that_does_not_answer_is_a_reason_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str | None, says: str
) -> None:
    monkeypatch.setattr(hub_module, "TIMEOUT_S", 1.0 if "sleep" in (library or "") else 30.0)
    reason = Hub(tmp_path, {}).fetch(wanted(tmp_path, interpreter(tmp_path, library)), None)
    assert reason is not None
    assert says in reason


def test_offline_nothing_is_tried(tmp_path: Path) -> None:
    assert (
        Hub(tmp_path, {"HF_HUB_OFFLINE": "1"}).fetch(wanted(tmp_path, "/no/python"), None)
        == "HF_HUB_OFFLINE is set"
    )


def test_the_token_is_in_the_environment_alone(tmp_path: Path) -> None:
    library = (
        "import os, sys, json\n"
        "assert os.environ['HF_TOKEN'] == 'hf_secret' and 'hf_secret' not in ' '.join(sys.argv)\n"
        f"print(json.dumps({{'commit': '{COMMIT}', 'sizes': {SIZES}}}))\nraise SystemExit\n"
    )
    hub = Hub(tmp_path, {})
    assert hub.fetch(wanted(tmp_path, interpreter(tmp_path, library)), "hf_secret") is None
    files = hub.sizes("org/tiny", COMMIT)
    assert files is not None
    assert (files.total_bytes, files.source) == (8_500, "hub"), (
        "the same weights in another form are not counted"
    )
    assert hub.sizes("org/tiny", "b" * 40) is None
    assert "hf_secret" not in "".join(path.read_text() for path in (tmp_path / "hub-sizes").iterdir())


def test_weights_that_are_still_at_the_hub_count(tmp_path: Path) -> None:
    """Only the configuration is in the cache; the sizes are known."""
    library = (
        "import os, sys, json, pathlib\n"
        "repository = pathlib.Path(sys.argv[3]) / 'models--org--tiny'\n"
        f"(repository / 'snapshots' / '{COMMIT}').mkdir(parents=True)\n"
        "(repository / 'refs').mkdir()\n"
        f"(repository / 'refs' / 'main').write_text('{COMMIT}')\n"
        f"(repository / 'snapshots' / '{COMMIT}' / 'config.json').write_text('''{json.dumps(configs.LLAMA_8B)}''')\n"
        f"print(json.dumps({{'commit': '{COMMIT}', 'sizes': {SIZES}}}))\nraise SystemExit\n"
    )
    reader = ModelReader(Hub(tmp_path / "cache", {}), {"HF_HUB_CACHE": str(tmp_path / "hub")})
    profile = configs.profile(model="org/tiny")
    assert isinstance(reader.facts(profile), Unknown), "without an interpreter nothing is fetched"
    found = reader.facts(profile, interpreter(tmp_path, library))
    assert isinstance(found, ModelFacts)
    assert (found.weights.total_bytes, found.weights.source) == (8_500, "hub")


class _Hub(BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {
        "config.json": json.dumps(configs.LLAMA_8B).encode(),
        "model.safetensors.index.json": json.dumps({"metadata": {"total_size": 16_060_522_496}}).encode(),
    }

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Silent."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[1]
        if path == "/api/models/org/tiny":
            siblings = [{"rfilename": one, "size": len(data)} for one, data in self.files.items()]
            siblings.append({"rfilename": "model-00001-of-00001.safetensors", "size": 16_060_530_000})
            data, code = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode(), 200
        elif path.startswith("/org/tiny/resolve/") and name in self.files:
            data, code = self.files[name], 200
        else:
            data, code = b'{"error": "Repository not found"}', 404
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


if VLLM_PYTHON:

    @pytest.mark.real_vllm
    def test_the_real_library_against_a_hub_of_our_own(tmp_path: Path, endpoint: str) -> None:
        env = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(tmp_path / "hub"), "HOME": str(tmp_path)}
        reader = ModelReader(Hub(tmp_path / "cache", env), env)
        found = reader.facts(configs.profile(model="org/tiny"), VLLM_PYTHON)
        assert isinstance(found, ModelFacts), found
        assert (found.weights.total_bytes, found.weights.source) == (16_060_522_496, "index")
        none = reader.facts(configs.profile(model="org/none"), VLLM_PYTHON)
        assert isinstance(none, Unknown)
        assert "RepositoryNotFoundError" in none.message
