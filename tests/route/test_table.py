"""From upstreams as they are typed to a routing table."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuserved.api.errors import Invalid
from gpuserved.core.upstream import Check, UpstreamRow
from gpuserved.route.address import Address, parse_upstream, parse_upstreams
from gpuserved.route.service import Seen, table_of

UP = UpstreamRow(up=True, said=Check.OK)
DOWN = UpstreamRow(said=Check.REFUSED)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1:8001", "tcp:127.0.0.1:8001"),
        ("http://gpu-7.example/v1/", "tcp:gpu-7.example:80"),
        ("http://[::1]:8001/", "tcp:[::1]:8001"),
        ("unix:/run/vllm/a.sock", "unix:/run/vllm/a.sock"),
        ("unix:///run/vllm/a.sock", "unix:/run/vllm/a.sock"),
    ],
)
def test_what_an_upstream_may_look_like(text: str, address: str) -> None:
    assert parse_upstream(text).address == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://a:1", "without TLS"),
        ("127.0.0.1:8001", "not an upstream"),
        ("http://a:0", "no port 0"),
        ("http://a:70000", "no port 70000"),
        ("http://a:1/v2", "not an upstream"),
        ("http://user:secret@a:1", "not an upstream"),
        ("unix:relative.sock", "no absolute path"),
        ("unix:/" + "x" * 107, "107 bytes"),
    ],
)
def test_what_it_may_not(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        parse_upstream(text)


def test_a_file_of_upstreams_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "servers"
    file.write_text("# ours\nhttp://a:1\n\nunix:/b  # on this machine\n")
    assert [one.id for one in parse_upstreams(["http://c:1"], file)] == ["c:1", "a:1", "unix:/b"]
    file.write_text("http://a:1\nftp://b\n")
    with pytest.raises(Invalid, match=r"servers:2: 'ftp://b'"):
        parse_upstreams([], file)
    with pytest.raises(Invalid, match="a:1/v1 is there twice"):
        parse_upstreams(["http://a:1", "http://a:1/v1"], None)
    with pytest.raises(Invalid, match="cannot be read"):
        parse_upstreams([], tmp_path / "none")
    with pytest.raises(Invalid, match="no upstream"):
        parse_upstreams([], None)


def seen(name: str, row: UpstreamRow, *models: str) -> Seen:
    return Seen(Address(name, f"tcp:{name}"), row, models, "/health")


def test_each_model_lists_the_servers_that_have_it() -> None:
    table = table_of(
        [seen("a:1", UP, "llama", "lora"), seen("b:1", DOWN, "llama")],
        generation=7, policy="round_robin", override=None, keys=[],
    )  # fmt: skip
    assert {m.name: [(r.id, r.admit) for r in m.replicas] for m in table.models} == {
        "llama": [("a:1", True), ("b:1", False)],
        "lora": [("a:1", True)],
    }
    assert table.models[0].policy == "round_robin"
    assert table.generation == 7


def test_one_name_for_all_says_what_each_server_calls_it() -> None:
    table = table_of(
        [seen("a:1", UP, "/models/llama"), seen("b:1", UP, "mine", "other"), seen("c:1", UP)],
        generation=1, policy="least_inflight", override="mine", keys=[],
    )  # fmt: skip
    (model,) = table.models
    assert [(r.id, r.upstream_model) for r in model.replicas] == [
        ("a:1", "/models/llama"),
        ("b:1", None),
        ("c:1", None),
    ]
