"""A replica crashes, and one card says why: on the command line, in events, beside the log, and at the webhook."""

from __future__ import annotations

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

from tests.e2e.box import Box, Json, kill
from tests.e2e.texts import sim

from gpuserved.api.client import ControlClient


class Receiver(BaseHTTPRequestHandler):
    """Refuses the first post, as a service does that restarts; takes the rest."""

    cards: ClassVar[queue.Queue[Json]] = queue.Queue()
    refused: ClassVar[int] = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if Receiver.refused == 0:
            Receiver.refused += 1
            self.send_response(503)
        else:
            self.send_response(204)
            Receiver.cards.put(json.loads(body))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Quiet."""


def test_one_card_for_everybody(box: Box) -> None:
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        config = box.top / "gpuserved.toml"
        secret = f"http://127.0.0.1:{server.server_port}/hook/s3cret-path"
        config.write_text(f'[supervisor]\nwebhook = "{secret}"\n', "utf-8")
        profile = box.write("crash", sim("crash", replicas=1, tables={"restart": {"backoff_s": 0.2}}))
        box.ok("up", profile, "--listen", f"127.0.0.1:{box.port}", "--config", str(config), "--wait", "60")
        row = box.replica("crash-0")
        kill(row["pid"])
        box.wait_restarted(row, 60)
        card: Json = json.loads(box.ok("crash", "crash-0", "--json"))
        posted = Receiver.cards.get(timeout=30)
    finally:
        server.shutdown()
        server.server_close()
    assert (card["replica"], card["generation"], card["signal"], card["exit_code"]) == ("crash-0", 1, 9, None)
    assert card["message"] == "API process killed by SIGKILL"
    assert card["state"] == "BACKOFF"
    assert card["started_at"] is not None
    assert any("Uvicorn" in line or "vLLM" in line or "INFO" in line for line in card["last_lines"])
    assert {key: posted[key] for key in card} == card
    assert posted["text"] == "crash-0 start 1 crashed: API process killed by SIGKILL"
    saved = json.loads((box.roots.log / "replicas" / "crash-0" / "1.crash.json").read_text())
    assert saved == card
    assert "killed by SIGKILL; now BACKOFF" in box.ok("crash", "crash-0")
    done = box.run("logs", "crash-0", "--previous", "-n", "1")
    assert done.stderr.startswith("# crash-0 start 1 crashed: API process killed by SIGKILL")
    assert "s3cret-path" not in (box.roots.log / "daemon.log").read_text()


def test_a_failed_start_has_tracebacks_and_a_lever(box: Box) -> None:
    text = sim("oom", replicas=1, flags={"fail_load": "kv-too-small"})
    box.run("up", box.write("oom", text), "--port", str(box.port), "--wait", "30")
    box.wait_state("oom-0", "FAILED")
    card: Json = json.loads(box.ok("crash", "oom-0", "--json"))
    assert card["cause"] == "does_not_fit"
    assert card["exit_code"] == 1
    assert card["tracebacks"]
    assert "max_model_len" in card["lever"]
    shown = box.ok("crash", "oom-0")
    assert "helps    " in shown
    assert "first traceback of EngineCore:" in shown
    found = ControlClient(box.roots.control_socket).recent_events().events
    cards = [(one.kind, one.severity, one.crash.generation) for one in found if one.crash is not None]
    assert cards == [("notice", "error", 1)]
    detail = ControlClient(box.roots.control_socket).detail("oom-0")
    assert detail.crash is not None
    assert (detail.crash.generation, detail.crash.lever) == (1, card["lever"]), (
        "the screen shows the same card"
    )
    assert all(line.strip() for line in [*detail.crash.last_lines, *detail.last_lines])


def test_a_replica_that_never_crashed_has_no_card(box: Box) -> None:
    box.up({"calm": sim("calm", replicas=1)})
    done = box.run("crash", "calm-0")
    assert done.returncode == 2
    assert "no crash of calm-0 is known" in done.stderr
    box.ok("restart", "calm-0")
    box.wait_state("calm-0", "READY", generation=2)
    assert box.run("crash", "calm-0").returncode == 2, "a stop on purpose is no crash"
    assert "crashed" not in box.run("logs", "calm-0", "--previous").stderr
