"""`[router] routers = 2`: one URL, one picture in `status`, adoption, and a router's death that costs its own requests alone."""

from __future__ import annotations

import urllib.request

from tests.e2e.box import Box, kill, until
from tests.e2e.clients import PlainLoad

SIM = 'model = "sim/tiny"\nserved_name = "tiny"\nengine = "sim"\nreplicas = 2\n[sim]\ngpus = 2\ngpu_memory_gib = 80\n'


def test_two_routers_serve_die_and_are_adopted(box: Box) -> None:
    (box.root / "gpuserved.toml").write_text("[router]\nrouters = 2\n")
    box.up({"tiny": SIM})

    def two() -> list[int] | None:
        pids: list[int] = box.look()["router"]["pids"]
        return pids if len(set(pids)) == 2 else None

    pids = until(two, "status shows two routers", 60)
    with PlainLoad(box.endpoint, "tiny") as load:
        load.reach(20)
    until(lambda: (box.look()["router"]["requests_total"] or 0) >= 20, "their requests are added up", 60)
    page = urllib.request.urlopen(f"{box.endpoint}/metrics", timeout=60).read().decode()
    figures = [line for line in page.splitlines() if line and not line.startswith("#")]
    assert figures
    assert all('{router="' in line for line in figures)
    kill(pids[1])
    until(lambda: (found := two()) is not None and found[1] != pids[1], "the second router is back", 60)
    with PlainLoad(box.endpoint, "tiny") as load:
        load.reach(20)
    kill(box.look()["supervisor"]["pid"])
    box.up({"tiny": SIM})
    assert until(two, "both routers are adopted", 15)[0] == pids[0]
    box.ok("down", "--yes")
    assert [p for p in box.roots.run.rglob("*") if p.is_socket()] == []
